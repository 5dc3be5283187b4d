"""Text and pictures in, batches for `UniMMForConditionalGeneration` out; and back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from tokenizers import Tokenizer, pre_tokenizers
from tokenizers.models import WordLevel
from transformers import BatchFeature, PreTrainedTokenizerBase, PreTrainedTokenizerFast, ProcessorMixin
from transformers.image_processing_backends import PilBackend
from transformers.image_utils import PILImageResampling
from transformers.processing_utils import TextKwargs

from ..checks import described
from ..data.images import as_picture
from ..data.transforms import to_pil
from ..errors import ConfigError, DataError, ImageError, LayoutError, nearest
from ..hub.mixins import HubProcessorMixin

GENERATION_MODES = ("text", "image", "interleaved")
IMAGE_TOKEN = "<|image|>"
VISUAL_TOKEN = "<|visual|>"
IMAGE_START_TOKEN = "<|image_start|>"
IMAGE_END_TOKEN = "<|image_end|>"

CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}<|{{ message['role'] }}|> "
    "{% if message['content'] is string %}{{ message['content'] }} {% else %}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<|image|> {% elif part['type'] == 'text' %}{{ part['text'] }} "
    "{% else %}{{ raise_exception('messages hold text and images, not ' + part['type']) }}{% endif %}"
    "{% endfor %}{% endif %}"
    "{% if message['role'] == 'assistant' %}{{ eos_token }} {% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|> {% endif %}"
)


def word_tokenizer(words: Sequence[str]) -> PreTrainedTokenizerFast:
    """A tokenizer with one token per word and the special tokens of the conditional model.

    Args:
        words: the vocabulary; other words become `<|unknown|>`.

    Raises:
        DataError: something else than words.
    """
    if not isinstance(words, Sequence) or isinstance(words, str) or not all(isinstance(word, str) for word in words):
        raise DataError(f"the vocabulary is a list of words, given {words!r}")
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
        """PIL pictures of `(pictures, 3, height, width)` pixels in [-1, 1].

        Raises:
            ImageError: another kind or shape, or values that are not finite.
        """
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
        if not isinstance(tokenizer, PreTrainedTokenizerBase):
            raise ConfigError(f"the processor needs a text tokenizer of transformers, given {described(tokenizer)}")
        for name, number, least in (
            ("num_visual_tokens", num_visual_tokens, 1),
            ("num_image_features", num_image_features, 0),
        ):
            if not isinstance(number, int) or number < least:
                raise ConfigError(f"{name} must be a whole number of at least {least}, given {number!r}")
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
        *,
        negative_text: str | Sequence[str] | None = None,
        generation_mode: str | None = "text",
        return_tensors: str | None = "pt",
        padding: bool | str = True,
        videos: None = None,
        audio: None = None,
        **kwargs: Any,
    ) -> BatchFeature:
        """A batch of prompts.

        Args:
            text: prompts with one `<|image|>` per picture.
            images: pictures of all prompts, in reading order: PIL pictures, encoded bytes, paths, addresses, base64,
                arrays or tensors; read as `unimm.data.images.as_picture` says.
            negative_text: prompts that guidance leads away from, one for all or one per prompt; with
                `generation_mode="image"`.
            generation_mode: `image` opens a picture at the end of every prompt.
            return_tensors: `pt` for tensors.
            padding: as the text tokenizer's; always on the left.
            videos: not read; here because transformers' pipeline names it.
            audio: not read.
            kwargs: of the text tokenizer.

        Returns:
            `input_ids`, `attention_mask` (padded on the left); with pictures `pixel_values`; with negative prompts
            `negative_input_ids` and `negative_attention_mask`.

        Raises:
            LayoutError: another number of pictures than of `<|image|>` in the text, or a picture in a negative prompt.
            DataError: no text, an empty one, or something else than text.
            ImageError: a picture that cannot be read.
            ConfigError: an unknown mode or option, or a kind of input that the model does not read.
        """
        for name, given in (("videos", videos), ("audio", audio)):
            if given is not None:
                raise ConfigError(f"{type(self).__name__} reads text and images, given {name}")
        self._check_mode(generation_mode, GENERATION_MODES)
        for name in kwargs:
            if name not in TextKwargs.__annotations__:
                raise ConfigError(f"{type(self).__name__} takes no '{name}'{nearest(name, TextKwargs.__annotations__)}")
        if kwargs.get("padding_side") not in (None, "left"):
            raise ConfigError(
                f"prompts are padded on the left, where generation goes on at the right: given padding_side="
                f"{kwargs['padding_side']!r}"
            )
        kwargs |= {"return_tensors": return_tensors, "padding": padding, "add_special_tokens": False}
        texts = _as_texts(text, "text")
        pictures = [as_picture(picture) for picture in _flatten(images)]
        asked = sum(one.count(IMAGE_TOKEN) for one in texts)
        if asked != len(pictures):
            raise LayoutError(f"the texts have {asked} '{IMAGE_TOKEN}' but {len(pictures)} pictures were given")
        placeholders = self.image_placeholders(is_target=False)
        opening = IMAGE_START_TOKEN if generation_mode == "image" else ""
        batch = self._tokenize([one.replace(IMAGE_TOKEN, placeholders) + opening for one in texts], **kwargs)
        if pictures:
            self._check_placeholders(batch["input_ids"], len(pictures))
            batch["pixel_values"] = self._pixels(pictures, return_tensors)
        if negative_text is not None:
            if generation_mode != "image":
                raise ConfigError("negative_text steers pictures: give it with generation_mode='image'")
            negative = _as_texts(negative_text, "negative_text")
            if len(negative) not in (1, len(texts)):
                raise DataError(f"{len(negative)} negative texts for {len(texts)} texts: give one, or one per text")
            if any(IMAGE_TOKEN in one for one in negative):
                raise LayoutError(f"a negative text holds no pictures, found '{IMAGE_TOKEN}' in it")
            encoded = self._tokenize([one + opening for one in negative], **kwargs)
            batch |= {f"negative_{name}": encoded[name] for name in ("input_ids", "attention_mask")}
        return BatchFeature(batch)

    def _tokenize(self, texts: list[str], **kwargs: Any) -> dict[str, Any]:
        try:
            batch = dict(self.tokenizer(texts, **(kwargs | {"padding_side": "left"})))
        except (TypeError, ValueError, OverflowError) as error:
            options = {name: value for name, value in kwargs.items() if name != "add_special_tokens"}
            raise ConfigError(f"the text tokenizer cannot make a batch with {options}: {error}") from error
        batch.pop("token_type_ids", None)
        return batch

    def _check_placeholders(self, input_ids: Any, num_pictures: int) -> None:
        token, each = (
            (IMAGE_TOKEN, self.num_image_features)
            if self.num_image_features
            else (VISUAL_TOKEN, self.num_visual_tokens)
        )
        wanted = self.tokenizer.convert_tokens_to_ids(token)
        found = sum(int((np.asarray(row) == wanted).sum()) for row in input_ids)
        if found != num_pictures * each:
            raise LayoutError(
                f"the ids have {found} placeholders for {num_pictures} pictures of {each}: do not write '{token}' yourself, "
                "and leave room for whole pictures where the text is truncated (max_length)"
            )

    def _pixels(self, pictures: list[Any], return_tensors: str | None) -> Any:
        for picture in pictures:
            if isinstance(picture, Image.Image) and 0 in picture.size:
                raise ImageError(f"a picture of {picture.width}x{picture.height} pixels holds nothing to read")
            shape = tuple(getattr(picture, "shape", (1,)))
            if 0 in shape or not {1, 3, 4} & {shape[0], shape[-1]}:
                raise ImageError(
                    f"a picture has pixels and 1, 3 or 4 channels, first or last; given {described(picture)}"
                )
        try:
            pictures = self.image_processor.fetch_images(pictures)
            pixels = self.image_processor(images=pictures, return_tensors=return_tensors)["pixel_values"]
        except Exception as error:  # files, addresses, decoders and array libraries raise errors of their own
            kinds = ", ".join(sorted({type(picture).__name__ for picture in pictures}))
            raise ImageError(f"pictures given as {kinds} cannot be read: {error}") from error
        for picture in pixels:
            if picture.ndim != 3 or picture.shape[0] != 3:
                raise ImageError(
                    f"a picture has three channels, found {picture.shape[0]}: its pixels are {described(picture)}"
                )
        return pixels

    @staticmethod
    def _check_mode(mode: str | None, known: Sequence[str]) -> None:
        if mode is not None and mode not in known:
            raise ConfigError(
                f"generation_mode must be {', '.join(map(repr, known[:-1]))} or '{known[-1]}', given {mode!r}"
            )

    def apply_chat_template(self, conversation: Any, *args: Any, **kwargs: Any) -> Any:
        """As transformers'.

        Raises:
            DataError: no conversation, or messages without role or content.
            ConfigError: parts that are neither text nor images.
        """
        for message in _messages(conversation):
            if not isinstance(message, Mapping) or not {"role", "content"} <= set(message):
                raise DataError(f"a message needs a role and a content, given {message!r}")
            if not isinstance(message["role"], str) or not isinstance(message["content"], str | list | tuple):
                raise DataError(
                    f"a message needs a text as its role, and a text or a list of parts as its content: {message!r}"
                )
            for part in [] if isinstance(message["content"], str) else message["content"]:
                kind = part.get("type") if isinstance(part, Mapping) else type(part).__name__
                if kind not in ("text", "image", "image_url"):
                    raise ConfigError(f"messages hold parts of the types 'text' and 'image', found {kind!r}")
                if kind == "text" and not isinstance(part.get("text"), str):
                    raise DataError(f"a part of type 'text' needs a string as its text, given {part!r}")
        return super().apply_chat_template(conversation, *args, **kwargs)

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

        Raises:
            DataError: no messages, none of the assistant, or one without role or content.
            ConfigError: parts that are neither text nor images.
        """
        messages = _messages(messages)
        roles = [message.get("role") if isinstance(message, Mapping) else None for message in messages]
        first = roles.index("assistant") if "assistant" in roles else None
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
            ImageError: no pixels of pictures.
            DataError: no ids of texts.
        """
        self._check_mode(generation_mode, ("text", "image"))
        if generation_mode == "image":
            return self.image_processor.postprocess(generated_outputs)
        try:
            return self.tokenizer.batch_decode(generated_outputs, skip_special_tokens=skip_special_tokens, **kwargs)
        except TypeError as error:
            raise DataError(f"texts are made of ids (batch, length), given {described(generated_outputs)}") from error


def _as_texts(text: Any, name: str) -> list[str]:
    texts = [text] if isinstance(text, str) else list(text) if isinstance(text, list | tuple) else []
    if not texts:
        raise DataError(f"the processor needs {name} as a string or a list with at least one, given {text!r}")
    for index, one in enumerate(texts):
        if not isinstance(one, str):
            raise DataError(f"{name} {index} must be a string, given {type(one).__name__}")
        if not one.strip():
            raise DataError(f"{name} {index} is empty: give a prompt with at least one word")
    return texts


def _messages(conversation: Any) -> list[Any]:
    """The messages of one or several conversations."""
    conversation = getattr(conversation, "messages", conversation)
    if not isinstance(conversation, list | tuple) or not conversation:
        raise DataError(f"a conversation is a list of messages with role and content, given {conversation!r}")
    if isinstance(conversation[0], list | tuple) or hasattr(conversation[0], "messages"):
        return [message for one in conversation for message in _messages(one)]
    return list(conversation)


def _flatten(images: Any) -> list[Any]:
    if images is None:
        return []
    if isinstance(images, list | tuple):
        return [picture for item in images for picture in _flatten(item)]
    return [images]
