"""What both models share when they draw: defaults of the model's folder, checks, guidance, previews, output types."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import torch
from transformers import GenerationConfig, GenerationMixin
from transformers.utils import ModelOutput

from ..conditions.base import Condition
from ..data.transforms import as_output_type
from ..errors import ConfigError, LayoutError, nearest
from ..generation.guidance import GuidanceSchedule, Progress
from ..generation.loop import generate_tokens, progress_of
from ..generation.streaming import ImageProgress
from ..plans.base import Canvas, PlanStep
from ..tokenizers.base import VisualTokenizer
from ..tokens import TokenKind, TokenLayout
from .image_options import SAVED_OPTIONS, ImageOptions

logger = logging.getLogger(__name__)


@dataclass
class GenerateImageOutput(ModelOutput):
    """Result of drawing pictures.

    Args:
        images: what `output_type` asked for; without one `(batch, 3, height, width)` in [-1, 1]. None for a generator
            without a tokenizer.
        sequences: `(batch, tokens[, codes])` ids of the pictures, or `(batch, tokens, channels)` latents.
        drawn: the same as drawn, before in-painting put the known tokens back.
        logits: `(batch, tokens, …)` in the order of the steps, after guidance, before filters, where asked for.
        num_backbone_calls: how often the backbone ran.
    """

    images: Any = None
    sequences: torch.Tensor | None = None
    drawn: torch.Tensor | None = None
    logits: torch.Tensor | None = None
    num_backbone_calls: int | None = None


class ImageGenerationMixin(GenerationMixin):
    """Draws pictures: the part of `generate` that no condition or language model changes.

    Sampling defaults come from the model's `generation_config`: from its own fields, or, where those speak of text, from
    its entry `_image_sampling_key`.
    """

    config: Any
    device: torch.device
    plan: Any
    head: Any
    layout: TokenLayout
    kind: TokenKind
    tokenizer: VisualTokenizer | None
    _image_sampling_key: ClassVar[str | None] = None

    def image_options(
        self, given: Mapping[str, Any], generation_config: GenerationConfig | None = None
    ) -> ImageOptions:
        """The options of one call: the caller's, then a given generation config's, the model's own, and the defaults.

        Raises:
            ConfigError: an unknown option, a value of the wrong type or out of range, or one that this model cannot honour.
            LayoutError: a size that this model does not draw.
        """
        if generation_config is not None and not isinstance(generation_config, GenerationConfig):
            raise ConfigError(f"generation_config must be a GenerationConfig, given {generation_config!r}")
        if not isinstance(given, Mapping):
            raise ConfigError(f"options must be a mapping of names to values, given {given!r}")
        configs = [one for one in (generation_config, self.generation_config) if one is not None]
        options = ImageOptions.resolve(given, *map(self._image_sampling, configs))
        self._check_size(options.height, options.width)
        if options.soft_codes is not None and not self.plan.starts_from_reconstruction:
            raise ConfigError(
                "soft codes need a plan whose slots start from a reconstruction; those of "
                f"'{self.config.plan_config.model_type}' do not"
            )
        if options.guidance_layer is not None:
            depth = getattr(self.config.backbone_config, "num_hidden_layers", 0) if self._mixes_rows else 0
            if not -depth <= options.guidance_layer <= -1:
                known = f"-{depth} to -1" if depth else "none: its backbone cannot mix the rows of a batch"
                raise ConfigError(
                    f"guidance_layer counts blocks from the end, {options.guidance_layer} given; known: {known}"
                )
        if self.tokenizer is None and options.output_type in ("pt", "np", "pil"):
            raise ConfigError(
                f"this generator has no visual tokenizer and gives ids, not '{options.output_type}': use "
                "output_type='latent', or convert it with --tokenizer"
            )
        return options

    @property
    def _mixes_rows(self) -> bool:
        return getattr(getattr(self, "backbone", None), "mixes_rows", False)

    @property
    def codebook_size(self) -> int | None:
        """Number of ids of a visual token; None for continuous latents."""
        return self.kind.codebook_size

    def is_guided(self, options: ImageOptions) -> bool:
        """Whether any step of a drawing is guided."""
        layout, chosen = self._layout_of(options)
        return options.is_guided(progress_of(self.plan.steps(layout, 1, **chosen), layout))

    def _layout_of(self, options: ImageOptions) -> tuple[TokenLayout, dict[str, Any]]:
        """The layout that a drawing fills, and what the caller chose of the plan's options."""
        chosen = dict(options.plan_options or {})
        self.plan.check_options(chosen)
        return self.plan.generation_layout(self.tokenizer, **chosen), chosen

    def set_image_sampling(self, **options: Any) -> None:
        """Puts sampling defaults into `generation_config`, to be saved with the model and used where a caller says nothing.

        Args:
            options: guidance_scale (a number or a schedule), temperature, top_k, top_p, do_sample, use_cache,
                cache_implementation.

        Raises:
            ConfigError: an option that cannot be saved, or a value of the wrong type or out of range.
        """
        for name in options:
            if name not in SAVED_OPTIONS:
                raise ConfigError(f"generation_config.json keeps no '{name}'{nearest(name, SAVED_OPTIONS)}")
        ImageOptions.resolve(options)
        options = {
            name: value.to_dict() if isinstance(value, GuidanceSchedule) else value for name, value in options.items()
        }
        config = self.generation_config
        assert config is not None
        if self._image_sampling_key is not None:
            setattr(config, self._image_sampling_key, options)
            return
        # transformers refuses to save filters of a distribution that nothing is drawn from.
        for name, value in ({"do_sample": True} | options).items():
            setattr(config, name, value)

    def save_pretrained(self, *args: Any, **kwargs: Any) -> Any:
        """As transformers'."""
        config = self.generation_config
        if config is not None and self._image_sampling_key is not None and hasattr(config, self._image_sampling_key):
            # Of a generation config that is marked as derived from the model's, transformers reads its own fields alone.
            config._from_model_config = False
        return super().save_pretrained(*args, **kwargs)

    def _image_sampling(self, config: GenerationConfig) -> Mapping[str, Any]:
        if self._image_sampling_key is None:
            return {name: getattr(config, name, None) for name in SAVED_OPTIONS}
        kept = getattr(config, self._image_sampling_key, None) or {}
        if not isinstance(kept, Mapping):
            raise ConfigError(f"generation_config.{self._image_sampling_key} must be a mapping, found {kept!r}")
        return kept

    def _check_size(self, height: int | None, width: int | None) -> None:
        sizes = self.config.supported_sizes
        if not any(height in (None, one) and width in (None, other) for one, other in sizes):
            asked = f"{height or 'any'} x {width or 'any'}"
            known = ", ".join(f"{one} x {other}" for one, other in sizes)
            raise LayoutError(
                f"this model draws pictures of {known} pixels (height x width), asked for {asked}: leave height and width "
                "out and resize the picture, or choose a model of that size"
            )

    def _draw(
        self,
        options: ImageOptions,
        condition: Condition,
        unconditional: Condition | None,
        backbone: Any,
        context_length: int | None = None,
    ) -> GenerateImageOutput:
        """Draws `options.num_images_per_prompt` pictures per row of the condition.

        Args:
            options: of this call.
            condition: one row per prompt.
            unconditional: what guidance leads away from, None where the model has nothing of the kind.
            backbone: what turns slots into hidden states.
            context_length: slots that a sequence may have at most, None for no limit.
        """
        if condition.num_rows == 0:
            raise ConfigError("there is nothing to draw: the batch is empty, give at least one prompt or label")
        layout, plan_options = self._layout_of(options)
        steps = self.plan.steps(layout, condition.prefix_length, **plan_options)
        self._check_context(condition, context_length)
        self._warn(options, condition, unconditional, progress_of(steps, layout))
        times = options.num_images_per_prompt
        condition = condition.repeat_interleave(times)
        if options.inpainting is not None:
            options.inpainting.check(layout, self.kind, condition.num_rows)
        if unconditional is not None and options.is_guided(progress_of(steps, layout)):
            self._check_context(unconditional, context_length)
            unconditional = unconditional.repeat_interleave(times)
        try:
            generated = generate_tokens(
                plan=self.plan,
                backbone=backbone,
                head=self.head,
                layout=layout,
                condition=condition,
                unconditional=unconditional,
                guidance=options.guidance,
                randomness=options.source_of_draws(condition.num_rows),
                sampling=options.sampling(self.kind),
                tokenizer=self.tokenizer,
                plan_options=plan_options,
                guidance_layer=options.guidance_layer,
                soft_codes=options.soft_codes,
                inpainting=options.inpainting,
                use_cache=options.use_cache,
                cache_implementation=options.cache_implementation,
                output_logits=options.output_logits,
                edit=None if options.callback_on_step_end is None else partial(self._call_back, options),
                callback=None if options.streamer is None else partial(self._stream, options, len(steps)),
            )
        finally:
            if options.streamer is not None:
                options.streamer.end()
        return GenerateImageOutput(
            images=self._pictures(generated.canvas, options.output_type),
            sequences=generated.canvas.values,
            drawn=generated.drawn,
            logits=generated.logits,
            num_backbone_calls=generated.num_backbone_calls,
        )

    def _pictures(self, canvas: Canvas, output_type: str | None) -> Any:
        if output_type in ("latent", "ids"):
            return canvas.values
        if self.tokenizer is None:
            return None
        return as_output_type(self.plan.decode(canvas, self.tokenizer), output_type)

    def _call_back(self, options: ImageOptions, step: PlanStep, tensors: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """The ids to place, after `callback_on_step_end` has seen the step."""
        if "logits" in options.callback_on_step_end_tensor_inputs and "logits" not in tensors:
            raise ConfigError("this model's tokens are continuous and have no logits for callback_on_step_end")
        given = {name: tensors[name] for name in options.callback_on_step_end_tensor_inputs}
        returned = options.callback_on_step_end(self, step.index, step.num_placed, dict(given))
        if returned is None:
            return tensors["ids"]
        if not isinstance(returned, Mapping):
            raise ConfigError(
                f"callback_on_step_end must return its tensors by name, returned {type(returned).__name__}"
            )
        for name, value in returned.items():
            if name not in given:
                raise ConfigError(
                    f"callback_on_step_end returned '{name}', which it was not given{nearest(name, given)}"
                )
            if name != "ids" and value is not given[name]:
                raise ConfigError(f"callback_on_step_end may replace 'ids'; a changed '{name}' would have no effect")
        ids = returned.get("ids", tensors["ids"])
        if ids is not tensors["ids"]:
            expected = tensors["ids"]
            fits = isinstance(ids, torch.Tensor) and ids.is_floating_point() == expected.is_floating_point()
            if not fits or ids.shape != expected.shape:
                what = "integer ids" if self.kind.is_discrete else "latents"
                raise ConfigError(f"callback_on_step_end must return {what} of shape {tuple(expected.shape)}")
            self.kind.check(ids)
        return ids.to(tensors["ids"])

    def _stream(self, options: ImageOptions, num_steps: int, step: PlanStep, canvas: Canvas) -> None:
        # The loop goes on writing into the canvas; a preview may be asked for later.
        seen = canvas.snapshot()

        def decode() -> torch.Tensor:
            if self.tokenizer is None:
                raise ConfigError("a generator without a visual tokenizer gives ids and has no preview")
            return self.plan.preview(seen, step, self.tokenizer)

        placed = seen.values[:, : step.num_placed] if isinstance(step.tokens, slice) else seen.values
        assert options.streamer is not None
        options.streamer.put(ImageProgress(step.index, num_steps, step.num_placed, placed, decode))

    def _check_context(self, condition: Condition, context_length: int | None) -> None:
        if context_length is None:
            return
        prompt_length = condition.prefix_length
        if condition.prefix_mask is not None:
            prompt_length = int(condition.prefix_mask.sum(1).max())
        needed = prompt_length + self.layout.length - 1
        if needed > context_length:
            raise LayoutError(
                f"the prompt has {prompt_length} tokens and a picture takes {self.layout.length - 1} more, but the language "
                f"model's context (max_position_embeddings) ends at {context_length}: shorten the prompt"
            )

    def _warn(
        self, options: ImageOptions, condition: Condition, unconditional: Condition | None, steps: Sequence[Progress]
    ) -> None:
        idle = options.without_effect(steps, self.head.is_categorical)
        if options.is_guided(steps):
            if unconditional is None:
                idle.append("guidance_scale, because this model has no null condition and no negative prompt was given")
            elif "guidance_scale" in options.given and condition.equals(unconditional):
                idle.append("guidance_scale, because the condition is the null condition itself")
        if not self.plan.uses_cache and {"use_cache", "cache_implementation"} & options.given:
            idle.append(f"use_cache, because the plan '{self.config.plan_config.model_type}' keeps no cache")
        for clause in idle:
            logger.warning("without effect: %s", clause)


@contextlib.contextmanager
def evaluating(model: Any) -> Iterator[None]:
    """Evaluation mode inside of the block, the mode from before after it."""
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)
