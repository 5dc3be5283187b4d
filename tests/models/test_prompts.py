"""Prompts, negative prompts and their features on `generate` of image generators."""

from __future__ import annotations

import logging

import pytest
import torch
from factories import CLIP, T5, WORDS, build, prompt_config
from safetensors.torch import load_file
from transformers import AutoModel

from unimm.conditions import TextEncoder, TextEncoderConfig
from unimm.errors import ConfigError

PROMPTS = ["a red circle left of a", "circle", "a blue square"]


def text_model(null="table", encoder=None):
    torch.manual_seed(0)
    return AutoModel.from_config(prompt_config(null, encoder)).eval()


def generators(number):
    return [torch.Generator().manual_seed(seed) for seed in range(number)]


def draw(model, number=3, **given):
    return model.generate(guidance_scale=3.0, generator=generators(number), output_logits=True, **given)


@pytest.mark.parametrize("encoder", [T5, CLIP], ids=["t5", "clip"])
@pytest.mark.parametrize("null", ["table", "empty_prompt"])
@pytest.mark.parametrize("negative", [None, "a square", ["", "a red red red square", "a"]])
def test_prompts_of_unequal_length_draw_what_each_draws_alone(encoder, null, negative):
    model = text_model(null, encoder)
    together = draw(model, prompt=PROMPTS, negative_prompt=negative)
    for row, prompt in enumerate(PROMPTS):
        own = negative[row] if isinstance(negative, list) else negative
        alone = model.generate(
            prompt=prompt,
            negative_prompt=own,
            guidance_scale=3.0,
            generator=torch.Generator().manual_seed(row),
            output_logits=True,
        )
        assert torch.equal(alone.sequences[0], together.sequences[row])
        assert torch.allclose(alone.logits[0], together.logits[row], atol=1e-4)


def test_a_prompt_is_short_for_its_features():
    model = text_model()
    expected = draw(model, prompt=PROMPTS, negative_prompt="a square")
    text, negative = model.text_encoder.encode(PROMPTS), model.text_encoder.encode("a square")
    given = {"prompt_embeds": text, "negative_prompt_embeds": negative}
    assert torch.equal(draw(model, **given).logits, expected.logits)
    given = {"prompt_embeds": text.features, "prompt_attention_mask": text.mask}
    given |= {"negative_prompt_embeds": negative.features, "negative_prompt_attention_mask": negative.mask}
    assert torch.equal(draw(model, **given).logits, expected.logits)
    given = {"text_features": text.features, "text_mask": text.mask, "negative_prompt": "a square"}
    assert torch.equal(draw(model, **given).logits, expected.logits)


def test_a_negative_prompt_replaces_the_null_condition():
    model = text_model("empty_prompt")
    without = draw(model, prompt=PROMPTS)
    assert torch.allclose(draw(model, prompt=PROMPTS, negative_prompt="").logits, without.logits, atol=1e-5)
    assert not torch.allclose(draw(model, prompt=PROMPTS, negative_prompt="a").logits, without.logits, atol=1e-3)
    same = draw(model, prompt=PROMPTS, negative_prompt=PROMPTS)
    plain = model.generate(prompt=PROMPTS, generator=generators(3), output_logits=True)
    assert torch.allclose(same.logits, plain.logits, atol=1e-4)


def test_the_encoder_is_loaded_at_the_first_prompt_and_is_no_part_of_the_model(tmp_path):
    model = text_model()
    names = set(model.state_dict())
    model.save_pretrained(tmp_path / "before")
    assert model._text_encoder is None
    model.generate(prompt="circle")
    assert model._text_encoder is model.text_encoder
    assert set(model.state_dict()) == names
    model.save_pretrained(tmp_path / "after")
    assert set(load_file(tmp_path / "after" / "model.safetensors")) == set(
        load_file(tmp_path / "before" / "model.safetensors")
    )
    loaded = AutoModel.from_pretrained(tmp_path / "after").eval()
    assert loaded._text_encoder is None
    assert torch.equal(draw(loaded, prompt=PROMPTS).sequences, draw(model, prompt=PROMPTS).sequences)


def test_a_models_own_encoder_can_be_replaced(tmp_path):
    model = text_model()
    model.save_pretrained(tmp_path)
    fields = {"encoder_config": CLIP, "words": WORDS, "max_length": 6, "padding_side": "left"}
    other = TextEncoder(TextEncoderConfig(**fields))
    loaded = AutoModel.from_pretrained(tmp_path, text_encoder=other).eval()
    assert loaded.text_encoder is other
    expected = draw(loaded, prompt=PROMPTS).logits
    assert not torch.allclose(draw(model, prompt=PROMPTS).logits, expected)
    model.text_encoder = other
    assert torch.allclose(draw(model, prompt=PROMPTS).logits, expected, atol=1e-5)


def test_an_unguided_draw_needs_no_empty_prompt():
    model = text_model("empty_prompt")
    text = model.text_encoder.encode(PROMPTS)
    model.generate(prompt_embeds=text)
    assert model.condition.needs_empty_prompt
    model.generate(prompt_embeds=text, guidance_scale=2.0)
    assert not model.condition.needs_empty_prompt


def test_a_negative_prompt_without_guidance_is_warned_about(caplog):
    model = text_model()
    with caplog.at_level(logging.WARNING, "unimm"):
        model.generate(prompt="circle", negative_prompt="square")
    assert "no effect without guidance" in caplog.text


EMBEDS = torch.zeros(2, 6, 12)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, r"takes text_features and text_mask \(or a prompt\), given nothing"),
        ({"prompt": []}, "prompt is an empty list"),
        ({"prompt": 5}, "prompt must be a text or a list of texts, given int"),
        ({"prompt": ["a", 5]}, "entry 1 is a int"),
        ({"prompt": "a", "negative_prompt": []}, "negative_prompt is an empty list"),
        ({"prompt": "a", "prompt_embeds": EMBEDS}, "either prompt or prompt_embeds"),
        ({"prompt": "a", "text_features": EMBEDS}, "either a prompt or text_features"),
        ({"prompt_embeds": EMBEDS, "text_features": EMBEDS}, "either a prompt or text_features"),
        (
            {"prompt": "a", "negative_prompt": "a", "negative_prompt_embeds": EMBEDS},
            "either negative_prompt or negative_prompt_embeds",
        ),
        ({"prompt": ["a"] * 3, "negative_prompt": ["a"] * 2}, "2 negative prompts .* for a batch of 3"),
        ({"prompt": "a", "negative_prompt_embeds": EMBEDS}, "2 negative prompts .* for a batch of 1"),
        ({"negative_prompt": "a"}, "given nothing"),
        ({"prompt_embeds": torch.zeros(2, 6, 13)}, r"must be \(batch, 6, 12\), given \(2, 6, 13\)"),
        ({"prompt": "a", "negative_prompt_embeds": torch.zeros(1, 5, 12)}, r"given \(1, 5, 12\)"),
        ({"prompt_embeds": EMBEDS, "prompt_attention_mask": torch.ones(2, 5)}, r"mask must be \(2, 6\)"),
        ({"prompt": "a", "prompt_attention_mask": torch.ones(1, 6)}, "prompt_attention_mask belongs to"),
        ({"labels": [1]}, "given labels"),
    ],
)
def test_inputs_that_do_not_go_together_are_refused(given, message):
    with pytest.raises(ConfigError, match=message):
        text_model().generate(**given, guidance_scale=2.0)


@pytest.mark.parametrize(
    "given",
    [
        {"prompt": "a"},
        {"prompt_embeds": EMBEDS},
        {"labels": [1], "negative_prompt": "a"},
        {"negative_prompt_embeds": EMBEDS},
    ],
)
def test_a_class_conditional_model_takes_no_prompts(given):
    model = build("raster")
    with pytest.raises(ConfigError, match=r"'unimm_class_condition', which takes no prompts: give labels"):
        model.generate(**given)
    with pytest.raises(ConfigError, match="takes no prompts"):
        _ = model.text_encoder
    with pytest.raises(ConfigError, match="takes no prompts"):
        model.text_encoder = None


def test_a_text_conditional_model_without_an_encoder_says_what_to_give():
    model = build("text")
    with pytest.raises(ConfigError, match=r"text features \(batch, 6, 12\).*give prompt_embeds, or a text encoder"):
        model.generate(prompt="a")
    model.generate(prompt_embeds=EMBEDS)


def test_an_encoder_that_does_not_fit_is_refused():
    model = build("text")
    wide = TextEncoderConfig(encoder_config={**T5, "d_model": 8}, words=WORDS, max_length=6, padding_side="left")
    with pytest.raises(ConfigError, match="12 channels, the text encoder gives 8"):
        model.text_encoder = TextEncoder(wide)
    long = TextEncoderConfig(encoder_config=T5, words=WORDS, max_length=7, padding_side="left")
    with pytest.raises(ConfigError, match="max_length must be 6"):
        model.text_encoder = TextEncoder(long)
    with pytest.raises(ConfigError, match=r"must be a unimm\.conditions\.TextEncoder, given T5EncoderModel"):
        model.text_encoder = TextEncoder(TextEncoderConfig(encoder_config=T5, words=WORDS)).model
