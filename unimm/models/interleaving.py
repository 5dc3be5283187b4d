"""Text, pictures, or both in turn from one language model."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from transformers import GenerationConfig, LogitsProcessorList, SuppressTokensLogitsProcessor
from transformers.generation import BaseStreamer
from transformers.utils import ModelOutput

from ..backbones.llm import LLMAdapter
from ..checks import described, require_ids, require_tensor
from ..conditions.base import Condition
from ..errors import ConfigError, LayoutError, UniMMError
from .image_options import PICTURE_OPTIONS, ImageOptions
from .image_sampling import GenerateImageOutput, ImageGenerationMixin, evaluating

logger = logging.getLogger(__name__)

#: transformers' any-to-any pipeline adds this length to every call, also to those that draw.
_PIPELINE_LENGTH = 256
# Arguments of `generate_image` that are no options of drawing.
_PROMPT_OPTIONS = ("generation_config", "negative_input_ids", "negative_attention_mask")


@dataclass
class InterleavedOutput(ModelOutput):
    """Result of `generate(generation_mode="interleaved")` for one sample.

    Args:
        sequences: `(1, length)` prompt and answer, with placeholders where pictures are.
        image_ids: `(pictures, tokens)` ids of all pictures of the sequence, given ones first.
        images: `(new pictures, 3, height, width)` in [-1, 1].
    """

    sequences: torch.Tensor | None = None
    image_ids: torch.Tensor | None = None
    images: torch.Tensor | None = None


class InterleavedGenerationMixin(ImageGenerationMixin):
    """`generate` of a language model that also draws.

    Its `generation_config` speaks of text; sampling defaults of pictures are its entry `image_sampling`.
    """

    _image_sampling_key = "image_sampling"
    language_model: Any
    vision_encoder: Any
    encode_images: Any
    decode_image_tokens: Any
    embed_inputs: Any
    check_text_ids: Any
    get_input_embeddings: Any

    @torch.no_grad()
    def generate(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        *,
        generation_mode: Literal["text", "image", "interleaved"] | None = "text",
        **kwargs: Any,
    ) -> Any:
        """Continues the prompt with text, with a picture, or with both in turn.

        Args:
            input_ids: `(batch, sequence)` prompts, padded on the left.
            attention_mask: `(batch, sequence)`, 0 for padding.
            generation_mode: `text` takes transformers' generation arguments; `image` see `generate_image`;
                `interleaved` see `generate_interleaved`.

        Raises:
            ConfigError: an unknown mode, no or malformed prompts, or options of another mode.
            LayoutError: prompts that are longer than the language model's context.
        """
        if generation_mode not in (None, "text", "image", "interleaved"):
            raise ConfigError(f"generation_mode must be 'text', 'image' or 'interleaved', given '{generation_mode}'")
        if input_ids is not None and kwargs.get("inputs") is not None:
            raise ConfigError("prompts are given as input_ids or as inputs, given both")
        if input_ids is None:
            input_ids = kwargs.pop("inputs", None)
        if generation_mode == "image":
            if kwargs.get("max_new_tokens") == _PIPELINE_LENGTH:
                del kwargs["max_new_tokens"]
            return self.generate_image(input_ids, attention_mask, **kwargs)
        foreign = sorted((PICTURE_OPTIONS | {"negative_input_ids", "negative_attention_mask"}) & set(kwargs))
        if foreign:
            where = "in image_options" if generation_mode == "interleaved" else "with generation_mode='image'"
            raise ConfigError(f"{' and '.join(foreign)} are options of pictures: give them {where}")
        if not isinstance(kwargs.get("streamer"), BaseStreamer | None):
            raise ConfigError(
                f"text goes to a streamer of transformers (TextStreamer), given {type(kwargs['streamer']).__name__}"
            )
        if generation_mode == "interleaved":
            return self.generate_interleaved(input_ids, attention_mask, **kwargs)
        input_ids, attention_mask = self._checked_prompts(input_ids, attention_mask)
        return self._generate_text(input_ids, attention_mask, may_start_images=False, **kwargs)

    def _generate_text(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None, may_start_images: bool, **kwargs: Any
    ) -> Any:
        _check_text_options(kwargs)
        config = self.config
        never = [config.image_token_id, config.visual_token_id, config.image_end_token_id]
        if not may_start_images:
            never.append(config.image_start_token_id)
        processors = LogitsProcessorList(kwargs.pop("logits_processor", None) or [])
        processors.append(SuppressTokensLogitsProcessor(never, device=input_ids.device))
        if self.vision_encoder is None and kwargs.get("pixel_values") is not None:
            kwargs["image_ids"] = self.encode_images(kwargs.pop("pixel_values")).values
        try:
            return super().generate(input_ids, attention_mask=attention_mask, logits_processor=processors, **kwargs)
        except ValueError as error:
            if isinstance(error, UniMMError):
                raise
            # Options are checked by transformers: their ranges, their combinations, and names that it does not know.
            raise ConfigError(f"writing text: {error}") from error

    @torch.no_grad()
    def generate_image(
        self,
        input_ids: torch.Tensor | None,
        attention_mask: torch.Tensor | None = None,
        *,
        pixel_values: torch.Tensor | None = None,
        image_ids: torch.Tensor | None = None,
        negative_input_ids: torch.Tensor | None = None,
        negative_attention_mask: torch.Tensor | None = None,
        generation_config: GenerationConfig | None = None,
        return_dict_in_generate: bool | None = None,
        **options: Any,
    ) -> torch.Tensor | GenerateImageOutput:
        """Draws one picture per prompt, or several.

        Args:
            input_ids: `(batch, sequence)` prompts, padded on the left; the image start is added where it is missing.
            attention_mask: `(batch, sequence)`, 0 for padding.
            pixel_values: pictures of the prompts.
            image_ids: visual ids of the prompts' pictures.
            negative_input_ids: `(batch or 1, sequence)` prompts that guidance leads away from; the config's null prompt
                when none are given.
            negative_attention_mask: of these, 0 for padding.
            generation_config: its `image_sampling` comes before that of `self.generation_config`.
            return_dict_in_generate: return pixels, ids and logits instead of the ids alone; so by default where an
                `output_type` or `output_logits` asks for more than ids.
            options: fields of `unimm.ImageOptions` (guidance_scale, top_k, generator, output_type, streamer, …).

        Returns:
            Visual ids `(pictures, tokens)` for `decode_image_tokens`, or a `GenerateImageOutput`.

        Raises:
            ConfigError: options that are unknown or out of range, or malformed prompts.
            LayoutError: a size that the model does not draw, or prompts that are longer than its context.
        """
        asks_for_more = options.get("output_type") is not None or bool(options.get("output_logits"))
        if return_dict_in_generate is None:
            return_dict_in_generate = asks_for_more
        elif asks_for_more and not return_dict_in_generate:
            raise ConfigError("output_type and output_logits are given back with return_dict_in_generate=True only")
        if not return_dict_in_generate:
            # The caller decodes the ids.
            options["output_type"] = "ids"
        drawing = self.image_options(options, generation_config)
        input_ids, attention_mask = self._checked_prompts(input_ids, attention_mask)
        negative = self._negative_prompts(input_ids.shape[0], drawing, negative_input_ids, negative_attention_mask)
        with evaluating(self):
            drawn = self._draw(
                drawing,
                condition=self._prompt(input_ids, attention_mask, pixel_values, image_ids),
                unconditional=None if negative is None else self._prompt(*negative),
                backbone=LLMAdapter(self.language_model.get_decoder()),
                context_length=self.config.context_length,
            )
        if return_dict_in_generate:
            return drawn
        assert drawn.sequences is not None
        return drawn.sequences

    @torch.no_grad()
    def generate_interleaved(
        self,
        input_ids: torch.Tensor | None,
        attention_mask: torch.Tensor | None = None,
        *,
        pixel_values: torch.Tensor | None = None,
        image_ids: torch.Tensor | None = None,
        max_new_tokens: int = 256,
        max_images: int = 4,
        image_options: Mapping[str, Any] | None = None,
        streamer: BaseStreamer | None = None,
        **text_options: Any,
    ) -> InterleavedOutput:
        """Writes text, and draws a picture whenever the model opens one; the picture then is context for what follows.

        Args:
            input_ids: `(1, sequence)`: one sample, since every sample switches at its own place.
            attention_mask: `(1, sequence)`, 0 for padding.
            pixel_values: pictures of the prompt.
            image_ids: visual ids of the prompt's pictures.
            max_new_tokens: text tokens to write in all.
            max_images: pictures to draw at most; after that the model cannot open another.
            image_options: arguments of `generate_image` (guidance, temperature, streamer, …).
            streamer: gets the text.
            text_options: transformers' generation arguments.

        Raises:
            ConfigError: a batch of several samples, malformed prompts, or options that need several pictures.
            LayoutError: a sequence that is longer than the language model's context.
        """
        input_ids, attention_mask = self._checked_prompts(input_ids, attention_mask)
        if input_ids.shape[0] != 1:
            raise ConfigError(f"interleaved generation takes one sample at a time, given {input_ids.shape[0]}")
        if not isinstance(image_options, Mapping | None):
            raise ConfigError(f"image_options must be a mapping of names to values, given {image_options!r}")
        for name, number in (("max_new_tokens", max_new_tokens), ("max_images", max_images)):
            if not isinstance(number, int) or number < 0:
                raise ConfigError(f"{name} must be a whole number of at least 0, given {number!r}")
        for name in ("return_dict_in_generate", "num_return_sequences"):
            if (value := text_options.get(name)) not in (None, False) and (value is True or value != 1):
                raise ConfigError(f"interleaved generation gives one InterleavedOutput and takes no '{name}'")
        drawing = {"generation_config": text_options.get("generation_config"), **(image_options or {})}
        for name in ("num_images_per_prompt", "output_type", "output_logits", "return_dict_in_generate"):
            if drawing.get(name) is not None:
                raise ConfigError(f"image_options takes no '{name}': one picture goes into the sequence as ids")
        # Told now rather than when the model opens its first picture.
        self.image_options(
            {name: value for name, value in drawing.items() if name not in _PROMPT_OPTIONS},
            drawing["generation_config"],
        )
        config, written = self.config, 0
        new_ids: list[torch.Tensor] = []
        if self.vision_encoder is None and pixel_values is not None:
            image_ids, pixel_values = self.encode_images(pixel_values).values, None
        if attention_mask is not None:
            input_ids = input_ids[:, attention_mask[0].bool()]
        end = text_options.pop("eos_token_id", self.generation_config.eos_token_id)
        ends = [] if end is None else [end] if isinstance(end, int) else list(end)
        if streamer is not None:
            text_options["streamer"] = _SegmentStreamer(streamer)
        sequence = input_ids
        while True:
            opened = int(sequence[0, -1]) == config.image_start_token_id and len(new_ids) < max_images
            if opened:
                drawn = self.generate_image(sequence, pixel_values=pixel_values, image_ids=image_ids, **drawing)
                assert isinstance(drawn, torch.Tensor)
                new_ids.append(drawn)
                image_ids = drawn if image_ids is None else torch.cat([image_ids, drawn])
                placeholders = [config.visual_token_id] * self.layout.length + [config.image_end_token_id]
                sequence = torch.cat([sequence, sequence.new_tensor([placeholders])], dim=1)
            if written >= max_new_tokens:
                break
            before = sequence.shape[1]
            sequence = self._generate_text(
                sequence,
                None,
                may_start_images=len(new_ids) < max_images,
                pixel_values=pixel_values,
                image_ids=image_ids,
                max_new_tokens=max_new_tokens - written,
                eos_token_id=[*ends, config.image_start_token_id],
                **text_options,
            )
            written += sequence.shape[1] - before
            if int(sequence[0, -1]) != config.image_start_token_id:
                break
        if streamer is not None:
            streamer.end()
        images = self.decode_image_tokens(torch.cat(new_ids)) if new_ids else None
        return InterleavedOutput(sequences=sequence, image_ids=image_ids, images=images)

    def _prompt(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None,
        pixel_values: torch.Tensor | None = None,
        image_ids: torch.Tensor | None = None,
    ) -> Condition:
        """A prompt as a prefix that ends with the image start."""
        if attention_mask is not None and bool(attention_mask.bool().all()):
            attention_mask = None
        if bool((input_ids[:, -1] != self.config.image_start_token_id).any()):
            input_ids = F.pad(input_ids, (0, 1), value=self.config.image_start_token_id)
            if attention_mask is not None:
                attention_mask = F.pad(attention_mask, (0, 1), value=1)
        if self.vision_encoder is None and pixel_values is not None:
            image_ids, pixel_values = self.encode_images(pixel_values).values, None
        prefix = self.embed_inputs(input_ids, pixel_values, image_ids)
        return Condition(prefix=prefix, prefix_mask=None if attention_mask is None else attention_mask.bool())

    def _negative_prompts(
        self,
        batch_size: int,
        options: ImageOptions,
        input_ids: torch.Tensor | None,
        attention_mask: torch.Tensor | None,
    ) -> tuple[torch.Tensor, torch.Tensor | None] | None:
        """Ids and mask of what guidance leads away from, one row per prompt; None where the model has no null prompt."""
        if input_ids is None:
            if attention_mask is not None:
                raise ConfigError("negative_attention_mask belongs to negative_input_ids, given without them")
            if not self.config.null_prompt_ids:
                return None
            null = [*self.config.null_prompt_ids, self.config.image_start_token_id]
            return torch.tensor([null], device=self.device).expand(batch_size, -1), None
        if not self.is_guided(options):
            logger.warning("without effect: the negative prompt, because there is no guidance (guidance_scale is 1)")
        input_ids, attention_mask = self._checked_prompts(input_ids, attention_mask, "negative_input_ids")
        if input_ids.shape[0] not in (1, batch_size):
            raise ConfigError(
                f"{input_ids.shape[0]} negative prompts for {batch_size} prompts: give one for all, or one per prompt"
            )
        if attention_mask is not None:
            attention_mask = attention_mask.expand(batch_size, -1)
        return input_ids.expand(batch_size, -1), attention_mask

    def _checked_prompts(
        self, input_ids: torch.Tensor | None, attention_mask: torch.Tensor | None, name: str = "input_ids"
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Prompts on the model's device.

        Raises:
            ConfigError: no integers of shape (batch, sequence), an empty row, a mask of another shape or with padding at
                the end.
            CodebookError: ids outside of the vocabulary.
            LayoutError: longer than the language model's context.
        """
        if not isinstance(input_ids, torch.Tensor) or input_ids.dim() != 2 or 0 in input_ids.shape:
            found = tuple(input_ids.shape) if isinstance(input_ids, torch.Tensor) else described(input_ids)
            raise ConfigError(
                f"generate needs prompts as {name} of shape (batch, sequence) with at least one token, given {found}"
            )
        input_ids = require_ids(input_ids, name, "(batch, sequence)", error=ConfigError).to(self.device)
        lengths = torch.full((input_ids.shape[0],), input_ids.shape[1])
        if attention_mask is not None:
            require_tensor(attention_mask, "the attention mask", "(batch, sequence)", error=ConfigError)
            if attention_mask.shape != input_ids.shape:
                raise ConfigError(
                    f"the attention mask must have the shape of {name}, {tuple(input_ids.shape)}, given "
                    f"{tuple(attention_mask.shape)}"
                )
            attention_mask = attention_mask.to(self.device)
            lengths = attention_mask.bool().sum(1)
        self.check_text_ids(input_ids, name)
        if int(lengths.min()) == 0:
            raise ConfigError(f"row {int(lengths.argmin())} of {name} is padding alone: an empty prompt")
        if attention_mask is not None and not bool((ends := attention_mask[:, -1].bool()).all()):
            raise ConfigError(
                f"row {int(ends.long().argmin())} of {name} is padded on the right, where it goes on: pad prompts on the left "
                "(padding_side='left')"
            )
        limit = self.config.context_length
        if limit is not None and int(lengths.max()) >= limit:
            raise LayoutError(
                f"row {int(lengths.argmax())} of {name} has {int(lengths.max())} tokens, which leaves no room in the language "
                f"model's context of {limit} (max_position_embeddings): shorten the prompt"
            )
        return input_ids, attention_mask


def _check_text_options(options: Mapping[str, Any]) -> None:
    """What transformers would stumble over or take for nothing."""
    if not isinstance(options.get("generation_config"), GenerationConfig | None):
        raise ConfigError(f"generation_config must be a GenerationConfig, given {options['generation_config']!r}")
    wanted: tuple[tuple[str, Any, str], ...] = (
        ("max_new_tokens", int, "a whole number of at least 1"),
        ("max_length", int, "a whole number of at least 1"),
        ("temperature", int | float, "a number above 0"),
        ("top_p", int | float, "a number in (0, 1]"),
        ("top_k", int, "a whole number of at least 0"),
    )
    for name, kind, words in wanted:
        value = options.get(name)
        if value is None:
            continue
        if isinstance(value, bool) or not isinstance(value, kind) or value < 0 or (value == 0 and name != "top_k"):
            raise ConfigError(f"{name} must be {words}, given {value!r}")
        if name == "top_p" and value > 1:
            raise ConfigError(f"{name} must be {words}, given {value!r}")
    processors = options.get("logits_processor")
    if processors is not None and not (isinstance(processors, list) and all(map(callable, processors))):
        raise ConfigError(f"logits_processor must be a list of processors (callables), given {processors!r}")
    ends = options.get("eos_token_id")
    if not all(
        isinstance(one, int | torch.Tensor | None) for one in (ends if isinstance(ends, list | tuple) else [ends])
    ):
        raise ConfigError(f"eos_token_id must be an id or a list of ids, given {ends!r}")


class _SegmentStreamer(BaseStreamer):
    """Makes one text of several calls of `generate`: of their prompts it passes on the first, of their ends none."""

    def __init__(self, streamer: BaseStreamer):
        self.streamer = streamer
        self.has_prompt = False

    def put(self, value: torch.Tensor) -> None:
        if value.dim() < 2 or not self.has_prompt:
            self.streamer.put(value)
        self.has_prompt = True

    def end(self) -> None:
        """The text goes on after the next picture."""
