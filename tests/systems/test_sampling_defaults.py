"""Published sampling defaults: declared by presets, written by `convert`, used by `generate`."""

import json

import pytest
import torch
from transformers import AutoModel, GenerationConfig

from unimm import ImageOptions, LinearGuidance
from unimm.conversion.base import Preset
from unimm.conversion.checkpoints import convert
from unimm.systems import get_system, system_names

NEEDS_DIFFUSERS = {("mar", "tokenizer")}
PRESETS = [
    pytest.param(name, preset, marks=[pytest.mark.needs("diffusers")] if (name, preset) in NEEDS_DIFFUSERS else [])
    for name in system_names()
    for preset in get_system(name).presets
]


@pytest.mark.parametrize(("system", "preset"), PRESETS)
def test_every_presets_defaults_are_options_and_generators_have_some(system, preset):
    found = get_system(system).presets[preset]
    ImageOptions.resolve(found.sampling)
    assert bool(found.sampling) == hasattr(found.config(), "plan_config")


def test_a_converted_folder_draws_as_published(parity_cases, tmp_path, monkeypatch):
    system, case = get_system("var"), parity_cases["var/generator"]
    config = system.config_from_reference(json.loads((case / "config.json").read_text())["constructor"])
    monkeypatch.setitem(system.presets, "tiny", Preset(lambda: config, 1, sampling=system.presets["d16"].sampling))
    convert(system, case / "weights.safetensors", tmp_path / "model", preset="tiny")
    written = json.loads((tmp_path / "model" / "generation_config.json").read_text())
    assert written["guidance_scale"] == {"type": "linear", "first": 1.0, "last": 2.5}
    assert (written["top_k"], written["top_p"], written["do_sample"]) == (900, 0.96, True)
    assert GenerationConfig.from_pretrained(tmp_path / "model").top_k == 900
    model = AutoModel.from_pretrained(tmp_path / "model").eval()
    published = {"guidance_scale": LinearGuidance(1.0, 2.5), "top_k": 900, "top_p": 0.96}
    drawn = [
        model.generate(labels=[1, 2], generator=torch.Generator().manual_seed(0), **options).sequences
        for options in ({}, published, {"guidance_scale": 1.0})
    ]
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])


def test_a_checkpoint_of_no_preset_gets_no_defaults(parity_cases, tmp_path):
    system, case = get_system("llamagen"), parity_cases["llamagen/c2i"]
    config = system.config_from_reference(json.loads((case / "config.json").read_text())["constructor"])
    convert(system, case / "weights.safetensors", tmp_path / "model", config=config)
    assert AutoModel.from_pretrained(tmp_path / "model").image_options({}) == ImageOptions()
