"""Batches of captions for text-conditional image generators."""

from __future__ import annotations

import pytest
import torch
from datasets import Dataset
from factories import build
from PIL import Image

from unimm.conditions import CachedTextEncoder
from unimm.data.collators import CaptionImageCollator, ClassImageCollator, collator_for
from unimm.data.rows import caption_row, class_row, edit_row, image_row
from unimm.errors import DataError

PICTURE = Image.new("RGB", (16, 16), "red")
ROWS = [caption_row(PICTURE, text) for text in ("a red circle", "circle", "a red circle")]


def test_the_condition_chooses_the_collator():
    assert isinstance(collator_for(build("raster")), ClassImageCollator)
    assert isinstance(collator_for(build("text_empty_prompt")), CaptionImageCollator)


@pytest.mark.parametrize("is_cached", [False, True])
def test_a_batch_holds_pictures_and_the_features_of_their_captions(is_cached, tmp_path):
    model = build("text_empty_prompt")
    collator = collator_for(model, text_cache=str(tmp_path) if is_cached else None)
    batch = collator(ROWS)
    expected = model.text_encoder.encode(["a red circle", "circle", "a red circle"])
    assert torch.equal(batch["text_features"], expected.features)
    assert torch.equal(batch["text_mask"], expected.mask)
    assert batch["pixel_values"].shape == (3, 3, 16, 16)
    model.condition.learn_null(model.text_encoder)
    assert model.train()(**batch).loss.isfinite()
    assert any(tmp_path.rglob("*.safetensors")) == is_cached


def test_captions_that_were_encoded_ahead_are_only_read(tmp_path):
    model = build("text_empty_prompt")
    collator = collator_for(model, text_cache=str(tmp_path))
    assert isinstance(collator.text_encoder, CachedTextEncoder)
    captions = collator.captions(Dataset.from_list([{"messages": row["messages"]} for row in ROWS]))
    assert captions == ["a red circle", "circle"]
    assert collator.text_encoder.encode_ahead(captions) == 2
    calls = []
    model.text_encoder.model.register_forward_hook(lambda *given: calls.append(given))
    collator(ROWS)
    assert calls == []


@pytest.mark.parametrize(
    "row",
    [
        image_row(PICTURE, row_id="odd"),
        class_row(PICTURE, 3, row_id="odd"),
        edit_row([PICTURE], "a", PICTURE, row_id="odd"),
    ],
)
def test_a_row_without_one_caption_and_one_drawn_picture_is_named(row):
    with pytest.raises(DataError, match="row 'odd': text-conditional training needs a caption and one picture"):
        collator_for(build("text_empty_prompt"))([*ROWS, row])
