"""Text encoders of transformers behind one class: layouts, masks, layers, pooled vectors, and what is refused."""

from __future__ import annotations

import copy
import logging

import pytest
import torch
from factories import CLIP, T5, WORDS
from transformers import (
    CLIPConfig,
    CLIPModel,
    CLIPTextModel,
    T5Config,
    T5EncoderModel,
    T5ForConditionalGeneration,
)

from unimm.conditions import TextEncoder, TextEncoderConfig
from unimm.errors import ConfigError
from unimm.models import word_tokenizer

PROMPTS = ["a red circle", "a blue square left of a circle", "circle"]
ENCODERS = {"t5": T5, "clip": CLIP}


def config(encoder="t5", **changes):
    fields = {"encoder_config": ENCODERS[encoder], "words": WORDS, "max_length": 8}
    return TextEncoderConfig(**{**fields, **changes})


def encoder(kind="t5", **changes):
    return TextEncoder(config(kind, **changes))


@pytest.mark.parametrize("kind", ENCODERS)
@pytest.mark.parametrize("padding_side", ["left", "right"])
@pytest.mark.parametrize("padding", ["max_length", "longest"])
def test_a_prompt_in_a_batch_has_the_features_that_it_has_alone(kind, padding_side, padding):
    reads = encoder(kind, padding_side=padding_side, padding=padding, pooled="mean")
    together = reads.encode(PROMPTS)
    for row, prompt in enumerate(PROMPTS):
        alone = reads.encode(prompt)
        assert torch.allclose(together.features[row][together.mask[row]], alone.features[0][alone.mask[0]], atol=1e-6)
        assert torch.allclose(together.pooled[row], alone.pooled[0], atol=1e-6)
        assert together.features[row][~together.mask[row]].abs().sum() == 0
    assert together.features.shape[1] == (8 if padding == "max_length" else together.mask.sum(1).max())


@pytest.mark.parametrize("kind", ENCODERS)
def test_both_padding_sides_hold_the_same_tokens(kind):
    left, right = (encoder(kind, padding_side=side).encode(PROMPTS) for side in ("left", "right"))
    assert torch.equal(left.mask.flip(1), right.mask)
    assert left.mask[0].tolist() == [False] * 4 + [True] * 4
    assert torch.equal(left.features[left.mask], right.features[right.mask])


def test_features_are_what_transformers_gives_for_a_prompt():
    reads = encoder()
    ids = reads.tokenizer("a red circle", return_tensors="pt").input_ids
    expected = reads.model(input_ids=ids, output_hidden_states=True)
    found = reads.encode("a red circle")
    assert isinstance(reads.model, T5EncoderModel)
    assert torch.equal(found.features[0, : ids.shape[1]], expected.last_hidden_state[0])
    middle = encoder(layer=1).encode("a red circle")
    assert torch.equal(middle.features[0, : ids.shape[1]], expected.hidden_states[1][0])


def test_clips_pooled_output_is_that_of_the_end_token():
    reads = encoder("clip", pooled="encoder")
    found = reads.encode(PROMPTS)
    last = found.mask.sum(1) - 1
    assert torch.allclose(found.pooled, found.features[torch.arange(3), last], atol=1e-6)


def test_padded_positions_can_keep_what_the_encoder_gives():
    found = encoder("clip", zero_padding=False).encode(PROMPTS)
    assert found.features[~found.mask].abs().min() > 0
    alone = encoder("clip", zero_padding=False).encode(PROMPTS[2])
    assert torch.allclose(alone.features[0], found.features[2], atol=1e-6)


def test_the_empty_prompt_is_its_end_token():
    found = encoder().encode(["", "a"])
    assert found.mask.sum(1).tolist() == [1, 2]


def test_equal_prompts_are_encoded_once():
    reads = encoder()
    sizes = []
    handle = reads.model.register_forward_hook(
        lambda module, args, kwargs, output: sizes.append(len(kwargs["input_ids"])), with_kwargs=True
    )
    found = reads.encode(["a circle", "a square", "a circle"])
    handle.remove()
    assert sizes == [2]
    assert torch.equal(found.features[0], found.features[2])


def test_random_weights_follow_from_the_seed_and_disturb_no_other_draw():
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    first, same, other = encoder(seed=1), encoder(seed=1), encoder(seed=2)
    assert torch.equal(torch.rand(3), expected)
    assert first.fingerprint == same.fingerprint != other.fingerprint


def test_the_fingerprint_speaks_of_weights_vocabulary_and_choices():
    base = encoder().fingerprint
    changed = encoder()
    changed.model.encoder.final_layer_norm.weight.data[0] += 1e-6
    prints = {base, changed.fingerprint}
    prints |= {encoder(**one).fingerprint for one in ({"layer": 1}, {"max_length": 7}, {"words": [*WORDS, "of_"]})}
    prints |= {encoder(**one).fingerprint for one in ({"pooled": "mean"}, {"precision": "bfloat16"})}
    assert len(prints) == 7
    assert encoder(padding_side="left").fingerprint == base
    used = encoder()
    used.encode("a circle")
    assert used.fingerprint == base


def test_half_precision_gives_half_precision_features():
    found = encoder(precision="bfloat16").encode("a circle")
    assert found.features.dtype == torch.bfloat16
    assert torch.allclose(found.features.float(), encoder().encode("a circle").features, atol=0.1)


def test_an_encoder_is_frozen_and_shared_by_copies_of_its_owner():
    reads = encoder()
    assert not reads.model.training
    assert not any(parameter.requires_grad for parameter in reads.model.parameters())
    assert copy.deepcopy({"owner": reads})["owner"] is reads
    assert not reads.encode("a circle").features.requires_grad


@pytest.mark.parametrize("kind", ENCODERS)
def test_a_whole_model_in_a_folder_gives_its_text_encoder(kind, tmp_path):
    own = encoder(kind)
    if kind == "t5":
        whole = T5ForConditionalGeneration(T5Config(**T5, vocab_size=len(own.tokenizer)))
        tower = T5EncoderModel
    else:
        vision = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
        text = own.model.config.to_dict()
        whole = CLIPModel(CLIPConfig(text_config=text, vision_config={**vision, "image_size": 8, "patch_size": 4}))
        tower = CLIPTextModel
    whole.save_pretrained(tmp_path)
    own.tokenizer.save_pretrained(tmp_path)
    loaded = TextEncoder(TextEncoderConfig(path=str(tmp_path), max_length=8))
    assert isinstance(loaded.model, tower)
    part = whole.encoder if kind == "t5" else whole.text_model
    ids = own.tokenizer("a red circle", return_tensors="pt").input_ids
    expected = part.eval()(input_ids=ids).last_hidden_state
    assert torch.allclose(loaded.encode("a red circle").features[0, : ids.shape[1]], expected[0], atol=1e-6)


def test_what_is_cut_off_is_told_and_has_no_effect(caplog):
    reads = encoder(max_length=4)
    with caplog.at_level(logging.WARNING, "unimm"):
        found = reads.encode(["a red circle left of a square", "a circle"])
    assert "1 of the prompts longer than 4 tokens" in caplog.text
    assert "'left of a square'" in caplog.text
    assert torch.equal(found.features[0], reads.encode("a red circle").features[0])
    caplog.clear()
    reads.encode("a red circle")
    assert caplog.text == ""


def test_warnings_of_cut_prompts_come_to_an_end(caplog):
    reads = encoder(max_length=3)
    with caplog.at_level(logging.WARNING, "unimm"):
        for number in range(20):
            reads.encode("a red circle " + "of " * number)
    assert len(caplog.records) == 10
    assert "no further warnings" in caplog.text


@pytest.mark.parametrize(
    ("prompts", "message"),
    [
        ([], "empty list"),
        (3, "a text or a list of texts, given int"),
        (["a circle", None], "entry 1 is a NoneType"),
        (torch.zeros(2), "given Tensor"),
    ],
)
def test_prompts_that_are_no_texts_are_refused(prompts, message):
    with pytest.raises(ConfigError, match=message):
        encoder().encode(prompts)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"path": "google/flan-t5-xl"}, "either a path or an encoder_config"),
        ({"words": None}, "belong together, given only encoder_config"),
        ({"encoder_config": None}, "belong together, given only words"),
        ({"revision": "main"}, "no effect without a path"),
        ({"max_length": 0}, "at least 1"),
        ({"zero_padding": False, "padding": "longest"}, "number is fixed"),
        ({"pooled": "max"}, "pooled"),
        ({"lenght": 3}, "did you mean"),
    ],
)
def test_fields_that_do_not_go_together_are_refused(fields, message):
    with pytest.raises(ConfigError, match=message):
        config(**fields)


@pytest.mark.parametrize(
    ("kind", "fields", "message"),
    [
        ("clip", {"max_length": 9}, "has 8 positions"),
        ("t5", {"max_length": 1}, "no word would be left"),
        ("t5", {"layer": 3}, "give a layer from -3 to 2"),
    ],
)
def test_what_the_encoder_cannot_give_is_refused(kind, fields, message):
    with pytest.raises(ConfigError, match=message):
        encoder(kind, **fields)


def test_an_encoder_without_a_pooled_output_says_what_to_choose():
    with pytest.raises(ConfigError, match=r"'t5' has no pooled output of its own: set pooled to 'mean'"):
        encoder(pooled="encoder").encode("a circle")


def test_an_encoder_that_is_not_there_is_named():
    with pytest.raises(ConfigError, match=r"'out/nowhere' cannot be loaded"):
        TextEncoder(TextEncoderConfig(path="out/nowhere"))
    with pytest.raises(ConfigError, match="names none"):
        TextEncoder(TextEncoderConfig())
    with pytest.raises(ConfigError, match="only one of them"):
        TextEncoder(TextEncoderConfig(), model=encoder().model)


def test_a_tokenizer_that_gives_no_tokens_for_a_prompt_is_refused():
    own = encoder()
    without_end = word_tokenizer(WORDS)
    with pytest.raises(ConfigError, match=r"'' has no tokens"):
        TextEncoder(TextEncoderConfig(max_length=8), own.model, without_end).encode(["a", ""])
