"""Recipes: one YAML file per run, every field of which can be given on the command line too."""

from __future__ import annotations

import dataclasses
import importlib.metadata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, Self

import torch
from transformers import TrainingArguments

from ..errors import LicenseError, RecipeError, nearest
from ..hub.licenses import UNKNOWN, License
from . import fields
from .arguments import TokenizerArguments, UniMMTrainingArguments
from .engines import require_engine

_MODEL_KEYS = ("path", "system", "preset", "overrides", "config")
_FLAGS = ("dry_run", "tiny", "overwrite")
# What may change between two starts of one run, because no result depends on it.
FREE_FIELDS = frozenset(
    {
        "training.output_dir",
        "training.resume",
        "training.save_total_limit",
        "training.tensorboard",
        "training.disable_tqdm",
        "training.log_level",
        "training.log_level_replica",
        "training.dataloader_pin_memory",
        "training.run_name",
        "training.push_to_hub",
        "training.hub_model_id",
        "training.hub_token",
        "training.hub_strategy",
        "training.hub_private_repo",
        "training.hub_always_push",
        "training.hub_revision",
        "card.title",
        "card.license",
        "card.license_name",
        "card.license_link",
        "card.tags",
        "card.datasets",
        "card.description",
    }
)


@dataclass(kw_only=True)
class DataSection:
    """Rows of one data card.

    Args:
        card: name or path of a data card.
        split: name of a split.
        weight: share of the rows that are drawn from here, relative to the other entries.
        streaming: read as it goes; None as the card says.
        num_rows: at most so many rows.
        seed: of drawn data sets and of streaming's shuffling.
        options: further arguments of `load_rows`.
    """

    card: str
    split: str = "train"
    weight: float = 1.0
    streaming: bool | None = None
    num_rows: int | None = None
    seed: int = 0
    options: dict[str, Any] = field(default_factory=dict)


@dataclass(kw_only=True)
class EvaluationSection:
    """How a model is judged.

    Args:
        data: rows for the loss (or the reconstruction) on held-out rows, every `eval_steps`.
        benchmark: `shapes` or `digits`, run on the finished conditional model; its table goes into the card.
        num: pictures and questions per row of the table.
        seed: of the draws.
        sampling: arguments of `generate_image`.
        options: of the benchmark's data set.
    """

    data: list[DataSection] = field(default_factory=list)
    benchmark: str | None = None
    num: int = 1000
    seed: int = 0
    sampling: dict[str, Any] = field(default_factory=dict)
    options: dict[str, Any] = field(default_factory=dict)


@dataclass(kw_only=True)
class SamplesSection:
    """The grids of pictures that a run draws.

    Args:
        every_steps: between two grids; 0 draws none.
        num: pictures per grid, where they come from rows or classes.
        prompts: what to draw, for a model that takes texts.
        labels: classes to draw, for a class-conditional model.
        seed: of the draws, the same in every grid.
        sampling: arguments of `generate`.
    """

    every_steps: int = 0
    num: int = 16
    prompts: list[str] = field(default_factory=list)
    labels: list[int] = field(default_factory=list)
    seed: int = 0
    sampling: dict[str, Any] = field(default_factory=dict)


@dataclass(kw_only=True)
class CardSection:
    """What only the author knows for the model card.

    Args:
        title: first line; the class and folder when not given.
        license: of the weights, as the Hub spells it; None and `unknown` state none, and such weights cannot be pushed.
        license_name: of the terms, where the license is `other`.
        license_link: where those terms stand.
        tags: beside those that follow from the model.
        datasets: Hub ids; the data cards' names when not given.
        description: a paragraph.
    """

    title: str | None = None
    license: str | None = None
    license_name: str | None = None
    license_link: str | None = None
    tags: list[str] = field(default_factory=list)
    datasets: list[str] = field(default_factory=list)
    description: str | None = None

    def __post_init__(self) -> None:
        # Nobody should learn of a misspelt licence after the training.
        self.weights_license()

    def weights_license(self) -> License:
        """The licence; unknown where none is stated.

        Raises:
            LicenseError: none that the Hub has, or a name without `other`.
        """
        if self.license is None or self.license == UNKNOWN:
            if self.license_name or self.license_link:
                raise LicenseError("card.license_name and card.license_link go with card.license: other")
            return License()
        return License.stated(self.license, self.license_name, self.license_link)


@dataclass(kw_only=True)
class LossSection:
    """What a tokenizer's training adds to its own loss terms.

    Args:
        perceptual_weight: of LPIPS (https://huggingface.co/papers/1801.03924).
        perceptual_features: file of VGG16's weights.
        perceptual_linear: file of LPIPS' linear weights.
        adversarial_weight: of the generator's loss against a discriminator.
        adversarial_start_step: first step at which the discriminator is trained and counts.
        adversarial_loss: which loss.
        adaptive_weight: balance the adversarial and the other gradients at the decoder's last layer
            (https://huggingface.co/papers/2012.09841).
        max_adaptive_weight: largest balance.
        discriminator: config with its `model_type`, `unimm_patch_discriminator` or `unimm_style_discriminator`.
    """

    perceptual_weight: float = 0.0
    perceptual_features: str | None = None
    perceptual_linear: str | None = None
    adversarial_weight: float = 0.0
    adversarial_start_step: int = 0
    adversarial_loss: Literal["hinge", "vanilla", "non_saturating"] = "hinge"
    adaptive_weight: bool = True
    max_adaptive_weight: float = 1e4
    discriminator: dict[str, Any] = field(default_factory=lambda: {"model_type": "unimm_patch_discriminator"})

    def __post_init__(self) -> None:
        if min(self.perceptual_weight, self.adversarial_weight, self.adversarial_start_step) < 0:
            raise RecipeError(
                "loss: perceptual_weight, adversarial_weight and adversarial_start_step must be at least 0"
            )


@dataclass(kw_only=True)
class Recipe:
    """What the recipes of all stages share.

    Args:
        model: what is trained: `{path}`, `{system, preset, overrides}` or `{config}`.
        data: rows to train on; several entries are mixed by weight.
        training: arguments of the stage.
        evaluation: how the model is judged.
        samples: grids of pictures.
        card: for the model card.
        tiny: what `--tiny` puts in: sizes (whole numbers) of the model and the training, and stand-ins for data and
            tokenizers that do not come along.
        dry_run: describe the run instead of running it.
        overwrite: remove what an earlier run wrote into the folder.
    """

    stage: ClassVar[str]
    arguments_class: ClassVar[type]

    model: dict[str, Any]
    data: list[DataSection]
    training: dict[str, Any]
    evaluation: EvaluationSection = field(default_factory=EvaluationSection)
    samples: SamplesSection = field(default_factory=SamplesSection)
    card: CardSection = field(default_factory=CardSection)
    tiny: dict[str, Any] = field(default_factory=dict)
    dry_run: bool = False
    overwrite: bool = False
    source: str = field(default="the recipe", init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if not self.data:
            raise RecipeError("data needs at least one entry, such as {card: shapes}")
        if any(section.weight <= 0 for section in self.data):
            raise RecipeError("data: every weight must be positive; leave an entry out instead of giving it 0")
        _check_model_section(self.model)

    @classmethod
    def parse(cls, words: Sequence[str]) -> Self:
        """The recipe that a command line describes.

        Args:
            words: `--config FILE` and any field: `--training.max_steps 10` or `--max_steps 10`,
                `--model.backbone_config.hidden_size 64`, `--data.options.resolution 32`, `--dry_run`, `--tiny`,
                `--overwrite`.

        Raises:
            RecipeError: an unknown field, a wrong type or a missing value.
        """
        given = fields.parse_words(words)
        file = given.pop("config", None)
        if file is not None and not isinstance(file, str):
            raise RecipeError(f"command line: --config takes one file, given {file!r}")
        values = fields.read_yaml(file) if file is not None else {}
        return cls.from_values(values, given, source=file or "the recipe")

    @classmethod
    def from_values(
        cls, values: Mapping[str, Any], given: Mapping[str, Any] | None = None, *, source: str = "the recipe"
    ) -> Self:
        """A recipe from a file's values and, above them, dotted fields of the command line.

        Args:
            values: as in a YAML file.
            given: as in `parse`.
            source: what error messages call the file.

        Raises:
            RecipeError: an unknown field, a wrong type or a missing value.
        """
        given = dict(given or {})
        flags = {name: _flag(name, given.pop(name)) for name in _FLAGS if name in given}
        for name in ("dry_run", "overwrite"):
            if name in values:
                raise RecipeError(f"{source}: '{name}' is given on the command line (--{name}), not in a recipe")
        dotted = {cls._full_name(name): value for name, value in given.items()}

        def origin(name: str) -> str:
            same = any(name == one or name.startswith(f"{one}.") or one.startswith(f"{name}.") for one in dotted)
            return "command line" if same and name else source

        values = _with_placed_model(values)
        if flags.pop("tiny", False):
            values = cls._tiny(values, source)
        merged = _deep_copy(values)
        for name, value in dotted.items():
            fields.set_dotted(merged, _place_model_name(name, merged), value)
        recipe = fields.build(cls, merged, origin)
        recipe.dry_run, recipe.overwrite = flags.get("dry_run", False), flags.get("overwrite", False)
        recipe.source = source
        types = fields.field_types(cls.arguments_class)
        for key in recipe.training:
            if key not in types:
                raise RecipeError(fields.unknown_field(origin, f"training.{key}", key, "training", types))
        recipe.training = {
            key: fields.convert(value, types[key], origin, f"training.{key}") for key, value in recipe.training.items()
        }
        if not recipe.training.get("output_dir"):
            raise RecipeError(
                f"{source}: training needs the field 'output_dir', the folder of the run (--output_dir out/run)"
            )
        return recipe

    def arguments(self) -> Any:
        """The stage's arguments object.

        Raises:
            RecipeError: values that do not go together.
            MissingDependencyError: DeepSpeed is asked for and not installed.
        """
        require_engine(self.training)
        given = dict(self.training)
        if (
            self.dry_run
            and "use_cpu" in fields.field_types(self.arguments_class)
            and not torch.accelerator.is_available()
        ):
            # A description needs no accelerator, whatever precision the run will have.
            given["use_cpu"] = True
        try:
            return self.arguments_class(**given)
        except RecipeError as error:
            raise RecipeError(f"{self.source}: training: {error}") from error
        except (ValueError, TypeError) as error:
            raise RecipeError(f"{self.source}: training: {error}") from error

    def resolved(self) -> dict[str, Any]:
        """All that the run's results depend on, as plain values for `recipe.yaml`.

        Of the training arguments: those given, and those where this package's default is not transformers'.
        """
        values = fields.plain(self)
        for name in ("dry_run", "overwrite", "tiny", "source"):
            values.pop(name, None)
        values["training"] = fields.plain({**_own_defaults(self.arguments_class), **self.training})
        # What is resolved is written into the run's folder, and with it published.
        values["training"].pop("hub_token", None)
        return values

    def header(self) -> str:
        """Lines that say what wrote a resolved recipe, and how to run it again."""
        versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in ("transformers", "torch"))
        return f"run again: unimm {self.stage} --config recipe.yaml --output_dir FOLDER\nwith {versions}"

    @classmethod
    def _full_name(cls, name: str) -> str:
        first = name.split(".")[0]
        own, training = fields.field_types(cls), fields.field_types(cls.arguments_class)
        if first in own and first not in _FLAGS:
            return name
        if name in training:
            return f"training.{name}"
        raise RecipeError(f"command line: there is no field --{name}{nearest(name, [*own, *training, 'config'])}")

    @classmethod
    def _tiny(cls, values: Mapping[str, Any], source: str) -> dict[str, Any]:
        changes = values.get("tiny")
        if not changes or not isinstance(changes, Mapping):
            raise RecipeError(f"{source} has no 'tiny' section: --tiny does not know which sizes to make small")
        for section in changes:
            if section not in fields.field_types(cls) or section in _FLAGS:
                raise RecipeError(fields.unknown_field(lambda name: source, f"tiny.{section}", section, "tiny", values))
            if section in ("model", "training"):
                for name, value in _leaves(changes[section], f"tiny.{section}"):
                    if not _is_size(value):
                        raise RecipeError(
                            f"{source}: {name} is {value!r}, but the tiny section overrides sizes only: whole numbers"
                        )
        merged = dict(values)
        for section, change in changes.items():
            if section == "model":
                base = dict(merged.get("model") or {})
                part = "config" if "config" in base else "overrides"
                base[part] = fields.merge(base.get(part) or {}, change)
                merged["model"] = base
            elif section in ("tokenizer", "text_encoder", "data", "processor"):
                merged[section] = change
            else:
                merged[section] = fields.merge(merged.get(section) or {}, change)
        return merged


@dataclass(kw_only=True)
class TokenizerRecipe(Recipe):
    """Trains a visual tokenizer.

    Args:
        image_size: pixels of the training pictures, a side or `[height, width]`.
        loss: perceptual and adversarial terms.
        collator: further arguments of the collator.
    """

    stage = "tokenizer"
    arguments_class = TokenizerArguments

    image_size: int | list[int]
    loss: LossSection = field(default_factory=LossSection)
    collator: dict[str, Any] = field(default_factory=dict)

    @property
    def height_and_width(self) -> tuple[int, int]:
        """Pixels."""
        sides = [self.image_size] * 2 if isinstance(self.image_size, int) else self.image_size
        if len(sides) != 2 or min(sides) < 1:
            raise RecipeError(f"image_size must be a side or [height, width] in pixels, given {self.image_size}")
        return sides[0], sides[1]


@dataclass(kw_only=True)
class PretrainRecipe(Recipe):
    """Trains an image generator by likelihood.

    Args:
        tokenizer: a trained visual tokenizer to put in, as a path or Hub id, `{path}` or `{config}`; None where the
            model brings its own.
        text_encoder: reads the captions of a text-conditional model, as a path or Hub id, or fields of `TextEncoderConfig`
            (`words` may name a vocabulary as in `processor`); None where the model's config names its own.
        collator: further arguments of the collator.
    """

    stage = "pretrain"
    arguments_class = UniMMTrainingArguments

    tokenizer: str | dict[str, Any] | None = None
    text_encoder: str | dict[str, Any] | None = None
    collator: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        super().__post_init__()
        if isinstance(self.tokenizer, dict) and sorted(self.tokenizer) not in (["config"], ["path"]):
            raise RecipeError(
                f"tokenizer must be a path or Hub id, {{path: …}} or {{config: …}}, given the keys {sorted(self.tokenizer)}"
            )


@dataclass(kw_only=True)
class ProcessorSection:
    """What turns texts and pictures into batches of a conditional model; exactly one of these.

    Args:
        path: folder or Hub id of a saved processor.
        words: a vocabulary of whole words: `shapes`, `digits`, a text file with one word a line, or the words.
    """

    path: str | None = None
    words: str | list[str] | None = None

    def __post_init__(self) -> None:
        if (self.path is None) == (self.words is None):
            raise RecipeError("processor needs exactly one of 'path' and 'words'")


@dataclass(kw_only=True)
class SftRecipe(PretrainRecipe):
    """Trains a conditional model on conversations with pictures.

    Args:
        processor: None takes the one saved beside the model's path.
    """

    stage = "sft"

    processor: ProcessorSection | None = None


RECIPES: dict[str, type[Recipe]] = {one.stage: one for one in (TokenizerRecipe, PretrainRecipe, SftRecipe)}


def _flag(name: str, value: Any) -> bool:
    if not isinstance(value, bool):
        raise RecipeError(f"command line: --{name} is a flag (true or false), given {value!r}")
    return value


def _check_model_section(section: Mapping[str, Any]) -> None:
    for key in section:
        if key not in _MODEL_KEYS:
            raise RecipeError(f"model has no key '{key}'{nearest(key, _MODEL_KEYS)}")
    if sum(key in section for key in ("path", "system", "config")) != 1:
        raise RecipeError(f"model needs exactly one of path, system and config, given {sorted(section)}")


def _place_model_name(name: str, values: Mapping[str, Any]) -> str:
    """`model.part.field` means the config's field: `model.overrides.part.field`, or `model.config.…` where that stands."""
    first, _, rest = name.partition(".")
    if first != "model" or not rest or rest.split(".")[0] in _MODEL_KEYS:
        return name
    section = values.get("model")
    part = "config" if isinstance(section, Mapping) and "config" in section else "overrides"
    return f"model.{part}.{rest}"


def _with_placed_model(values: Mapping[str, Any]) -> dict[str, Any]:
    placed = dict(values)
    tiny = placed.get("tiny")
    if isinstance(tiny, Mapping) and isinstance(tiny.get("model"), Mapping):
        model = tiny["model"]
        for key in ("config", "overrides"):
            if key in model and len(model) == 1:
                placed["tiny"] = {**tiny, "model": model[key]}
    return placed


def _leaves(value: Any, name: str) -> list[tuple[str, Any]]:
    if isinstance(value, Mapping):
        return [leaf for key, one in value.items() for leaf in _leaves(one, f"{name}.{key}")]
    return [(name, value)]


def _is_size(value: Any) -> bool:
    if isinstance(value, list):
        return all(_is_size(one) for one in value)
    return isinstance(value, int) and not isinstance(value, bool)


def _own_defaults(arguments_class: type) -> dict[str, Any]:
    if not issubclass(arguments_class, TrainingArguments):
        return {
            one.name: one.default
            for one in dataclasses.fields(arguments_class)
            if one.default is not dataclasses.MISSING
        }
    theirs = {one.name: one.default for one in dataclasses.fields(TrainingArguments)}
    return {
        one.name: one.default
        for one in dataclasses.fields(arguments_class)
        if one.name != "output_dir" and (one.name not in theirs or theirs[one.name] != one.default)
    }


def _deep_copy(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _deep_copy(one) for key, one in value.items()}
    return [_deep_copy(one) for one in value] if isinstance(value, list) else value
