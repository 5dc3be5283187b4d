import json
import shutil

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings
from safetensors.torch import load_file, save_file
from transformers import AutoModel

from unimm.conversion import Rename
from unimm.conversion.base import compare_keys
from unimm.conversion.checkpoints import convert, export, infer_preset, read_checkpoint
from unimm.errors import CheckpointError, ConfigError
from unimm.systems import get_system, system_names

NEEDS_DIFFUSERS = {("mar", "tokenizer")}
PRESETS = [
    pytest.param(name, preset, marks=[pytest.mark.needs("diffusers")] if (name, preset) in NEEDS_DIFFUSERS else [])
    for name in system_names()
    for preset in get_system(name).presets
]


def released_on_meta(name, preset):
    system = get_system(name)
    config = system.preset(preset).config()
    with torch.device("meta"):
        model = AutoModel.from_config(config)
    return system, config, model


@pytest.mark.parametrize(("name", "preset"), PRESETS)
def test_every_preset_converts_there_and_back_at_full_size_with_the_released_number_of_parameters(name, preset):
    system, config, model = released_on_meta(name, preset)
    converter = system.converter(config)
    released = converter.to_released(model.state_dict())
    joined = [join.parts(key) for join in converter.joins for key in model.state_dict() if join.parts(key)]
    assert len(released) == len(model.state_dict()) + sum(len(parts) - 1 for parts in joined)
    assert (
        compare_keys(
            {key: tensor.shape for key, tensor in model.state_dict().items()},
            {key: tensor.shape for key, tensor in converter.to_ours(released).items()},
            converter,
        )
        == []
    )
    parts = [model] if not hasattr(model, "condition") else [model.condition, model.plan, model.backbone, model.head]
    parameters = sum(parameter.numel() for part in parts for parameter in part.parameters()) / 1e6
    # The sheets round: 111M is 110.5M to 111.5M.
    assert parameters == pytest.approx(system.preset(preset).parameters, rel=0.01, abs=0.5)


@pytest.mark.parametrize("wrapper", ["", "model", "module", "state_dict", "ema", "trainer.var_wo_ddp"])
def test_released_wrappers_are_taken_off(wrapper):
    system, config, model = released_on_meta("var", "d16")
    converter = system.converter(config)
    state = converter.to_released(model.state_dict())
    wrapped = state
    for part in reversed(wrapper.split(".") if wrapper else []):
        wrapped = {part: wrapped, "epoch": 3}
    assert converter.unwrap(wrapped).keys() == state.keys()


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 99), st.integers(0, 99), st.sampled_from(["weight", "bias"]))
def test_a_renaming_is_its_own_inverse(n, j, p):
    rule = Rename("blocks.{n}.attn.{j}.{p}", "layers.{n}.parts.{j}.x.{p}", leading_ones=1)
    released = f"blocks.{n}.attn.{j}.{p}"
    assert rule.to_released(rule.to_ours(released)) == released
    assert rule.to_ours("blocks.x.attn.0.weight") is None


@pytest.fixture
def case(parity_cases):
    return parity_cases["var/generator"]


def test_a_converted_folder_loads_and_exports_the_released_file_bit_for_bit(case, tmp_path):
    system = get_system("var")
    config = system.config_from_reference(json.loads((case / "config.json").read_text())["constructor"])
    convert(system, case / "weights.safetensors", tmp_path / "model", config=config)
    model = AutoModel.from_pretrained(tmp_path / "model")
    assert "license:" in (tmp_path / "model" / "README.md").read_text()
    export(system, model, tmp_path / "back.safetensors")
    original, back = load_file(case / "weights.safetensors"), load_file(tmp_path / "back.safetensors")
    ignored = {key for key in original if system.converter(config).is_ignored(key)}
    assert back.keys() == original.keys() - ignored
    assert all(torch.equal(back[key], original[key]) for key in back)


def test_generator_and_tokenizer_files_become_one_model_and_two_files_again(case, tmp_path):
    system = get_system("var")
    config = system.config_from_reference(json.loads((case / "config.json").read_text())["constructor"])
    whole = load_file(case / "weights.safetensors")
    tokenizer = {key.removeprefix("vae_local."): value for key, value in whole.items() if key.startswith("vae_local.")}
    generator = {key: value for key, value in whole.items() if not key.startswith("vae_local.")}
    save_file(generator, tmp_path / "generator.safetensors")
    with pytest.raises(CheckpointError, match=r"--tokenizer"):
        convert(system, tmp_path / "generator.safetensors", tmp_path / "model", config=config)
    assert not (tmp_path / "model").exists()
    convert(system, case / "weights.safetensors", tmp_path / "model", config=config)
    model = AutoModel.from_pretrained(tmp_path / "model")
    export(system, model, tmp_path / "g.pth", tokenizer_output=tmp_path / "t.pth")
    written = torch.load(tmp_path / "t.pth", weights_only=True)
    assert all(torch.equal(written[key], tokenizer[key]) for key in written)
    assert not any(key.startswith("vae_local.") for key in torch.load(tmp_path / "g.pth", weights_only=True))


@pytest.mark.parametrize("damage", ["missing", "extra", "shape"])
def test_a_checkpoint_that_does_not_fit_is_refused_by_released_name_and_nothing_is_written(case, tmp_path, damage):
    system = get_system("var")
    config = system.config_from_reference(json.loads((case / "config.json").read_text())["constructor"])
    state = load_file(case / "weights.safetensors")
    if damage == "missing":
        state.pop("blocks.1.ffn.fc1.weight")
    elif damage == "extra":
        state["blocks.1.ffn.fc3.weight"] = torch.zeros(1)
    else:
        state["head.weight"] = torch.zeros(3, 3)
    save_file(state, tmp_path / "bad.safetensors")
    name = {"missing": "blocks.1.ffn.fc1.weight", "extra": "blocks.1.ffn.fc3.weight", "shape": "head.weight"}[damage]
    with pytest.raises(CheckpointError, match=name):
        convert(system, tmp_path / "bad.safetensors", tmp_path / "model", config=config)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bad.safetensors"]


def test_no_preset_fits_a_tiny_checkpoint_and_the_message_names_the_nearest(case):
    with pytest.raises(CheckpointError, match=r"no preset of var"):
        infer_preset(get_system("var"), load_file(case / "weights.safetensors"))


@pytest.mark.parametrize(("name", "preset"), [("var", "d20"), ("llamagen", "c2i-L-384"), ("llamagen", "vq-8")])
def test_the_preset_is_read_off_the_shapes(name, preset):
    system, config, model = released_on_meta(name, preset)
    state = system.converter(config).to_released(model.state_dict())
    found = infer_preset(system, {key: value for key, value in state.items() if not key.startswith("vae_local.")})
    assert {k: v.shape for k, v in released_on_meta(name, found)[2].state_dict().items()} == {
        k: v.shape for k, v in model.state_dict().items()
    }


class Malicious:
    def __reduce__(self):
        return (print, ("executed",))


def test_a_pickle_that_would_run_code_is_refused(tmp_path, capsys):
    torch.save({"model": Malicious()}, tmp_path / "bad.pth")
    with pytest.raises(CheckpointError, match=r"weights_only=True"):
        read_checkpoint(tmp_path / "bad.pth")
    assert "executed" not in capsys.readouterr().out


def test_files_that_are_no_checkpoints_are_refused(tmp_path):
    (tmp_path / "notes.txt").write_text("hello")
    (tmp_path / "torn.safetensors").write_bytes(b"\x00" * 20)
    (tmp_path / "empty").mkdir()
    for path, message in (
        ("notes.txt", "ending '.txt'"),
        ("torn.safetensors", "no valid safetensors"),
        ("empty", "found none"),
        ("missing.pt", "no checkpoint at"),
    ):
        with pytest.raises(CheckpointError, match=message):
            read_checkpoint(tmp_path / path)


def test_shards_are_read_through_their_index(tmp_path):
    save_file({"a": torch.ones(2)}, tmp_path / "x-1.safetensors")
    save_file({"b": torch.zeros(2)}, tmp_path / "x-2.safetensors")
    index = {"weight_map": {"a": "x-1.safetensors", "b": "x-2.safetensors"}}
    (tmp_path / "x.safetensors.index.json").write_text(json.dumps(index))
    assert read_checkpoint(tmp_path).keys() == {"a", "b"}


def test_a_failed_conversion_leaves_an_older_folder_alone(case, tmp_path):
    system = get_system("var")
    target = tmp_path / "model"
    target.mkdir()
    (target / "keep.txt").write_text("older")
    shutil.copy(case / "weights.safetensors", tmp_path / "w.safetensors")
    with pytest.raises(CheckpointError):
        convert(system, tmp_path / "w.safetensors", target)
    assert (target / "keep.txt").read_text() == "older"


def test_unknown_systems_and_presets_name_the_nearest():
    with pytest.raises(ConfigError, match=r"llamagen"):
        get_system("lamagen")
    with pytest.raises(ConfigError, match=r"d16"):
        get_system("var").preset("d17")
