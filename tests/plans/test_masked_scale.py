"""Levels that see themselves alone, and masked refinement inside of a level (HMAR)."""

from __future__ import annotations

import pytest
import torch
from factories import ADALN, build, masked_scale_config, random_ids, scale_config
from transformers import AutoModel

from unimm.errors import ConfigError
from unimm.generation import LinearGuidance, PhaseGuidance, as_schedule
from unimm.plans import MaskedScalePlanConfig
from unimm.systems import hmar
from unimm.systems.var import SIDES_256, SIDES_512

NAME = "scale_masked"
SCHEDULE = [[1], [1, 3], [4, 4, 8]]


@pytest.fixture
def model():
    return build(NAME)


def draw(model, **options):
    options = {"generator": torch.Generator().manual_seed(0), "output_logits": True, **options}
    return model.generate(labels=[1, 2], guidance_scale=2.0, **options)


def test_a_schedule_costs_one_call_per_further_entry_and_one_entry_changes_nothing(model):
    plain = draw(model)
    at_once = draw(model, plan_options={"schedule": [[1], [4], [16]]})
    assert torch.equal(plain.sequences, at_once.sequences)
    assert plain.num_backbone_calls == 3
    refined = draw(model, plan_options={"schedule": SCHEDULE})
    assert refined.num_backbone_calls == 3 + 1 + 2
    assert not torch.equal(refined.sequences, plain.sequences)


def test_a_refinement_keeps_the_most_certain_tokens(model):
    seen = []
    model.generate(
        labels=[1, 2],
        generator=torch.Generator().manual_seed(0),
        plan_options={"schedule": [[1], [4], [10, 6]]},
        callback_on_step_end=lambda model, step, number, tensors: seen.append(tensors),
        callback_on_step_end_tensor_inputs=["ids", "logits", "canvas"],
    )
    final = draw_level(model, [[1], [4], [10, 6]])
    first, again = seen[2], seen[3]
    confidence = first["logits"].softmax(-1).gather(-1, first["ids"][..., None])[..., 0]
    least = torch.zeros_like(confidence, dtype=torch.bool).scatter_(1, confidence.argsort(-1)[:, :6], True)
    assert torch.equal(final, torch.where(least, again["ids"], first["ids"]))


def draw_level(model, schedule):
    drawn = model.generate(
        labels=[1, 2], generator=torch.Generator().manual_seed(0), plan_options={"schedule": schedule}
    )
    return drawn.sequences[:, 5:]


@torch.no_grad()
def test_a_level_depends_on_the_others_through_its_slots_alone():
    plan = {"model_type": "unimm_scale_plan", "visible": "own"}
    model = AutoModel.from_config(scale_config(plan_config=plan)).eval()
    inputs = {"image_ids": random_ids(model, 2), "labels": torch.tensor([1, 2])}
    whole = model(**inputs)
    condition = model.condition(labels=inputs["labels"])
    positions = model.backbone.encode_positions(model.plan.positions(model.layout, condition))
    for level in range(3):
        where = model.layout.level_slice(level)
        alone = model.backbone(
            inputs_embeds=whole.slots[:, where],
            positions=positions[where],
            rule=model.plan.rule(model.layout, condition).part(where),
            condition=model.backbone.encode_condition(condition),
        )
        assert torch.allclose(alone.last_hidden_state, whole.last_hidden_state[:, where], atol=1e-5)


@pytest.mark.parametrize(
    ("sides", "own", "coarser"), [(SIDES_256, 110_468, 286_434), (SIDES_512, 1_521_000, 3_270_000)]
)
def test_attended_pairs_are_the_published_ones(sides, own, coarser):
    lengths = [side * side for side in sides]
    assert sum(length * length for length in lengths) == pytest.approx(own, rel=0.005)
    assert sum(n * sum(lengths[: k + 1]) for k, n in enumerate(lengths)) == pytest.approx(coarser, rel=0.005)


@torch.no_grad()
def test_masked_slots_lose_what_their_own_tokens_say():
    plan = {"model_type": "unimm_masked_scale_plan", "refinement_only": True}
    model = AutoModel.from_config(masked_scale_config(plan_config=plan, backbone_config=ADALN)).eval()

    class Everything(torch.nn.Module):
        def uniform(self, shape, name, device):
            return torch.ones(shape) if name == "mask_share" else torch.arange(shape[0]) / shape[0]

    from unimm.generation import Randomness

    source = type("Source", (Everything, Randomness), {"exponential": None, "normal": None})()
    ids = random_ids(model, 2)
    changed = ids.clone()
    changed[:, 5:] = (changed[:, 5:] + 1) % 32
    labels = torch.tensor([1, 2])
    # The last level's own ids are nobody else's input.
    slots = [model(image_ids=one, labels=labels, randomness=source).slots for one in (ids, changed)]
    assert torch.equal(*slots)


def test_weights_of_levels():
    for sides in (SIDES_256, SIDES_512):
        length = sum(side * side for side in sides)
        for weights in (hmar.lognorm_level_weights(sides), hmar.equal_level_weights(sides)):
            shares = [weight * side * side / length for weight, side in zip(weights, sides, strict=True)]
            assert min(shares) > 0
        assert sum(hmar.lognorm_level_weights(sides)[k] * side**2 for k, side in enumerate(sides)) == pytest.approx(
            length
        )
        assert shares == pytest.approx([1.0] * len(sides))


def test_guidance_by_phase_is_saved_and_read_back():
    schedule = PhaseGuidance((LinearGuidance(1.0, 2.0, over="levels"), 1.0))
    assert as_schedule(schedule.to_dict()) == schedule


def test_what_does_not_fit_is_refused(model):
    with pytest.raises(ConfigError, match=r"visible='own'"):
        masked_scale_config(plan_config={"model_type": "unimm_masked_scale_plan", "visible": "coarser"})
    with pytest.raises(ConfigError, match=r"leave level_draws and self_correction out"):
        MaskedScalePlanConfig(self_correction=0.3)
    with pytest.raises(ConfigError, match=r"phases"):
        masked_scale_config(backbone_config=ADALN)
    for schedule in ([[1], [4], [15]], [[1], [4]], [[1], [4], [4, 12, 0]], "all"):
        with pytest.raises(ConfigError, match=r"schedule"):
            draw(model, plan_options={"schedule": schedule})
