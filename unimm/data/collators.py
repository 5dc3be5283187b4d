"""From rows of the one schema to batches for a model."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from transformers import PreTrainedModel

from ..errors import ConfigError, DataError
from .transforms import to_pixel_values

if TYPE_CHECKING:
    from datasets import Dataset

    from ..conditions.text_encoder import TextEncoder

Rows = Sequence[Mapping[str, Any]]


class PixelCollator:
    """Pictures alone, for tokenizers: every picture of every row.

    Args:
        height: of the pixels.
        width: of the pixels.
    """

    def __init__(self, height: int, width: int):
        self.height, self.width = height, width

    def __call__(self, rows: Rows) -> dict[str, torch.Tensor]:
        return {
            "pixel_values": to_pixel_values(
                [image for row in rows for image in row["images"]], self.height, self.width, crop="none"
            )
        }


class ClassImageCollator:
    """Pictures with a class label, for `UniMMForImageGeneration`.

    Args:
        height: of the pixels.
        width: of the pixels.
    """

    def __init__(self, height: int, width: int):
        self.height, self.width = height, width

    def __call__(self, rows: Rows) -> dict[str, torch.Tensor]:
        for row in rows:
            if row.get("label") is None or len(row["images"]) != 1:
                raise DataError(
                    f"row {row.get('id')!r}: class-conditional training needs one picture and a label, given "
                    f"{len(row['images'])} pictures and the label {row.get('label')!r}"
                )
        pixels = to_pixel_values([row["images"][0] for row in rows], self.height, self.width, crop="none")
        return {"pixel_values": pixels, "labels": torch.tensor([int(row["label"]) for row in rows])}


class CaptionImageCollator:
    """Pictures with their captions' text features, for `UniMMForImageGeneration` with a text condition.

    Args:
        height: of the pixels.
        width: of the pixels.
        text_encoder: the model's. With data workers it has to be on the CPU.
        text_cache: folder where features are kept, so that no caption is encoded twice; None keeps none.
    """

    def __init__(self, height: int, width: int, text_encoder: TextEncoder, text_cache: str | None = None):
        self.height, self.width = height, width
        self.text_encoder = text_encoder
        if text_cache is not None:
            from ..conditions.text_cache import CachedTextEncoder

            self.text_encoder = CachedTextEncoder(text_encoder, text_cache)

    def __call__(self, rows: Rows) -> dict[str, torch.Tensor]:
        captions = [_caption(row) for row in rows]
        text = self.text_encoder.encode(captions).to("cpu")
        pixels = to_pixel_values([row["images"][0] for row in rows], self.height, self.width, crop="none")
        return {"pixel_values": pixels, "text_features": text.features, "text_mask": text.mask}

    def captions(self, rows: Dataset) -> list[str]:
        """The captions of a whole data set, each once; its pictures are not decoded."""
        texts = (" ".join(_texts(messages)) for messages in rows["messages"])
        return list(dict.fromkeys(text for text in texts if text))


class ConversationCollator:
    """Conversations with pictures, for `UniMMForConditionalGeneration`; what the assistant says or draws is learned.

    Which prompts are dropped for guidance follows from the seed and the row's id alone, so that a resumed run and any
    number of workers see the same batches.

    Args:
        processor: the model's processor.
        height: pixels of drawn pictures.
        width: pixels of drawn pictures.
        prompt_dropout: share of the rows that answer with a picture whose prompt is dropped.
        seed: of the choice.
    """

    def __init__(self, processor: Any, height: int, width: int, prompt_dropout: float = 0.1, seed: int = 0):
        self.processor = processor
        self.height, self.width = height, width
        self.prompt_dropout = prompt_dropout
        self.seed = seed

    def __call__(self, rows: Rows) -> dict[str, torch.Tensor]:
        encoded: list[dict[str, list[int]]] = []
        read: list[Any] = []
        drawn: list[Any] = []
        for row in rows:
            messages, images = row["messages"], list(row["images"])
            draws = any(_is_drawn(message) for message in messages)
            drop = draws and self._dropped(row)
            encoded.append(self.processor.encode_conversation(messages, drop_prompt=drop))
            asked = iter(images)
            seen_answer = False
            for message in messages:
                for part in _parts(message):
                    if part["type"] != "image":
                        continue
                    image = next(asked, None)
                    if image is None:
                        raise DataError(f"row {row.get('id')!r}: its messages mention more pictures than it has")
                    if drop and not seen_answer and message["role"] != "assistant":
                        continue
                    is_visual = message["role"] == "assistant" or self.processor.num_image_features == 0
                    (drawn if is_visual else read).append(image)
                seen_answer = seen_answer or message["role"] == "assistant"
        length = max(len(item["input_ids"]) for item in encoded)
        pad = self.processor.tokenizer.pad_token_id
        batch = {
            "input_ids": torch.tensor([_padded(item["input_ids"], length, pad) for item in encoded]),
            "labels": torch.tensor([_padded(item["labels"], length, -100) for item in encoded]),
            "attention_mask": torch.tensor([_padded([1] * len(item["input_ids"]), length, 0) for item in encoded]),
        }
        if drawn:
            batch["visual_pixel_values"] = to_pixel_values(drawn, self.height, self.width, crop="none")
        if read:
            batch["pixel_values"] = self.processor.image_processor(images=read, return_tensors="pt")["pixel_values"]
        return batch

    def _dropped(self, row: Mapping[str, Any]) -> bool:
        digest = hashlib.blake2b(f"{self.seed}:{row['id']}".encode(), digest_size=8).digest()
        return int.from_bytes(digest, "big") / 2**64 < self.prompt_dropout


def collator_for(
    model: PreTrainedModel, processor: Any = None, **options: Any
) -> Callable[[Rows], dict[str, torch.Tensor]]:
    """The collator that a model's training takes.

    Args:
        model: a visual tokenizer, an image generator or a conditional model.
        processor: needed by a conditional model.
        options: arguments of the collator.

    Raises:
        ConfigError: a model of another kind, or a conditional model without a processor.
    """
    from ..models import UniMMForConditionalGeneration, UniMMForImageGeneration
    from ..tokenizers import VisualTokenizer

    if isinstance(model, UniMMForConditionalGeneration):
        if processor is None:
            raise ConfigError("training a conditional model needs its processor")
        return ConversationCollator(processor, *model.config.height_and_width, **options)
    if isinstance(model, UniMMForImageGeneration) and model.condition.takes_text:
        return CaptionImageCollator(*model.config.height_and_width, model.text_encoder, **options)
    if isinstance(model, UniMMForImageGeneration):
        return ClassImageCollator(*model.config.height_and_width, **options)
    if isinstance(model, VisualTokenizer):
        return PixelCollator(**options)
    raise ConfigError(f"there is no collator for a model of class {type(model).__name__}")


def _caption(row: Mapping[str, Any]) -> str:
    texts = _texts(row["messages"])
    if not texts or len(row["images"]) != 1 or not any(map(_is_drawn, row["messages"])):
        raise DataError(
            f"row {row.get('id')!r}: text-conditional training needs a caption and one picture that is drawn from it, "
            f"given {len(texts)} texts and {len(row['images'])} pictures"
        )
    return " ".join(texts)


def _texts(messages: Sequence[Mapping[str, Any]]) -> list[str]:
    """What the user says."""
    parts = [part for message in messages if message["role"] == "user" for part in _parts(message)]
    return [part["text"] for part in parts if part["type"] == "text"]


def _parts(message: Mapping[str, Any]) -> Sequence[Mapping[str, Any]]:
    return [] if isinstance(message["content"], str) else message["content"]


def _is_drawn(message: Mapping[str, Any]) -> bool:
    return message["role"] == "assistant" and any(part["type"] == "image" for part in _parts(message))


def _padded(values: list[int], length: int, value: int) -> list[int]:
    return values + [value] * (length - len(values))
