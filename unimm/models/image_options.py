"""The options of drawing pictures that all models share: what the caller says, what the model's folder says, defaults."""

# Annotations stay objects here: the type check reads them.
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, Literal

import torch
from huggingface_hub.dataclasses import strict
from huggingface_hub.errors import StrictDataclassError
from transformers import GenerationConfig, LogitsProcessorList

from ..errors import ConfigError, nearest
from ..generation.filters import SoftCodes, token_filters
from ..generation.guidance import ConstantGuidance, GuidanceSchedule, Progress, as_schedule
from ..generation.loop import Inpainting
from ..generation.randomness import GeneratorRandomness, Randomness, RecordedRandomness
from ..generation.streaming import ImageStreamer
from ..heads.base import TokenSampling
from ..tokens import TokenKind

OutputType = Literal["pt", "np", "pil", "latent", "ids"]

#: Options that `generation_config.json` may hold.
SAVED_OPTIONS = (
    "guidance_scale",
    "temperature",
    "top_k",
    "top_p",
    "do_sample",
    "num_inference_steps",
    "plan_options",
    "use_cache",
    "cache_implementation",
)
#: Tensors that `callback_on_step_end` may ask for; it may replace the first one.
CALLBACK_TENSORS = ("ids", "logits", "canvas")


@strict
@dataclass(kw_only=True)
class ImageOptions:
    """How pictures are drawn.

    Args:
        guidance_scale: scale of classifier-free guidance (1 is none), or a schedule over steps.
        guidance_layer: guidance mixes hidden states after this block, counted from the end (-1 is the last), instead of
            logits.
        temperature: of the softmax; a list has one per level of the layout, coarse to fine.
        top_k: keep the k likeliest ids, 0 for all.
        top_p: keep the likeliest ids up to this probability.
        do_sample: draw ids; otherwise take the likeliest.
        logits_processor: transformers' processors that run before temperature, top-k and top-p.
        soft_codes: mix codebook rows instead of choosing one (plans that start from a reconstruction).
        num_inference_steps: evaluations of a diffusion or flow head per token; the head's own number where not given.
        plan_options: options of the model's plan, by name (a list of scales, a number of steps, …).
        inpainting: given tokens and where they are kept.
        num_images_per_prompt: pictures per prompt or label; those of a prompt follow each other.
        height: pixels; one of the sizes that the model draws.
        width: pixels.
        generator: one for the batch, or one per picture, so that the batch equals its pictures one by one.
        randomness: another source of draws, or recorded ones by name.
        use_cache: keep keys and values between steps.
        cache_implementation: `static` allocates once, `dynamic` grows.
        output_type: of the pictures: `pt` and `np` in [0, 1] as in diffusers, `pil`, or `latent` (the same as `ids`) for
            the visual ids. Without one: pixels in [-1, 1], which is what visual tokenizers take and give.
        output_logits: also return the guided logits.
        streamer: gets every step, with a preview that is decoded when asked for.
        callback_on_step_end: called as in diffusers, `callback(model, step, num_tokens, tensors) -> tensors`, before a
            step's tokens are placed; `num_tokens` counts those placed with this step.
        callback_on_step_end_tensor_inputs: what the callback gets: `ids` of this step, which it may replace, its guided
            `logits`, and the `canvas` ids of the steps before.
        given: names of the options that the caller gave.

    Raises:
        ConfigError: a value of the wrong type or out of range.
    """

    guidance_scale: Any = 1.0
    guidance_layer: int | None = None
    temperature: float | int | list | tuple = 1.0
    top_k: int = 0
    top_p: float | int = 1.0
    do_sample: bool = True
    logits_processor: LogitsProcessorList | list | None = None
    soft_codes: SoftCodes | None = None
    num_inference_steps: int | None = None
    plan_options: Mapping | None = None
    inpainting: Inpainting | None = None
    num_images_per_prompt: int = 1
    height: int | None = None
    width: int | None = None
    generator: Any = None
    randomness: Randomness | Mapping | None = None
    use_cache: bool = True
    cache_implementation: Literal["static", "dynamic"] = "static"
    output_type: OutputType | None = None
    output_logits: bool = False
    streamer: ImageStreamer | None = None
    callback_on_step_end: Any = None
    callback_on_step_end_tensor_inputs: list | tuple = ("ids",)
    given: frozenset = field(default=frozenset(), repr=False)

    @classmethod
    def resolve(cls, given: Mapping[str, Any], *defaults: Mapping[str, Any]) -> "ImageOptions":
        """What the caller says, then the `defaults` in their order, then this class's own; None counts as not said.

        Raises:
            ConfigError: an unknown option (with the nearest known one), or a value of the wrong type or out of range.
        """
        known = OPTION_NAMES
        merged: dict[str, Any] = {}
        for source in (given, *defaults):
            for name, value in source.items():
                if name not in known:
                    raise ConfigError(f"drawing pictures takes no '{name}'{nearest(name, known)}")
                if value is not None:
                    merged.setdefault(name, value)
        explicit = frozenset(name for name, value in given.items() if value is not None)
        try:
            return cls(**merged, given=explicit)
        except StrictDataclassError as error:
            cause = error.__cause__ or error
            raise cause if isinstance(cause, ConfigError) else ConfigError(f"drawing pictures: {cause}") from error

    def validate_values(self) -> None:
        """Ranges, and options that exclude each other; called when the options are made."""
        self.guidance_scale = as_schedule(self.guidance_scale)
        # They know their own ranges.
        for temperature in self.temperatures:
            token_filters(temperature, self.top_k, self.top_p)
        for name in ("num_images_per_prompt", "height", "width", "num_inference_steps"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"{name} must be at least 1, given {value}")
        if self.randomness is not None and self.generator is not None:
            raise ConfigError("give either a generator or randomness, given both")
        if self.callback_on_step_end is not None and not callable(self.callback_on_step_end):
            raise ConfigError(f"callback_on_step_end must be callable, given {self.callback_on_step_end!r}")
        for name in self.callback_on_step_end_tensor_inputs:
            if name not in CALLBACK_TENSORS:
                raise ConfigError(
                    f"a callback at a step's end gets no tensor '{name}'{nearest(name, CALLBACK_TENSORS)}"
                )
        for one in self.logits_processor or ():
            if not callable(one):
                raise ConfigError(f"logits_processor must hold processors (callables), given {one!r}")
        generators = self.generator if isinstance(self.generator, list | tuple) else [self.generator]
        for one in generators:
            if not isinstance(one, torch.Generator) and self.generator is not None:
                raise ConfigError(f"generator must be a torch.Generator or a list of them, given {self.generator!r}")

    @property
    def temperatures(self) -> tuple[float, ...]:
        """The temperature of every level, or a single one."""
        each = tuple(self.temperature) if isinstance(self.temperature, list | tuple) else (self.temperature,)
        if not each or not all(isinstance(one, int | float) for one in each):
            raise ConfigError(f"temperature is a number or one per level, given {self.temperature!r}")
        return each

    @property
    def guidance(self) -> GuidanceSchedule:
        return self.guidance_scale

    def is_guided(self, steps: Sequence[Progress]) -> bool:
        """Whether any of a drawing's steps has a scale other than 1."""
        return any(scale != 1.0 for scale in self.guidance.scales(steps))

    def source_of_draws(self, num_pictures: int) -> Randomness:
        """Where the draws for a batch of `num_pictures` come from.

        Raises:
            ConfigError: another number of generators.
        """
        if isinstance(self.randomness, Mapping):
            return RecordedRandomness(self.randomness)
        if isinstance(self.generator, list | tuple) and len(self.generator) != num_pictures:
            raise ConfigError(
                f"{len(self.generator)} generators were given for {num_pictures} pictures "
                f"({self.num_images_per_prompt} per prompt): give one for all of them, or one per picture"
            )
        return self.randomness or GeneratorRandomness(self.generator)

    def sampling(self, kind: TokenKind) -> TokenSampling:
        """How tokens of a kind are drawn: the caller's logits processors, then temperature, top-k and top-p."""
        levels = []
        for temperature in self.temperatures:
            processors = LogitsProcessorList(self.logits_processor or [])
            if kind.codebook_size is not None:
                processors.extend(token_filters(temperature, min(self.top_k, kind.codebook_size), self.top_p))
            levels.append((processors, float(temperature)))
        return TokenSampling(
            *levels[0], self.do_sample, self.num_inference_steps, levels=tuple(levels) if len(levels) > 1 else ()
        )

    def without_effect(self, steps: Sequence[Progress], is_categorical: bool) -> list[str]:
        """What the caller gave that changes nothing, each in a clause that says why."""
        found = []
        if "guidance_scale" in self.given and self.guidance != ConstantGuidance(1.0) and not self.is_guided(steps):
            found.append(f"guidance_scale, because {self.guidance} is 1 at all {len(steps)} steps")
        if "guidance_layer" in self.given and not self.is_guided(steps):
            found.append("guidance_layer, because no step is guided")
        if is_categorical and "num_inference_steps" in self.given:
            found.append("num_inference_steps, because ids are drawn from a softmax, in one evaluation")
        if not is_categorical:
            idle = [name for name in ("top_k", "top_p", "logits_processor", "output_logits") if name in self.given]
            found += [f"{name}, because the tokens are continuous and have no logits" for name in idle]
        if not self.do_sample and self.soft_codes is None:
            neutral = {"temperature": 1.0, "top_k": 0, "top_p": 1.0}
            idle = [name for name in neutral if name in self.given and getattr(self, name) != neutral[name]]
            idle += [name for name in ("generator", "randomness") if name in self.given]
            found += [f"{name}, because the likeliest id is taken (do_sample=False)" for name in idle]
        if not self.use_cache and "cache_implementation" in self.given:
            found.append("cache_implementation, because use_cache is False")
        return found


OPTION_NAMES = tuple(one.name for one in fields(ImageOptions) if one.name != "given")
#: Options that only pictures have; the others are transformers' too.
PICTURE_OPTIONS = frozenset(OPTION_NAMES) - set(vars(GenerationConfig())) - {"logits_processor", "streamer"}
