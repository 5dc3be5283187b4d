"""Adapters on both models, without naming layers."""

import re

import pytest
import torch
from factories import CONDITIONALS, GENERATORS, build, training_inputs
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import AutoModel

from unimm.errors import ConfigError


def adapted(model, seed=0):
    """The model with an adapter that has an effect."""
    model.add_adapter(LoraConfig(r=2))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
    return model


@pytest.mark.parametrize("name", GENERATORS + CONDITIONALS)
def test_an_adapter_comes_back_on_the_same_model(name, tmp_path):
    inputs = training_inputs(build(name))
    plain = build(name)(**inputs).loss
    build(name).save_pretrained(tmp_path / "base")
    model = adapted(AutoModel.from_pretrained(tmp_path / "base")).eval()
    expected = model(**inputs).loss
    assert not torch.equal(expected, plain)
    model.save_pretrained(tmp_path / "adapter")
    assert not (tmp_path / "adapter" / "model.safetensors").exists()
    loaded = AutoModel.from_pretrained(tmp_path / "base").eval()
    loaded.load_adapter(str(tmp_path / "adapter"))
    assert torch.equal(loaded(**inputs).loss, expected)
    loaded.disable_adapters()
    assert torch.equal(loaded(**inputs).loss, plain)


@pytest.mark.parametrize("name", GENERATORS + CONDITIONALS)
def test_default_targets_are_the_backbones_layers_and_every_one_has_an_effect(name):
    model = build(name)
    pattern = model.default_adapter_targets
    targets = {key: module for key, module in model.named_modules() if re.fullmatch(pattern, key)}
    inside = (
        "language_model.model.layers."
        if name in CONDITIONALS
        else (
            "backbone.layers.",
            "backbone.branches.",
            "backbone.decoder.layers.",
        )
    )
    assert targets
    assert all(key.startswith(inside) and isinstance(module, nn.Linear) for key, module in targets.items())
    assert not any("modulation" in key for key in targets)
    names = {key.rpartition(".")[2] for key in targets}
    assert len(names) >= 4
    model = adapted(model)
    model.train()
    torch.manual_seed(0)
    model(**training_inputs(model)).loss.backward()
    silent = [key for key, tensor in model.named_parameters() if "lora_A" in key and not tensor.grad.abs().sum() > 0]
    assert silent == []


@pytest.mark.parametrize("name", ["scale", "conditional"])
def test_pefts_own_model_takes_the_targets_and_draws(name):
    model = build(name)
    wrapped = get_peft_model(model, LoraConfig(r=2, target_modules=model.default_adapter_targets))
    trained = [key for key, tensor in wrapped.named_parameters() if tensor.requires_grad]
    assert trained
    assert all("lora" in key for key in trained)
    if name == "scale":
        assert wrapped.generate(labels=[1]).images.shape == (1, 3, 16, 16)
    else:
        ids = torch.tensor([[2, 20]])
        assert wrapped.generate(input_ids=ids, generation_mode="image").shape == (1, model.layout.length)


def test_own_targets_count_and_the_callers_config_is_left_alone():
    model = build("raster")
    config = LoraConfig(r=2, target_modules=["qkv"])
    model.add_adapter(config)
    assert {key.split(".lora_A")[0].rpartition(".")[2] for key, _ in model.named_parameters() if "lora_A" in key} == {
        "qkv"
    }
    untouched = LoraConfig(r=2)
    build("raster").add_adapter(untouched)
    assert untouched.target_modules is None
    with pytest.raises(ConfigError, match=r"needs a config of peft"):
        model.add_adapter({"r": 2})
