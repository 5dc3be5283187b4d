"""Text features in files: nothing is encoded twice, and nothing stale is ever read."""

from __future__ import annotations

import pytest
import torch
from factories import CLIP, T5, WORDS

from unimm.conditions import CachedTextEncoder, TextEncoder, TextEncoderConfig
from unimm.errors import DataError, OutputError

PROMPTS = ["a red circle", "a blue square left of a circle", "circle", ""]


def encoder(**changes):
    fields = {"encoder_config": T5, "words": WORDS, "max_length": 8, "padding_side": "left"}
    return TextEncoder(TextEncoderConfig(**{**fields, **changes}))


def count_encoded(cached):
    prompts = []
    cached.model.register_forward_hook(
        lambda module, args, kwargs, output: prompts.append(len(kwargs["input_ids"])), with_kwargs=True
    )
    return prompts


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"padding": "longest", "pooled": "mean"},
        {"encoder_config": CLIP, "zero_padding": False, "pooled": "encoder"},
        {"precision": "bfloat16"},
    ],
)
def test_cached_features_are_those_of_the_encoder(changes, tmp_path):
    expected = encoder(**changes).encode(PROMPTS)
    for _ in range(2):
        found = CachedTextEncoder(encoder(**changes), tmp_path).encode(PROMPTS)
        assert torch.equal(found.features, expected.features)
        assert torch.equal(found.mask, expected.mask)
        assert (found.pooled is None) == (expected.pooled is None)
        assert found.pooled is None or torch.equal(found.pooled, expected.pooled)


def test_a_prompt_is_encoded_once_for_all_readers(tmp_path):
    first = CachedTextEncoder(encoder(), tmp_path, batch_size=2)
    second = CachedTextEncoder(encoder(), tmp_path)
    encoded = [count_encoded(first), count_encoded(second)]
    assert first.encode_ahead(PROMPTS + PROMPTS) == 4
    assert second.encode_ahead([*PROMPTS, "a"]) == 1
    second.encode(PROMPTS)
    first.encode(["a", "circle"])
    assert encoded == [[2, 2], [1]]


def test_a_changed_encoder_meets_no_stale_features(tmp_path):
    CachedTextEncoder(encoder(), tmp_path).encode(PROMPTS)
    changed = encoder()
    changed.model.shared.weight.data += 0.5
    found = CachedTextEncoder(changed, tmp_path).encode(PROMPTS)
    assert torch.equal(found.features, changed.encode(PROMPTS).features)
    assert len(list(tmp_path.iterdir())) == 2


def test_a_longer_prompts_features_are_not_those_of_its_beginning(tmp_path):
    cached = CachedTextEncoder(encoder(padding="longest"), tmp_path)
    found = cached.encode(["a red circle", "a red circle "])
    assert torch.allclose(found.features[0], found.features[1], atol=1e-6)
    assert cached.encode_ahead(["a red circle left"]) == 1


def test_a_damaged_file_is_named(tmp_path):
    cached = CachedTextEncoder(encoder(), tmp_path)
    cached.encode(PROMPTS)
    [shard] = cached.folder.glob("*.safetensors")
    shard.write_bytes(shard.read_bytes()[:100])
    with pytest.raises(DataError, match=f"{shard.name}.*Remove the file"):
        cached.encode(PROMPTS)


def test_a_folder_that_cannot_be_written_is_an_output_error(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(OutputError, match="cannot write"):
        CachedTextEncoder(encoder(), tmp_path / "file").encode(PROMPTS)
