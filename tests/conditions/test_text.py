"""The text condition: its two kinds of null condition, and the encoders that fit it."""

from __future__ import annotations

import pytest
import torch
from factories import T5, WORDS, build, prompt_config
from transformers import AutoModel

from unimm.conditions import TextConditionConfig, TextEncoderConfig
from unimm.errors import ConfigError


def features(model, prompts):
    text = model.text_encoder.encode(prompts)
    return {"text_features": text.features, "text_mask": text.mask}


def test_a_tables_null_condition_has_the_prompts_mask():
    condition = build("text").condition
    given = torch.randn(2, 6, 12)
    mask = torch.tensor([[0, 0, 1, 1, 1, 1], [1, 1, 1, 1, 1, 1]])
    null = condition.null(text_features=given, text_mask=mask)
    assert torch.equal(null.prefix_mask, mask.bool())
    dropped = condition(text_features=given, text_mask=mask, dropped=torch.tensor([True, False]))
    assert torch.equal(dropped.prefix[0], null.prefix[0])
    assert torch.equal(dropped.prefix[1], condition(text_features=given).prefix[1])
    assert torch.equal(dropped.prefix_mask, mask.bool())


def test_the_empty_prompts_null_condition_has_the_empty_prompts_mask():
    model = build("text_empty_prompt")
    model.condition.learn_null(model.text_encoder)
    given = features(model, ["a red circle", "circle"])
    null = model.condition.null(**given)
    expected = model.condition(**features(model, ["", ""]))
    assert torch.allclose(null.prefix, expected.prefix)
    assert torch.equal(null.prefix_mask, expected.prefix_mask)
    dropped = model.condition(**given, dropped=torch.tensor([True, False]))
    assert torch.allclose(dropped.prefix[0], expected.prefix[0])
    assert torch.equal(dropped.prefix_mask, torch.stack([expected.prefix_mask[0], given["text_mask"][1]]))


def test_the_empty_prompts_features_are_saved_with_the_model(tmp_path):
    model = build("text_empty_prompt")
    model.condition.learn_null(model.text_encoder)
    model.save_pretrained(tmp_path)
    loaded = AutoModel.from_pretrained(tmp_path)
    assert not loaded.condition.needs_empty_prompt
    assert torch.equal(loaded.condition.null_features, model.condition.null_features)


def test_an_unknown_empty_prompt_is_no_null_condition():
    model = build("text_empty_prompt")
    assert model.condition.needs_empty_prompt
    with pytest.raises(ConfigError, match=r"learn_null\(model\.text_encoder\), or give a negative prompt"):
        model.condition.null(**features(model, ["circle"]))


def test_half_precision_features_fit_a_model_of_full_precision():
    condition = build("text").condition
    given = torch.randn(1, 6, 12).bfloat16()
    assert torch.equal(condition(text_features=given).prefix, condition(text_features=given.float()).prefix)


def test_an_encoders_form_follows_from_the_condition():
    encoder = prompt_config().condition_config.text_encoder
    assert isinstance(encoder, TextEncoderConfig)
    assert (encoder.max_length, encoder.padding, encoder.padding_side) == (6, "max_length", "left")


@pytest.mark.parametrize(
    ("encoder", "message"),
    [
        ({"max_length": 9}, "max_length must be 6, given 9"),
        ({"padding_side": "right"}, "padding_side must be 'left'"),
        ({"padding": "longest"}, "padding must be 'max_length'"),
        ({"pooled": "mean"}, "pooled must be None"),
        ({"encoder_config": {**T5, "d_model": 8}, "words": WORDS}, "12 channels, the text encoder gives 8"),
        ({"model_type": "t5"}, "'unimm_text_encoder', given a 't5'"),
    ],
)
def test_an_encoder_of_another_form_is_refused(encoder, message):
    with pytest.raises(ConfigError, match=message):
        TextConditionConfig(feature_size=12, length=6, text_encoder=encoder)
