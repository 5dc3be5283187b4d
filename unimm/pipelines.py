"""Pictures and texts in one call: a light pipeline for both models, and the choice between it and transformers'."""

from __future__ import annotations

import importlib.util
import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import GenerationConfig, PreTrainedModel
from transformers.utils import ModelOutput

from .errors import ConfigError, DataError
from .models.conditional_generation import UniMMForConditionalGeneration
from .models.folders import load_model, load_processor
from .models.image_generation import UniMMForImageGeneration
from .models.image_options import OPTION_NAMES, PICTURE_OPTIONS

logger = logging.getLogger(__name__)


def pipeline(model: str | os.PathLike | PreTrainedModel, processor: Any = None, **options: Any) -> Any:
    """The pipeline for a model: transformers' `any-to-any` where it can run, `ImageGenerationPipeline` otherwise.

    transformers' pipeline is for conditional models and needs torchvision; its outputs are the same.

    Args:
        model: a model, its folder, or its Hub id.
        processor: of a conditional model; by default the one in its folder.
        options: of `from_pretrained` (dtype, device_map, …), where `model` is no model yet.

    Raises:
        ConfigError: a model of another class, a conditional model without a processor, or options beside a model.
    """
    if isinstance(model, PreTrainedModel):
        if options:
            raise ConfigError(f"{' and '.join(sorted(options))} are for loading a model, which is loaded already")
        light = ImageGenerationPipeline(model, processor)
    else:
        light = ImageGenerationPipeline.from_pretrained(model, processor=processor, **options)
    if isinstance(light.model, UniMMForImageGeneration):
        reason = "transformers has no pipeline for image generators without a language model"
    elif importlib.util.find_spec("torchvision") is None:
        reason = "transformers' any-to-any pipeline needs torchvision, which is not installed; the outputs are the same"
    else:
        import transformers

        logger.info("using transformers' any-to-any pipeline")
        placed = {} if hasattr(light.model, "hf_device_map") else {"device": light.model.device}
        return transformers.pipeline("any-to-any", model=light.model, processor=light.processor, **placed)
    logger.warning("using unimm's ImageGenerationPipeline: %s", reason)
    return light


@dataclass
class ImagePipelineOutput(ModelOutput):
    """Pictures, as in diffusers.

    Args:
        images: PIL pictures, or what `output_type` asked for; those of a prompt follow each other.
    """

    images: Any = None


class ImageGenerationPipeline:
    """Draws from class labels or prompts; with a conditional model it also answers, as transformers' any-to-any pipeline.

    Args:
        model: an image generator or a conditional model.
        processor: of a conditional model.

    Raises:
        ConfigError: a model of another class, a conditional model without a processor, or an image generator with one.
    """

    def __init__(self, model: PreTrainedModel, processor: Any = None):
        if not isinstance(model, UniMMForImageGeneration | UniMMForConditionalGeneration):
            raise ConfigError(
                f"a {type(model).__name__} draws no pictures: give a UniMMForImageGeneration or a "
                "UniMMForConditionalGeneration"
            )
        if isinstance(model, UniMMForConditionalGeneration) and processor is None:
            raise ConfigError(f"a {type(model).__name__} reads prompts through a processor: give processor=")
        if isinstance(model, UniMMForImageGeneration) and processor is not None:
            raise ConfigError(
                f"a {type(model).__name__} reads labels or prompts itself: a processor has no effect on it"
            )
        if processor is not None and not hasattr(processor, "apply_chat_template"):
            raise ConfigError(f"processor must be a UniMMProcessor, given a {type(processor).__name__}")
        self.model = model
        self.processor = processor

    @classmethod
    def from_pretrained(
        cls, path: str | os.PathLike, *, processor: Any = None, **options: Any
    ) -> ImageGenerationPipeline:
        """Loads a model, and its processor where it has one.

        Args:
            path: folder or Hub id.
            processor: instead of the one in the folder.
            options: of the model's `from_pretrained` (dtype, device_map, …).

        Raises:
            ConfigError: no model, or one of another class.
            CheckpointError: files that cannot be read, or a conditional model without a processor.
        """
        model = load_model(path, **options)
        if isinstance(model, UniMMForConditionalGeneration) and processor is None:
            processor = load_processor(path)
        return cls(model, processor)

    def save_pretrained(self, folder: str | os.PathLike) -> None:
        """Writes the model, and its processor where it has one."""
        self.model.save_pretrained(folder)
        if self.processor is not None:
            self.processor.save_pretrained(folder)

    def to(self, *args: Any, **kwargs: Any) -> ImageGenerationPipeline:
        """Moves or casts the model, as `torch.nn.Module.to`."""
        self.model.to(*args, **kwargs)
        return self

    @property
    def device(self) -> torch.device:
        return self.model.device

    @property
    def dtype(self) -> torch.dtype:
        return self.model.dtype

    def __call__(
        self,
        inputs: Any = None,
        *,
        prompt: str | Sequence[str] | None = None,
        labels: torch.Tensor | Sequence[int] | int | None = None,
        text: Any = None,
        images: Any = None,
        generation_mode: str | None = None,
        **options: Any,
    ) -> ImagePipelineOutput | list[Any]:
        """Draws, or answers.

        Args:
            inputs: class labels or prompts for an image generator, `text` for a conditional model.
            prompt: what to draw, one text or several; a conditional model reads them as a user's messages.
            labels: classes to draw.
            text: for a conditional model, as transformers' any-to-any pipeline: texts with one `<|image|>` per picture, or
                one or several conversations.
            images: pictures of the texts.
            generation_mode: `text` or `image`, with `text`.
            options: of `unimm.ImageOptions` (guidance_scale, num_images_per_prompt, generator, output_type, …),
                `negative_prompt` with `prompt`; with `text`, what transformers' pipeline and `generate` take.

        Returns:
            For labels and prompts an `ImagePipelineOutput`. For `text` the records of transformers' any-to-any pipeline:
            `{"input_text": …, "generated_text": …}` or `{"input_text": …, "generated_image": …}`.

        Raises:
            ConfigError: no or several kinds of input, or one that the model does not take.
            DataError: prompts or texts without words.
        """
        is_conditional = isinstance(self.model, UniMMForConditionalGeneration)
        asked: dict[str, Any] = {"prompt": prompt, "labels": labels, "text": text}
        if inputs is not None:
            name = "text" if is_conditional else "prompt" if _holds_text(inputs) else "labels"
            if asked[name] is not None:
                raise ConfigError(f"{name} was given twice, by position and by name")
            asked[name] = inputs
        given = [name for name, one in asked.items() if one is not None] or ["images"] * (images is not None)
        if len(given) != 1:
            raise ConfigError(f"give exactly one of prompt, labels and text, given {' and '.join(given) or 'none'}")
        if given[0] in ("text", "images"):
            if not is_conditional:
                raise ConfigError(
                    f"text and images are read by a UniMMForConditionalGeneration, this is a {type(self.model).__name__}: "
                    "give labels or a prompt"
                )
            return self._any_to_any(asked["text"], images, generation_mode, options)
        if images is not None or generation_mode not in (None, "image"):
            raise ConfigError(f"{given[0]} asks for pictures: pictures to read and other modes belong to text")
        return self._draw(asked["prompt"], asked["labels"], options)

    def _draw(self, prompt: Any, labels: Any, options: dict[str, Any]) -> ImagePipelineOutput:
        options = {"output_type": "pil"} | {name: value for name, value in options.items() if value is not None}
        if isinstance(self.model, UniMMForConditionalGeneration):
            if labels is not None:
                raise ConfigError(f"a {type(self.model).__name__} draws from prompts, not from labels")
            negative = options.pop("negative_prompt", None)
            inputs = self.processor(
                text=self._as_requests(prompt, "prompt"),
                negative_text=None if negative is None else self._as_requests(negative, "negative_prompt"),
                generation_mode="image",
            )
            return ImagePipelineOutput(self.model.generate(**inputs, generation_mode="image", **options).images)
        if prompt is not None and "labels" in self.model.condition.input_names:
            raise ConfigError(
                f"this {type(self.model).__name__} draws from labels and takes no prompts: give labels; prompts are for a "
                "UniMMForConditionalGeneration or a text condition"
            )
        if prompt is not None:
            _check_words(prompt, "prompt")
        condition = {"prompt": prompt} if labels is None else {"labels": labels}
        return ImagePipelineOutput(self.model.generate(**condition, **options).images)

    def _as_requests(self, prompts: Any, name: str) -> list[str]:
        """Prompts as messages of a user who waits for an answer."""
        return [
            self.processor.apply_chat_template(
                [{"role": "user", "content": [{"type": "text", "text": one}]}],
                tokenize=False,
                add_generation_prompt=True,
            )
            for one in _check_words(prompts, name)
        ]

    def _any_to_any(self, text: Any, images: Any, generation_mode: str | None, options: dict[str, Any]) -> list[Any]:
        if generation_mode not in (None, "text", "image"):
            raise ConfigError(f"generation_mode must be 'text' or 'image', given {generation_mode!r}")
        if options.get("output_type") not in (None, "pil"):
            raise ConfigError("records hold PIL pictures: leave output_type out, or give a prompt instead of text")
        if isinstance(text, list | tuple) and not text:
            raise DataError("text is empty: give at least one text or conversation")
        for one in text if isinstance(text, list | tuple) else [text]:
            if not isinstance(one, str | Mapping | list | tuple | None) and not hasattr(one, "messages"):
                raise DataError(f"text must be a string, a conversation or a list of these, given {one!r}")
        if not isinstance(options.get("generate_kwargs"), Mapping | None):
            raise ConfigError(f"generate_kwargs must be a mapping, given {options['generate_kwargs']!r}")
        options.pop("output_type", None)
        known = set(OPTION_NAMES) | PICTURE_OPTIONS | set(vars(GenerationConfig())) | {"generation_config"}
        known -= {"max_new_tokens"}  # the pipeline's own
        generate = {name: options.pop(name) for name in list(options) if name in known}
        generate |= options.pop("generate_kwargs", None) or {}
        return _light_any_to_any(self.model, self.processor)(
            text=text, images=images, generation_mode=generation_mode, generate_kwargs=generate, **options
        )


def _light_any_to_any(model: PreTrainedModel, processor: Any) -> Any:
    """transformers' any-to-any pipeline without its demand for torchvision: this package's processors read with PIL."""
    from transformers.pipelines.any_to_any import AnyToAnyPipeline
    from transformers.pipelines.base import Pipeline

    class LightAnyToAnyPipeline(AnyToAnyPipeline):
        def __init__(self, *args: Any, **kwargs: Any):
            Pipeline.__init__(self, *args, **kwargs)

    placed = {} if hasattr(model, "hf_device_map") else {"device": model.device}
    return LightAnyToAnyPipeline(model=model, processor=processor, task="any-to-any", **placed)


def _check_words(prompts: Any, name: str) -> Sequence[str]:
    prompts = [prompts] if isinstance(prompts, str) else prompts
    if not isinstance(prompts, list | tuple) or not prompts:
        raise DataError(f"{name} must be a string or a list with at least one, given {prompts!r}")
    for index, one in enumerate(prompts):
        if not isinstance(one, str) or not one.strip():
            raise DataError(f"{name} {index} must be a string with at least one word, given {one!r}")
    return prompts


def _holds_text(inputs: Any) -> bool:
    return isinstance(inputs, str) or (isinstance(inputs, list | tuple) and bool(inputs) and isinstance(inputs[0], str))
