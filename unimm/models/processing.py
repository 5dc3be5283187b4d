"""Text and pictures in, batches for `UniMMForConditionalGeneration` out; and back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from PIL import Image
from tokenizers import Tokenizer, pre_tokenizers
from tokenizers.models import WordLevel
from transformers import BatchFeature, PreTrainedTokenizerBase, PreTrainedTokenizerFast, ProcessorMixin
from transformers.image_processing_backends import PilBackend
from transformers.image_utils import PILImageResampling

from ..data.transforms import to_pil
from ..errors import ConfigError, DataError, LayoutError
from ..hub.mixins import HubProcessorMixin

IMAGE_TOKEN = "<|image|>"
VISUAL_TOKEN = "<|visual|>"
IMAGE_START_TOKEN = "<|image_start|>"
IMAGE_END_TOKEN = "<|image_end|>"

CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}<|{{ message['role'] }}|> "
    "{% if message['content'] is string %}{{ message['content'] }} {% else %}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<|image|> {% else %}{{ part['text'] }} {% endif %}{% endfor %}{% endif %}"
    "{% if message['role'] == 'assistant' %}{{ eos_token }} {% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|> {% endif %}"
)


def word_tokenizer(words: Sequence[str]) -> PreTrainedTokenizerFast:
    """A tokenizer with one token per word and the special tokens of the conditional model.

    Args:
        words: the vocabulary; other words become `<|unknown|>`.
    """
    special = ["<|pad|>", "<|unknown|>", "<|bos|>", "<|eos|>", "<|system|>", "<|user|>", "<|assistant|>"]
    special += [IMAGE_TOKEN, VISUAL_TOKEN, IMAGE_START_TOKEN, IMAGE_END_TOKEN]
    vocabulary = {word: index for index, word in enumerate([*special, *sorted(set(words) - set(special))])}
    tokenizer = Tokenizer(WordLevel(vocabulary, unk_token="<|unknown|>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<|pad|>",
        unk_token="<|unknown|>",
        bos_token="<|bos|>",
        eos_token="<|eos|>",
        additional_special_tokens=special[4:],
        padding_side="left",
        chat_template=CHAT_TEMPLATE,
    )


class UniMMImageProcessor(HubProcessorMixin, PilBackend):
    """Resizes to the model's size (bicubic) and scales pixels to [-1, 1]."""

    auto_class = "AutoImageProcessor"

    resample = PILImageResampling.BICUBIC
    image_mean = [0.5, 0.5, 0.5]
    image_std = [0.5, 0.5, 0.5]
    size = {"height": 256, "width": 256}
    do_resize = True
    do_rescale = True
    do_normalize = True
    do_convert_rgb = True

    def postprocess(self, images: torch.Tensor) -> list[Image.Image]:
        """PIL pictures of `(pictures, 3, height, width)` pixels in [-1, 1]."""
        return to_pil(images)


class UniMMProcessor(HubProcessorMixin, ProcessorMixin):
    """Writes pictures into the text as placeholders, and pixels beside it.

    Args:
        image_processor: pixels for the visual tokenizer, or for the vision encoder in a model that has one.
        tokenizer: a text tokenizer that knows the four image tokens.
        num_visual_tokens: visual tokens of a picture.
        num_image_features: vision-encoder features of a picture; 0 for a model without one, which reads visual tokens.
    """

    auto_class = "AutoProcessor"

    def __init__(
        self,
        image_processor: Any,
        tokenizer: PreTrainedTokenizerBase,
        chat_template: str | None = None,
        num_visual_tokens: int = 256,
        num_image_features: int = 0,
        **kwargs: Any,
    ):
        self.num_visual_tokens = num_visual_tokens
        self.num_image_features = num_image_features
        for token in (IMAGE_TOKEN, VISUAL_TOKEN, IMAGE_START_TOKEN, IMAGE_END_TOKEN):
            if tokenizer.convert_tokens_to_ids(token) in (None, tokenizer.unk_token_id):
                raise ConfigError(
                    f"the tokenizer does not know '{token}': add it with tokenizer.add_special_tokens and resize the "
                    "language model's embeddings"
                )
        super().__init__(image_processor, tokenizer, chat_template=chat_template or CHAT_TEMPLATE)

    def image_placeholders(self, is_target: bool) -> str:
        """What stands in the text for one picture: visual tokens where it is (or may be) drawn, features where it is read."""
        if is_target or self.num_image_features == 0:
            return IMAGE_START_TOKEN + VISUAL_TOKEN * self.num_visual_tokens + IMAGE_END_TOKEN
        return IMAGE_START_TOKEN + IMAGE_TOKEN * self.num_image_features + IMAGE_END_TOKEN

    def __call__(
        self,
        text: str | Sequence[str] | None = None,
        images: Any = None,
        generation_mode: str = "text",
        return_tensors: str = "pt",
        padding: bool = True,
        **kwargs: Any,
    ) -> BatchFeature:
        """A batch of prompts.

        Args:
            text: prompts with one `<|image|>` per picture.
            images: pictures of all prompts, in reading order.
            generation_mode: `image` opens a picture at the end of every prompt.

        Returns:
            `input_ids`, `attention_mask` (padded on the left) and, with pictures, `pixel_values`.

        Raises:
            LayoutError: another number of pictures than of `<|image|>` in the text.
            DataError: no text.
        """
        if text is None or (not isinstance(text, str) and not len(text)):
            raise DataError("the processor needs at least one text")
        texts = [text] if isinstance(text, str) else list(text)
        pictures = _flatten(images)
        asked = sum(one.count(IMAGE_TOKEN) for one in texts)
        if asked != len(pictures):
            raise LayoutError(f"the texts have {asked} '{IMAGE_TOKEN}' but {len(pictures)} pictures were given")
        placeholders = self.image_placeholders(is_target=False)
        texts = [one.replace(IMAGE_TOKEN, placeholders) for one in texts]
        if generation_mode == "image":
            texts = [one + IMAGE_START_TOKEN for one in texts]
        batch = dict(
            self.tokenizer(
                texts,
                return_tensors=return_tensors,
                padding=padding,
                padding_side="left",
                add_special_tokens=False,
                **kwargs,
            )
        )
        batch.pop("token_type_ids", None)
        if pictures:
            batch["pixel_values"] = self.image_processor(images=pictures, return_tensors=return_tensors)["pixel_values"]
        return BatchFeature(batch)

    def encode_conversation(
        self, messages: Sequence[Mapping[str, Any]], *, drop_prompt: bool = False
    ) -> dict[str, list[int]]:
        """Ids and labels of one training conversation; what the assistant says or draws is the target.

        Args:
            messages: `[{"role", "content": [{"type": "text", "text"} | {"type": "image"}]}]`.
            drop_prompt: put the null prompt in place of everything before the first assistant message, so that the model
                learns the unconditional distribution for guidance.

        Returns:
            `input_ids` and `labels`; labels are -100 outside of the targets.
        """
        first = next((index for index, message in enumerate(messages) if message["role"] == "assistant"), None)
        if first is None:
            raise DataError("a training conversation needs at least one assistant message")
        input_ids: list[int] = []
        labels: list[int] = []
        rendered = ""
        for index, message in enumerate(messages):
            text = self.apply_chat_template(list(messages[: index + 1]), tokenize=False)
            is_target = message["role"] == "assistant"
            if is_target:
                opened = self.apply_chat_template(list(messages[:index]), tokenize=False, add_generation_prompt=True)
                if not drop_prompt or index != first:
                    self._append(input_ids, labels, opened[len(rendered) :], is_target=False)
                else:
                    input_ids, labels = [], []
                    self._append(input_ids, labels, self.null_prompt, is_target=False)
                self._append(input_ids, labels, text[len(opened) :], is_target=True)
            else:
                self._append(input_ids, labels, text[len(rendered) :], is_target=False)
            rendered = text
        return {"input_ids": input_ids, "labels": labels}

    @property
    def null_prompt(self) -> str:
        """The prompt of the unconditional context: a user who says nothing."""
        return self.apply_chat_template([{"role": "user", "content": ""}], tokenize=False, add_generation_prompt=True)

    @property
    def null_prompt_ids(self) -> tuple[int, ...]:
        """Ids of `null_prompt`, for the model's config."""
        return tuple(self.tokenizer(self.null_prompt, add_special_tokens=False)["input_ids"])

    def _append(self, input_ids: list[int], labels: list[int], text: str, is_target: bool) -> None:
        text = text.replace(IMAGE_TOKEN, self.image_placeholders(is_target))
        ids = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        input_ids += ids
        labels += ids if is_target else [-100] * len(ids)

    def post_process_multimodal_output(
        self,
        generated_outputs: torch.Tensor,
        skip_special_tokens: bool = True,
        generation_mode: str | None = None,
        **kwargs: Any,
    ) -> list[Any]:
        """Texts of generated ids, or PIL pictures of generated pixels.

        Raises:
            ConfigError: an unknown mode.
        """
        if generation_mode in (None, "text"):
            return self.tokenizer.batch_decode(generated_outputs, skip_special_tokens=skip_special_tokens, **kwargs)
        if generation_mode == "image":
            return self.image_processor.postprocess(generated_outputs)
        raise ConfigError(f"generation_mode must be 'text' or 'image', given '{generation_mode}'")


def _flatten(images: Any) -> list[Any]:
    if images is None:
        return []
    if isinstance(images, list | tuple):
        return [picture for item in images for picture in _flatten(item)]
    return [images]
