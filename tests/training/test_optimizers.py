import copy

import pytest
import torch
from factories import build, training_inputs

from unimm.errors import RecipeError
from unimm.training.optimizers import MuonWithAdamW


def stepped(model, optimizer, number):
    for _ in range(number):
        torch.manual_seed(0)
        model(**training_inputs(model)).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return [parameter.detach().clone() for parameter in model.parameters()]


def make(model):
    return MuonWithAdamW(model, learning_rate=1e-3, muon_learning_rate=1e-2)


def test_every_trainable_parameter_is_in_exactly_one_part():
    model = build("scale").train()
    held = [one for group in make(model).param_groups for one in group["params"]]
    assert len(held) == len({id(one) for one in held})
    assert {id(one) for one in held} == {id(one) for one in model.parameters() if one.requires_grad}


def test_matrices_of_blocks_go_to_muon_and_embeddings_do_not():
    model = build("raster").train()
    muon = {id(one) for group in make(model).parts["muon"].param_groups for one in group["params"]}
    named = dict(model.named_parameters())
    assert id(named["backbone.layers.0.attention.qkv.weight"]) in muon
    assert id(named["plan.token_embedding.weight"]) not in muon
    assert id(named["head.proj.weight"]) not in muon


def test_a_loaded_state_goes_on_as_if_undisturbed():
    model = build("raster").train()
    optimizer = make(model)
    stepped(model, optimizer, 2)
    twin = copy.deepcopy(model)
    resumed = make(twin)
    resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for one, other in zip(stepped(model, optimizer, 2), stepped(twin, resumed, 2), strict=True):
        assert torch.equal(one, other)


def test_a_schedule_moves_both_parts_and_survives_loading():
    model = build("raster").train()
    optimizer = make(model)
    optimizer.load_state_dict(optimizer.state_dict())
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.5**step)
    stepped(model, optimizer, 1)
    schedule.step()
    assert {part.param_groups[0]["lr"] for part in optimizer.parts.values()} == {0.5e-3, 0.5e-2}


def test_a_model_without_blocks_is_refused():
    with pytest.raises(RecipeError, match="no blocks"):
        MuonWithAdamW(torch.nn.Linear(2, 2), learning_rate=1.0, muon_learning_rate=1.0)
