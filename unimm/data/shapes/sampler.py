"""The fast path without any library of data sets: rows of the world by number."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from ...checks import require_count
from ...errors import ConfigError, nearest
from .degradations import REPAIRS
from .edits import edit_vocabulary
from .language import Claims, caption_vocabulary, claims_of, describe
from .questions import (
    DEFAULT_QUESTION_TYPES,
    Question,
    ask,
    check_question_types,
    question_vocabulary,
    sample_question,
)
from .rendering import MINIMUM_WORD_RESOLUTION, check_resolution, render
from .sampling import SceneSampler, WorldConfig
from .scenes import Scene
from .sequences import SUBJECT_NAMES
from .splits import Draws, check_split

#: Streams of random decisions; each task has its own, so that no two tasks show the same scenes.
STREAMS = {
    "captions": 1,
    "questions": 2,
    "edits": 3,
    "preferences": 4,
    "subjects": 5,
    "layouts": 6,
    "restoration": 7,
    "videos": 8,
    "descriptions": 9,
}

#: Share of the test split's scenes that have a held-out combination when nothing else is said.
DEFAULT_HELD_OUT_SHARE = 0.5


@dataclass(frozen=True, slots=True)
class ShapesSample:
    """A picture with what can be said about it.

    Args:
        image: uint8 `(resolution, resolution, 3)`.
        scene: what is drawn.
        kind: the caption's kind; `question` when the scene was made for a question.
        caption: a sentence that is true of the scene; empty when the scene was made for a question.
        claims: what the caption states; None when there is no caption.
        questions: questions about the picture with their answers.
    """

    image: np.ndarray
    scene: Scene
    kind: str
    caption: str
    claims: Claims | None
    questions: tuple[Question, ...]


def world_config(
    split: str, *, held_out_share: float | None = None, held_out_only: bool = False, **options: Any
) -> WorldConfig:
    """A `WorldConfig` with the split's usual share of held-out combinations.

    Args:
        split: one of `train`, `validation`, `test`.
        held_out_share: share of scenes with a held-out combination; by default 0.5 in `test`, else 0.
        held_out_only: short for a share of 1.
        **options: fields of `WorldConfig`.

    Raises:
        ConfigError: an unknown option, or both ways of giving the share.
    """
    check_split(split)
    known = [field.name for field in fields(WorldConfig)]
    for name in options:
        if name not in known:
            raise ConfigError(f"the world Shapes has no option {name!r}{nearest(name, known)}")
    if held_out_only:
        if held_out_share not in (None, 1.0):
            raise ConfigError(f"held_out_only means a share of 1, but held_out_share is {held_out_share}; give one")
        held_out_share = 1.0
    if held_out_share is None:
        held_out_share = DEFAULT_HELD_OUT_SHARE if split == "test" else 0.0
    return WorldConfig(held_out_share=held_out_share, **options)


class ShapesSampler(Sequence[ShapesSample]):
    """Rows of the world Shapes by number; row i depends on seed, split, task and i alone.

    Args:
        split: one of `train`, `validation`, `test`.
        task: `captions` draws scenes of the wanted kinds; `questions` draws scenes made for balanced
            questions.
        seed: seed of the whole data set.
        resolution: side of the pictures in pixels.
        num_rows: length; any row number below 2**63 can be asked for.
        num_questions: questions per row of the task `captions`.
        question_types: which questions are asked, some of `QUESTION_TYPES`.
        held_out_share: share of scenes with a held-out combination; by default 0.5 in `test`, else 0.
        held_out_only: only scenes with a held-out combination (`test` alone).
        **options: fields of `WorldConfig`: kinds, kind_weights, attributes, optional_attributes, backgrounds,
            textures, sizes, words.
    """

    def __init__(
        self,
        split: str = "train",
        *,
        task: str = "captions",
        seed: int = 0,
        resolution: int = 32,
        num_rows: int = 1_000_000,
        num_questions: int = 1,
        question_types: Sequence[str] = DEFAULT_QUESTION_TYPES,
        held_out_share: float | None = None,
        held_out_only: bool = False,
        **options: Any,
    ) -> None:
        require_count(num_rows, "num_rows")
        require_count(seed, "seed", least=0)
        if task not in ("captions", "questions"):
            raise ConfigError(
                f"ShapesSampler has the tasks 'captions' and 'questions', but got {task!r}; "
                "shapes_dataset has the others"
            )
        check_resolution(resolution)
        self.split = split
        self.task = task
        self.seed = seed
        self.resolution = resolution
        self.num_rows = num_rows
        self.num_questions = num_questions
        self.question_types = check_question_types(question_types)
        self.config = world_config(split, held_out_share=held_out_share, held_out_only=held_out_only, **options)
        if "texture" in self.question_types and len(self.config.textures) == 1:
            raise ConfigError("questions about textures need textures; give textures=('solid', 'striped', 'dotted')")
        check_word_resolution(self.config, self.question_types if task == "questions" else (), resolution)
        self._scenes = SceneSampler(split, self.config)

    def __len__(self) -> int:
        return self.num_rows

    def __getitem__(self, index):
        if isinstance(index, slice):
            return [self[position] for position in range(*index.indices(self.num_rows))]
        if index < 0:
            index += self.num_rows
        if not 0 <= index < self.num_rows:
            raise IndexError(f"row {index} of {self.num_rows}")
        return self.sample(index)

    def __iter__(self) -> Iterator[ShapesSample]:
        return (self.sample(index) for index in range(self.num_rows))

    def sample(self, index: int) -> ShapesSample:
        """Row `index`, which may lie beyond the length."""
        draws = Draws(self.seed, self.split, index, STREAMS[self.task])
        if self.task == "questions":
            scene, question = sample_question(self._scenes, draws, self.question_types)
            return ShapesSample(render(scene, self.resolution), scene, "question", "", None, (question,))
        scene, claims = draw_scene(self._scenes, draws)
        questions = tuple(ask(scene, draws, self.question_types) for _ in range(self.num_questions))
        image = render(scene, self.resolution)
        return ShapesSample(image, scene, claims.kind, describe(claims), claims, questions)


def draw_scene(scenes: SceneSampler, draws: Draws) -> tuple[Scene, Claims]:
    """A scene of one of the configured kinds and what its caption states."""
    config = scenes.config
    kind = draws.weighted(config.kinds, config.kind_weights) if config.kind_weights else draws.choice(config.kinds)
    scene = scenes.sample(draws, kind)
    attributes = config.attributes
    if config.optional_attributes:
        attributes += tuple(name for name in config.optional_attributes if draws.uniform() < 0.5)
    motion = draws.choice(("left", "right", "up", "down")) if kind == "video" else None
    return scene, claims_of(scene, kind, attributes, motion)


def check_word_resolution(config: WorldConfig, question_types: Sequence[str], resolution: int) -> None:
    """Raises a `ConfigError` where words would be drawn too small to read."""
    if ("word" in config.kinds or "word" in question_types) and resolution < MINIMUM_WORD_RESOLUTION:
        raise ConfigError(
            f"written words are legible from {MINIMUM_WORD_RESOLUTION} pixels a side on, but the resolution "
            f"is {resolution}; raise it or drop the kind and question type 'word'"
        )


def vocabulary() -> list[str]:
    """All words of captions, questions, answers and instructions, sorted; `?` and `,` are words too."""
    instructions = {word for text in REPAIRS.values() for word in text.split()}
    return sorted(caption_vocabulary() | question_vocabulary() | edit_vocabulary() | instructions | set(SUBJECT_NAMES))
