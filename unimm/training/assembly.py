"""From a recipe's sections to the model, its processor and what it draws during training."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from transformers import AutoConfig, AutoModel, AutoProcessor, PreTrainedModel

from ..data.transforms import to_pil
from ..errors import RecipeError, nearest
from .callbacks import Sampler
from .fields import merge, read_yaml
from .outputs import FINAL
from .recipes import PretrainRecipe, ProcessorSection, Recipe, SamplesSection, SftRecipe, TokenizerRecipe

logger = logging.getLogger(__name__)

_VOCABULARIES = ("shapes", "digits")


def build_parts(recipe: Recipe, *, on_meta: bool = False) -> tuple[PreTrainedModel, Any]:
    """The model that a recipe trains, and its processor where it has one.

    Args:
        recipe: of any stage.
        on_meta: give the model without weights, and do not ask for a tokenizer that is still to be trained.

    Raises:
        RecipeError: sections that do not go together.
        ConfigError: parts of the model that do not fit each other.
    """
    from ..models import UniMMForImageGeneration, build_config, build_model

    section, tokenizer_path = _with_tokenizer(recipe, on_meta)
    section = _with_text_encoder(section, getattr(recipe, "text_encoder", None))
    processor = None
    if isinstance(recipe, SftRecipe):
        section, processor = _with_processor(section, recipe.processor, tokenizer_path)
    if not on_meta:
        model = build_model(section, tokenizer_path)
        if isinstance(model, UniMMForImageGeneration) and model.condition.needs_empty_prompt:
            model.condition.learn_null(model.text_encoder)
        return model, processor
    if tokenizer_path is not None:
        section = _changed(section, {"tokenizer_config": AutoConfig.from_pretrained(tokenizer_path).to_dict()})
    with torch.device("meta"):
        return AutoModel.from_config(build_config(section)), processor


def picture_sampler(model: PreTrainedModel, processor: Any, section: SamplesSection) -> Sampler:
    """What draws the grids of a training run.

    Args:
        model: the model, for its kind.
        processor: of a conditional model.
        section: of the recipe.

    Raises:
        RecipeError: prompts for a model that takes classes, or the other way round.
    """
    from ..evaluation.pictures import draw_pictures
    from ..models import UniMMForConditionalGeneration, UniMMForImageGeneration

    if isinstance(model, UniMMForConditionalGeneration):
        if not section.prompts or section.labels:
            raise RecipeError(
                f"samples: a {type(model).__name__} draws from prompts: give samples.prompts (and no samples.labels)"
            )

        def from_prompts(current: Any, step: int) -> tuple[Sequence[Image.Image], Sequence[str]]:
            drawn = draw_pictures(current, processor, section.prompts, seed=section.seed, **section.sampling)
            return [Image.fromarray(one) for one in drawn], section.prompts

        return from_prompts
    if isinstance(model, UniMMForImageGeneration) and model.condition.takes_text:
        if not section.prompts or section.labels:
            raise RecipeError(
                f"samples: this {type(model).__name__} draws from prompts: give samples.prompts (and no samples.labels)"
            )
        return _generator_sampler(section, "prompt", section.prompts)
    classes = getattr(getattr(model.config, "condition_config", None), "num_classes", None)
    if section.prompts or classes is None:
        raise RecipeError(
            f"samples: this {type(model).__name__} draws from class labels: give samples.labels (and no samples.prompts)"
            if classes is not None
            else "samples: grids during training are drawn from classes or prompts; set every_steps to 0"
        )
    return _generator_sampler(section, "labels", section.labels or [index % classes for index in range(section.num)])


def _generator_sampler(section: SamplesSection, name: str, given: Sequence[Any]) -> Sampler:
    """Draws from an image generator: `name` is the argument of `generate` that takes what is `given`."""

    def draw(current: Any, step: int) -> tuple[Sequence[Image.Image], Sequence[str]]:
        generators = [torch.Generator(current.device).manual_seed(section.seed + index) for index in range(len(given))]
        images = current.generate(**{name: given}, generator=generators, **section.sampling).images
        if images is None:
            raise RecipeError("samples: a generator without a tokenizer gives ids, no pictures: set every_steps to 0")
        return to_pil(images.float().clamp(-1, 1)), [str(one) for one in given]

    return draw


def _with_tokenizer(recipe: Recipe, on_meta: bool) -> tuple[dict[str, Any], str | None]:
    """The model section, and the path of a trained tokenizer."""
    from ..models import build_config

    tokenizer = recipe.tokenizer if isinstance(recipe, PretrainRecipe) else None
    if tokenizer is None:
        return dict(recipe.model), None
    if isinstance(tokenizer, dict) and "config" in tokenizer:
        return _changed(recipe.model, {"tokenizer_config": tokenizer["config"]}), None
    path = tokenizer if isinstance(tokenizer, str) else tokenizer["path"]
    is_folder = (Path(path) / "config.json").is_file()
    looks_local = path.startswith((".", "/")) or path.count("/") != 1
    if is_folder or not (looks_local or on_meta):
        return dict(recipe.model), path
    maker = _tokenizer_recipe(path, recipe)
    if on_meta and maker is not None:
        logger.info("there is no tokenizer at '%s' yet: taking the one that %s trains", path, maker.source)
        return _changed(recipe.model, {"tokenizer_config": build_config(maker.model).to_dict()}), None
    has_own = "tokenizer_config" in (recipe.model.get("config") or {})
    if on_meta and (has_own or recipe.model.get("path", recipe.model.get("system")) is not None):
        logger.warning("there is no tokenizer at '%s' yet: figures are those of the model's own", path)
        return dict(recipe.model), None
    command = "unimm tokenizer" if maker is None else f"unimm tokenizer --config {maker.source}"
    raise RecipeError(
        f"{recipe.source}: there is no tokenizer at '{path}' (a folder with a config.json, or a Hub id owner/name): train "
        f"it first with `{command}`"
    )


def _tokenizer_recipe(path: str, recipe: Recipe) -> TokenizerRecipe | None:
    """The tokenizer recipe beside a recipe that writes to `path`."""
    for file in sorted(Path(recipe.source).parent.glob("*.yaml")) if Path(recipe.source).is_file() else []:
        values = read_yaml(file)
        training = values.get("training")
        folder = training.get("output_dir") if isinstance(training, dict) else None
        if "image_size" in values and folder is not None and Path(folder) / FINAL == Path(path):
            return TokenizerRecipe.from_values(values, source=str(file))
    return None


def _with_processor(
    section: dict[str, Any], processor: ProcessorSection | None, tokenizer_path: str | None
) -> tuple[dict[str, Any], Any]:
    """The model section with the processor's token ids in it, and the processor."""
    if processor is None or processor.path is not None:
        path = section.get("path") if processor is None else processor.path
        if path is None:
            raise RecipeError(
                "processor is missing: give {path: …} or {words: …}; only a model from a path brings its own"
            )
        return section, AutoProcessor.from_pretrained(path)
    from ..models import UniMMImageProcessor, UniMMProcessor, word_tokenizer

    words = word_tokenizer(vocabulary_words(processor.words or []))
    values = dict(section.get("config") or section.get("overrides") or {})
    if tokenizer_path is not None:
        visual = AutoConfig.from_pretrained(tokenizer_path)
    elif values.get("tokenizer_config"):
        fields = dict(values["tokenizer_config"])
        visual = AutoConfig.for_model(fields.pop("model_type", "unimm_vq_tokenizer"), **fields)
    else:
        raise RecipeError(
            "a conditional model needs a visual tokenizer: give tokenizer: FOLDER, or model.tokenizer_config"
        )
    size = values.get("image_size", 256)
    height, width = (size, size) if isinstance(size, int) else size
    with torch.device("meta"):
        num_visual_tokens = AutoModel.from_config(visual).layout_for(height, width).length
    vision = values.get("vision_config")
    num_features, read_size = 0, {"height": height, "width": width}
    if vision:
        num_features = (vision["image_size"] // vision["patch_size"]) ** 2
        read_size = {"height": vision["image_size"], "width": vision["image_size"]}
    made = UniMMProcessor(
        UniMMImageProcessor(size=read_size),
        words,
        num_visual_tokens=num_visual_tokens,
        num_image_features=num_features,
    )
    ids = {
        f"{name}_token_id": words.convert_tokens_to_ids(f"<|{name}|>")
        for name in ("image", "visual", "image_start", "image_end")
    }
    text = {
        "vocab_size": len(words),
        "bos_token_id": words.bos_token_id,
        "eos_token_id": words.eos_token_id,
        "pad_token_id": words.pad_token_id,
    }
    own = {"text_config": text, "null_prompt_ids": list(made.null_prompt_ids), **ids}
    return _changed(section, merge(own, values)), made


def _with_text_encoder(section: dict[str, Any], encoder: str | Mapping[str, Any] | None) -> dict[str, Any]:
    """The model section with a recipe's text encoder in the place of its own."""
    if encoder is None:
        return section
    fields: dict[str, Any] = {"path": encoder} if isinstance(encoder, str) else dict(encoder)
    if isinstance(fields.get("words"), str):
        fields["words"] = vocabulary_words(fields["words"], "text_encoder.words")
    # What is not given is that of no encoder: a path and an encoder_config exclude each other.
    unset = dict.fromkeys(("path", "revision", "encoder_config", "words"))
    return _changed(section, {"condition_config": {"text_encoder": {**unset, **fields}}})


def vocabulary_words(words: str | Sequence[str], field: str = "processor.words") -> list[str]:
    """The words of a vocabulary: the name of a built-in one, a text file with one word a line, or the words themselves.

    Args:
        words: which.
        field: what the error calls it.

    Raises:
        RecipeError: neither a known name nor a file.
    """
    if not isinstance(words, str):
        return list(words)
    if words == "shapes":
        from ..data.shapes import vocabulary

        return vocabulary()
    if words == "digits":
        from ..data.digits import DIGIT_NAMES, QUESTION, digit_caption
        from ..data.shapes import tokens_of

        return sorted(
            {word for text in [QUESTION, *map(digit_caption, range(len(DIGIT_NAMES)))] for word in tokens_of(text)}
        )
    if Path(words).is_file():
        return Path(words).read_text(encoding="utf-8").split()
    raise RecipeError(f"{field}: '{words}' is no file and no built-in vocabulary{nearest(words, _VOCABULARIES)}")


def _changed(section: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """A model section with some config fields replaced."""
    part = "config" if "config" in section else "overrides"
    return {**section, part: merge(section.get(part) or {}, changes)}
