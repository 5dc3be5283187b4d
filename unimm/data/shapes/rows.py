"""Rows of every task of the world Shapes in the package's one row schema, by number."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import fields
from typing import Any

import numpy as np

from ...errors import ConfigError, DataError, nearest
from .alterations import alter_scene
from .degradations import REPAIRS, degrade
from .edits import DEFAULT_EDIT_TYPES, check_edit_types, sample_edit
from .language import describe
from .questions import DEFAULT_QUESTION_TYPES, ask, check_question_types, sample_question
from .rendering import check_resolution, render, segment
from .sampler import STREAMS, check_word_resolution, draw_scene, world_config
from .sampling import SceneSampler, WorldConfig
from .scenes import Scene
from .sequences import sample_subject, sample_video
from .splits import Draws

TASKS = tuple(STREAMS)

#: Colours of the classes of `segment` in a layout picture: background, the six shapes, a word.
LAYOUT_PALETTE = np.array(
    [[0, 0, 0], [230, 60, 60], [60, 180, 75], [65, 105, 225], [255, 225, 60], [240, 50, 230], [70, 220, 220],
     [255, 255, 255]],
    dtype=np.uint8,
)  # fmt: skip

#: Options of single tasks, beside those of `WorldConfig`, with their defaults.
TASK_OPTIONS: dict[str, dict[str, Any]] = {
    "captions": {},
    "descriptions": {},
    "questions": {"question_types": DEFAULT_QUESTION_TYPES, "num_questions": 1},
    "edits": {"edit_types": DEFAULT_EDIT_TYPES},
    "preferences": {"altered_attribute": None},
    "subjects": {"num_views": 4},
    "layouts": {},
    "restoration": {"degradations": tuple(REPAIRS)},
    "videos": {"num_frames": 8},
}


#: What a picture's description is asked with.
DESCRIBE = "what is there?"


def message(role: str, *content: str | None) -> dict[str, Any]:
    """A message; each None stands for the next picture of the row."""
    return {
        "role": role,
        "content": [
            {"type": "image", "text": None} if part is None else {"type": "text", "text": part} for part in content
        ],
    }


class ShapesRows(Sequence[dict[str, Any]]):
    """Rows of one task as plain dictionaries; row i is a function of the arguments and i alone.

    Every row has `id`, `images` (uint8 arrays `(resolution, resolution, 3)`), `messages` (whose image
    entries stand for the pictures in order), `source` and `scene` (`Scene.to_dict`). Some tasks have more:

    | task | images | messages | more |
    |---|---|---|---|
    | captions | picture | user: caption; assistant: picture | `caption`, `kind` |
    | descriptions | picture | user: picture, `DESCRIBE`; assistant: caption | `caption`, `kind` |
    | questions | picture | user: picture, question; assistant: answer; … | `label`, `question_type` of the first |
    | edits | before, after | user: before, instruction; assistant: after | `edit_type`, `scene_before` |
    | preferences | chosen, rejected | user: caption | `caption`, `chosen`, `rejected`, `altered` |
    | subjects | views | per view, user: naming caption; assistant: picture | `subject`, `captions` |
    | layouts | layout, picture | user: layout, caption; assistant: picture | `caption`, `kind` |
    | restoration | spoiled, clean | user: spoiled, instruction; assistant: clean | `degradation` |
    | videos | frames | user: caption; assistant: frames | `caption`; `scene` is the first frame's |

    `chosen` and `rejected` are numbers of pictures; `label` is the answer; a subject's naming captions use
    its invented name (`subject`), its `captions` describe what it looks like.

    Args:
        task: one of `TASKS`.
        split: one of `train`, `validation`, `test`.
        num_rows: length.
        resolution: side of the pictures in pixels.
        seed: seed of the whole data set.
        held_out_share: share of scenes with a held-out combination; by default 0.5 in `test`, else 0.
        held_out_only: only scenes with a held-out combination (`test` alone).
        **options: the task's own options (`TASK_OPTIONS`) and fields of `WorldConfig`.

    Raises:
        ConfigError: an unknown task, option or value.
    """

    def __init__(
        self,
        task: str,
        split: str = "train",
        num_rows: int = 10_000,
        resolution: int = 64,
        seed: int = 0,
        *,
        held_out_share: float | None = None,
        held_out_only: bool = False,
        **options: Any,
    ) -> None:
        if task not in TASKS:
            raise ConfigError(f"the world Shapes has no task {task!r}{nearest(task, TASKS)}")
        if num_rows < 0:
            raise ConfigError(f"num_rows is zero or more, but got {num_rows}")
        check_resolution(resolution)
        own = TASK_OPTIONS[task]
        known = [field.name for field in fields(WorldConfig) if field.name != "held_out_share"]
        for name in options:
            if name not in own and name not in known:
                raise ConfigError(f"the task {task!r} has no option {name!r}{nearest(name, (*own, *known))}")
        self.options = {**own, **{name: value for name, value in options.items() if name in own}}
        world = {name: value for name, value in options.items() if name not in own}
        self.task, self.split, self.num_rows = task, split, num_rows
        self.resolution, self.seed = resolution, seed
        self.config = world_config(split, held_out_share=held_out_share, held_out_only=held_out_only, **world)
        self._check_options()
        self._scenes = SceneSampler(split, self.config)
        self._make: Callable[[Draws], dict[str, Any]] = getattr(self, f"_{task}_row")

    def _check_options(self) -> None:
        textured = len(self.config.textures) > 1
        question_types: tuple[str, ...] = ()
        if self.task == "questions":
            question_types = check_question_types(self.options["question_types"])
            if "texture" in question_types and not textured:
                raise ConfigError("questions about textures need textures=('solid', 'striped', 'dotted')")
        if self.task == "edits" and "texture" in check_edit_types(self.options["edit_types"]) and not textured:
            raise ConfigError("edits of textures need textures=('solid', 'striped', 'dotted')")
        for name in self.options.get("degradations", ()):
            if name not in REPAIRS:
                raise ConfigError(f"degradations has {name!r}, which does not exist{nearest(name, REPAIRS)}")
        if self.task == "restoration" and not self.options["degradations"]:
            raise ConfigError(f"degradations is empty; give at least one of {', '.join(REPAIRS)}")
        for name, least in (("num_views", 1), ("num_frames", 2)):
            if self.options.get(name, least) < least:
                raise ConfigError(f"{name} is {least} or more, but got {self.options[name]}")
        if "video" in self.config.kinds:
            raise ConfigError("the kind 'video' needs several pictures; use the task 'videos'")
        check_word_resolution(self.config, question_types, self.resolution)

    def __len__(self) -> int:
        return self.num_rows

    def __iter__(self) -> Iterator[dict[str, Any]]:
        # A sequence's own iteration takes an IndexError from inside of a row for the end.
        return (self[index] for index in range(self.num_rows))

    def __getitem__(self, index):
        if isinstance(index, slice):
            return [self[position] for position in range(*index.indices(self.num_rows))]
        if index < 0:
            index += self.num_rows
        if not 0 <= index < self.num_rows:
            raise IndexError(f"row {index} of {self.num_rows}")
        row = self._make(Draws(self.seed, self.split, index, STREAMS[self.task]))
        return {"id": f"shapes-{self.task}-{self.split}-{self.seed}-{index}", **row, "source": "unimm/shapes"}

    def _render(self, scene: Scene) -> np.ndarray:
        return render(scene, self.resolution)

    def _captions_row(self, draws: Draws) -> dict[str, Any]:
        scene, claims = draw_scene(self._scenes, draws)
        caption = describe(claims)
        return {
            "images": [self._render(scene)],
            "messages": [message("user", caption), message("assistant", None)],
            "caption": caption,
            "kind": claims.kind,
            "scene": scene.to_dict(),
        }

    def _descriptions_row(self, draws: Draws) -> dict[str, Any]:
        row = self._captions_row(draws)
        row["messages"] = [message("user", None, DESCRIBE), message("assistant", row["caption"])]
        return row

    def _questions_row(self, draws: Draws) -> dict[str, Any]:
        scene, question = sample_question(self._scenes, draws, self.options["question_types"])
        further = [ask(scene, draws, self.options["question_types"]) for _ in range(self.options["num_questions"] - 1)]
        more = [part for one in further for part in (message("user", one.text), message("assistant", one.answer))]
        return {
            "images": [self._render(scene)],
            "messages": [message("user", None, question.text), message("assistant", question.answer), *more],
            "label": question.answer,
            "question_type": question.type,
            "scene": scene.to_dict(),
        }

    def _edits_row(self, draws: Draws) -> dict[str, Any]:
        edit = sample_edit(self._scenes, draws, self.options["edit_types"])
        return {
            "images": [self._render(edit.before), self._render(edit.after)],
            "messages": [message("user", None, edit.instruction), message("assistant", None)],
            "edit_type": edit.type,
            "scene_before": edit.before.to_dict(),
            "scene": edit.after.to_dict(),
        }

    def _preferences_row(self, draws: Draws) -> dict[str, Any]:
        while True:
            scene, claims = draw_scene(self._scenes, draws)
            try:
                other, altered = alter_scene(scene, claims, self._scenes, draws, self.options["altered_attribute"])
                break
            except DataError:
                # This caption does not state the wanted attribute; another one may.
                continue
        caption = describe(claims)
        return {
            "images": [self._render(scene), self._render(other)],
            "messages": [message("user", caption)],
            "caption": caption,
            "chosen": 0,
            "rejected": 1,
            "altered": altered,
            "scene": scene.to_dict(),
        }

    def _subjects_row(self, draws: Draws) -> dict[str, Any]:
        subject = sample_subject(self._scenes, draws, self.options["num_views"])
        messages = []
        for view in range(len(subject.views)):
            messages += [message("user", subject.caption(view)), message("assistant", None)]
        return {
            "images": [self._render(view) for view in subject.views],
            "messages": messages,
            "subject": subject.name,
            "captions": [describe(claims) for claims in subject.claims],
            "scene": subject.views[0].to_dict(),
        }

    def _layouts_row(self, draws: Draws) -> dict[str, Any]:
        row = self._captions_row(draws)
        layout = LAYOUT_PALETTE[segment(Scene.from_dict(row["scene"]), self.resolution)]
        row["images"] = [layout, *row["images"]]
        row["messages"] = [message("user", None, row["caption"]), message("assistant", None)]
        return row

    def _restoration_row(self, draws: Draws) -> dict[str, Any]:
        scene, _ = draw_scene(self._scenes, draws)
        clean = self._render(scene)
        kind = draws.choice(tuple(self.options["degradations"]))
        return {
            "images": [degrade(clean, kind, draws), clean],
            "messages": [message("user", None, REPAIRS[kind]), message("assistant", None)],
            "degradation": kind,
            "scene": scene.to_dict(),
        }

    def _videos_row(self, draws: Draws) -> dict[str, Any]:
        frames, claims = sample_video(self._scenes, draws, self.config.attributes, self.options["num_frames"])
        caption = describe(claims)
        return {
            "images": [self._render(frame) for frame in frames],
            "messages": [message("user", caption), message("assistant", *[None] * len(frames))],
            "caption": caption,
            "scene": frames[0].to_dict(),
        }
