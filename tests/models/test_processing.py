"""What the processor makes of good and bad prompts."""

import numpy as np
import pytest
import torch
from factories import build_with_processor
from PIL import Image

from unimm.errors import ConfigError, DataError, ImageError, LayoutError

RED = Image.new("RGB", (16, 16), (200, 30, 30))


@pytest.fixture(scope="module")
def processor():
    return build_with_processor()[1]


def test_negative_texts_become_negative_ids_padded_on_the_left(processor):
    batch = processor(text=["a red circle", "a"], negative_text=["blue", "blue and green"], generation_mode="image")
    assert batch["negative_input_ids"].shape == (2, 4)
    assert batch["negative_attention_mask"].tolist() == [[0, 0, 1, 1], [1, 1, 1, 1]]
    start = processor.tokenizer.convert_tokens_to_ids("<|image_start|>")
    assert batch["negative_input_ids"][:, -1].tolist() == [start, start]
    one = processor(text=["a red circle", "a"], negative_text="blue", generation_mode="image")
    assert one["negative_input_ids"].shape == (1, 2)


def test_a_chat_template_tokenizes_with_its_pictures(processor, tmp_path):
    RED.save(tmp_path / "red.png")
    outputs = []
    for picture in ({"image": RED}, {"path": str(tmp_path / "red.png")}, {"image": np.asarray(RED)}):
        chat = [{"role": "user", "content": [{"type": "image", **picture}, {"type": "text", "text": "what is it"}]}]
        outputs.append(processor.apply_chat_template(chat, tokenize=True, return_dict=True, add_generation_prompt=True))
    chat = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "what is it"}]}]
    text = processor.apply_chat_template(chat, add_generation_prompt=True)
    expected = processor(text=text, images=RED)
    for output in outputs:
        assert output.keys() == expected.keys()
        assert all(torch.equal(output[key], expected[key]) for key in expected)
    both = processor.apply_chat_template([chat, chat[:1]], add_generation_prompt=True)
    assert both == [text, text]


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        ({}, DataError, r"needs text as a string or a list"),
        ({"text": []}, DataError, r"at least one"),
        ({"text": ""}, DataError, r"text 0 is empty"),
        ({"text": ["a", "  "]}, DataError, r"text 1 is empty"),
        ({"text": 3}, DataError, r"given 3"),
        ({"text": ["a", None]}, DataError, r"text 1 must be a string, given NoneType"),
        ({"text": "a", "images": RED}, LayoutError, r"have 0 .* but 1 pictures"),
        ({"text": "a <|image|>", "images": []}, LayoutError, r"have 1 .* but 0 pictures"),
        ({"text": "a <|image|>", "images": 3}, ImageError, r"given as int cannot be read"),
        ({"text": "a <|image|>", "images": "missing.png"}, ImageError, r"'missing.png' cannot be read: No such file"),
        ({"text": "a <|image|>", "images": Image.new("RGB", (0, 4))}, ImageError, r"0 x 4 pixels"),
        ({"text": "a", "generation_mode": "audio"}, ConfigError, r"generation_mode must be .*given 'audio'"),
        ({"text": "a", "videos": ["x"]}, ConfigError, r"reads text and images, given videos"),
        ({"text": "a", "audio": ["x"]}, ConfigError, r"given audio"),
        ({"text": "a", "max_lenght": 3}, ConfigError, r"did you mean 'max_length'"),
        ({"text": "a", "negative_text": "b"}, ConfigError, r"with generation_mode='image'"),
        ({"text": "a", "negative_text": "", "generation_mode": "image"}, DataError, r"negative_text 0 is empty"),
        ({"text": "a", "negative_text": ["b", "c"], "generation_mode": "image"}, DataError, r"2 negative texts for 1"),
        ({"text": "a", "negative_text": "<|image|>", "generation_mode": "image"}, LayoutError, r"holds no pictures"),
    ],
)
def test_bad_input_is_refused(processor, call, error, message):
    with pytest.raises(error, match=message):
        processor(**call)


@pytest.mark.parametrize(
    ("chat", "error", "message"),
    [
        ([], DataError, r"a list of messages"),
        ("draw", DataError, r"a list of messages"),
        ([{"content": "draw"}], DataError, r"needs a role and a content"),
        (["draw"], DataError, r"needs a role and a content"),
        ([{"role": "user", "content": [{"type": "video", "video": "x"}]}], ConfigError, r"found 'video'"),
        ([{"role": "user", "content": ["draw"]}], ConfigError, r"found 'str'"),
        ([{"role": "user", "content": [{"type": "text"}]}], DataError, r"needs a string as its text"),
    ],
)
def test_conversations_that_cannot_be_read_are_refused(processor, chat, error, message):
    with pytest.raises(error, match=message):
        processor.apply_chat_template(chat)


def test_the_template_alone_refuses_other_kinds_too(processor):
    chat = [{"role": "user", "content": [{"type": "audio", "audio": "x"}]}]
    with pytest.raises(Exception, match=r"text and images, not audio"):
        processor.tokenizer.apply_chat_template(chat, tokenize=False)
