"""What Infinity's own file knows: scale lists, and the spellings of its released names."""

import itertools
import json
import re

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModel

from unimm.errors import CheckpointError, ConfigError
from unimm.systems import get_system, load_released
from unimm.systems.infinity import NUM_SCALES, SCALES, generator_config, scales, tokenizer_config

SYSTEM = get_system("infinity")


def loaded(path):
    settings = json.loads((path / "config.json").read_text())["constructor"]
    return SYSTEM.config_from_reference(settings), load_file(path / "weights.safetensors")


def test_scale_lists_grow_keep_their_ratio_and_come_in_pairs():
    assert len(SCALES) == 15
    for ratio, sizes in SCALES.items():
        assert len(sizes) == 13
        assert all(a <= c and b <= d for (a, b), (c, d) in itertools.pairwise(sizes))
        assert sizes[-1][0] / sizes[-1][1] == pytest.approx(ratio, rel=2e-3)
        assert tuple((width, height) for height, width in sizes) in SCALES.values()
        for resolution, number in NUM_SCALES.items():
            assert scales(ratio, resolution) == sizes[:number]


def test_names_without_the_wrappers_of_convolutions_and_norms_load_too(parity_cases):
    config, weights = loaded(parity_cases["infinity/tokenizer"])
    plain = {re.sub(r"\.(conv|norm)\.(weight|bias)$", r".\2", name): tensor for name, tensor in weights.items()}
    assert plain.keys() != weights.keys()
    first, second = (load_released(SYSTEM, config, {"vae": one}).state_dict() for one in (weights, plain))
    assert all(torch.equal(second[name], tensor) for name, tensor in first.items())


@pytest.mark.parametrize("num_chunks", [1, 2, 4])
def test_blocks_are_found_in_any_number_of_chunks(num_chunks):
    tokenizer = tokenizer_config(
        4, [1, 2], base_channels=4, channel_multipliers=(1, 1), num_norm_groups=2, num_residual_blocks=1
    )
    config = generator_config(4, tokenizer, hidden_size=64, num_heads=2, text_size=128, text_length=4)
    model = AutoModel.from_config(config)
    released = SYSTEM.converter(config).to_released(model.state_dict())
    assert {name.split(".sa")[0] for name in released if ".sa.q_bias" in name} == {
        f"block_chunks.{chunk}.module.0" for chunk in range(4)
    }
    length = 4 // num_chunks

    def rechunked(found):
        layer = int(found[1])
        if num_chunks == 1:
            return f"blocks.{layer}."
        return f"block_chunks.{layer // length}.module.{layer % length}."

    other = {re.sub(r"^block_chunks\.(\d)\.module\.0\.", rechunked, name): tensor for name, tensor in released.items()}
    again = load_released(SYSTEM, config, other).state_dict()
    assert all(torch.equal(again[name], tensor) for name, tensor in model.state_dict().items())
    other.pop("cfg_uncond")
    with pytest.raises(CheckpointError, match=r"cfg_uncond"):
        load_released(SYSTEM, config, other)


def test_options_of_the_reference_that_no_released_model_uses_are_refused(parity_cases):
    settings = json.loads((parity_cases["infinity/generator"] / "config.json").read_text())["constructor"]
    for change in ({"swiglu": True}, {"cross_attn_layer_scale": 0.1}, {"rope2d_normalized_by_hw": 1}):
        with pytest.raises(ConfigError, match=next(iter(change))):
            SYSTEM.config_from_reference({**settings, "infinity": {**settings["infinity"], **change}})
