"""The world Shapes as ordinary data sets of Hugging Face's `datasets`."""

from __future__ import annotations

import io
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from ...dependencies import needed_for
from ...errors import ConfigError
from .rows import ShapesRows

if TYPE_CHECKING:
    from datasets import Dataset, Features, IterableDataset

#: Rows that one shard of a streamed data set has at most.
ROWS_PER_SHARD = 1024

_TEXT_COLUMNS = (
    "id",
    "source",
    "caption",
    "kind",
    "label",
    "question_type",
    "edit_type",
    "altered",
    "subject",
    "degradation",
)
_NUMBER_COLUMNS = ("chosen", "rejected")
_SCENE_COLUMNS = ("scene", "scene_before")


def shapes_features(columns: list[str]) -> Features:
    """The types of the columns of a task's rows."""
    with needed_for("data sets"):
        from datasets import Features, List, Value
        from datasets import Image as ImageFeature

    content = {"type": Value("string"), "text": Value("string")}
    item = {name: Value("string") for name in ("shape", "colour", "texture", "emblem_shape", "emblem_colour")}
    item |= {name: Value("float64") for name in ("size", "x", "y")}
    scene = {
        "background": Value("string"),
        "objects": List(item),
        "word": Value("string"),
        "word_x": Value("float64"),
        "word_y": Value("float64"),
    }
    types: dict[str, Any] = {
        "images": List(ImageFeature()),
        "messages": List({"role": Value("string"), "content": List(content)}),
        "captions": List(Value("string")),
        **{name: Value("string") for name in _TEXT_COLUMNS},
        **{name: Value("int64") for name in _NUMBER_COLUMNS},
        **dict.fromkeys(_SCENE_COLUMNS, scene),
    }
    return Features({name: types[name] for name in columns})


def _png(image: np.ndarray) -> dict[str, Any]:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG", compress_level=1)
    return {"bytes": buffer.getvalue(), "path": None}


def _encoded(row: dict[str, Any]) -> dict[str, Any]:
    return {**row, "images": [_png(image) for image in row["images"]]}


def _stream(arguments: dict[str, Any], ranges: list[tuple[int, int]]) -> Iterator[dict[str, Any]]:
    rows = ShapesRows(**arguments)
    for start, stop in ranges:
        for index in range(start, stop):
            yield _encoded(rows[index])


def shapes_dataset(
    task: str,
    split: str = "train",
    num_rows: int = 10_000,
    resolution: int = 64,
    seed: int = 0,
    *,
    streaming: bool = False,
    **options: Any,
) -> Dataset | IterableDataset:
    """A task of the world Shapes as a data set; `ShapesRows` says which columns each task has.

    Args:
        task: one of `captions, descriptions, questions, edits, preferences, subjects, layouts, restoration, videos`.
        split: one of `train`, `validation`, `test`.
        num_rows: number of rows.
        resolution: side of the pictures in pixels.
        seed: seed of the whole data set.
        streaming: draw rows as they are read, in shards of at most 1,024 rows, instead of all now. The rows
            are the same, for any number of workers and processes; several workers interleave their shards.
        **options: `held_out_share`, `held_out_only`, the task's own options and fields of `WorldConfig`.

    Returns:
        A `datasets.Dataset` in memory, or an `IterableDataset`; pictures are decoded to PIL.

    Raises:
        ConfigError: an unknown task, option or value, or no rows.
    """
    with needed_for("data sets"):
        from datasets import Dataset, IterableDataset

    arguments = {
        "task": task,
        "split": split,
        "num_rows": num_rows,
        "resolution": resolution,
        "seed": seed,
        **options,
    }
    rows = ShapesRows(**arguments)
    if num_rows < 1:
        raise ConfigError(f"a data set has one row or more, but num_rows is {num_rows}")
    features = shapes_features(list(rows[0]))
    if streaming:
        ranges = [(start, min(start + ROWS_PER_SHARD, num_rows)) for start in range(0, num_rows, ROWS_PER_SHARD)]
        return IterableDataset.from_generator(
            _stream, features=features, gen_kwargs={"arguments": arguments, "ranges": ranges}
        )
    return Dataset.from_list([_encoded(row) for row in rows], features=features)
