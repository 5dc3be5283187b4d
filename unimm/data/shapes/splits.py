"""Which combinations are kept for the test split, and from which random stream a row is drawn."""

from __future__ import annotations

import functools
import json
from dataclasses import dataclass
from importlib import resources

import numpy as np

from ...errors import DataError, nearest
from .scenes import Scene, SceneObject, relation_between

SPLITS = ("train", "validation", "test")


@dataclass(frozen=True, slots=True)
class HeldOut:
    """Combinations that only the test split has.

    Args:
        colour_shape: pairs of colour and shape.
        colour_shape_relation: an object's colour and shape, and how it lies to an object that differs from
            it.
    """

    colour_shape: frozenset[tuple[str, str]]
    colour_shape_relation: frozenset[tuple[str, str, str]]

    def has_object(self, item: SceneObject) -> bool:
        """Whether the object's colour and shape, or those of its emblem, are kept for the test split."""
        if item.emblem is not None and item.emblem[::-1] in self.colour_shape:
            return True
        return (item.colour, item.shape) in self.colour_shape

    def has_relation(self, first: SceneObject, second: SceneObject) -> bool:
        """Whether how one of the objects lies to the other is kept for the test split."""
        if (first.colour, first.shape) == (second.colour, second.shape):
            return False
        return any(
            (item.colour, item.shape, relation_between(item, other)) in self.colour_shape_relation
            for item, other in ((first, second), (second, first))
        )

    def has_scene(self, scene: Scene) -> bool:
        """Whether any combination in the scene is kept for the test split."""
        objects = scene.objects
        return any(self.has_object(item) for item in objects) or any(
            self.has_relation(first, second)
            for position, first in enumerate(objects)
            for second in objects[position + 1 :]
        )


@functools.cache
def held_out_combinations() -> HeldOut:
    """The combinations of the committed file `splits.json`."""
    text = resources.files(__package__).joinpath("splits.json").read_text(encoding="utf-8")
    kept = json.loads(text)["test_only"]
    return HeldOut(
        frozenset((colour, shape) for colour, shape in kept["colour_shape"]),
        frozenset((colour, shape, relation) for colour, shape, relation in kept["colour_shape_relation"]),
    )


def check_split(split: str) -> None:
    """Raises a `DataError` for a split that does not exist."""
    if split not in SPLITS:
        raise DataError(f"the world Shapes has no split {split!r}{nearest(split, SPLITS)}")


class Draws:
    """Random decisions of one row: a pure function of seed, split, stream and index on every machine.

    Args:
        seed: non-negative seed of the whole data set.
        split: one of `SPLITS`.
        index: number of the row.
        stream: which of several independent decisions about the row, in [0, 2**30).
    """

    __slots__ = ("_buffer", "generator")

    _BLOCK = 48

    def __init__(self, seed: int, split: str, index: int, stream: int = 0) -> None:
        check_split(split)
        if seed < 0 or index < 0:
            raise DataError(f"seed and row number are zero or more, but got seed {seed} and row {index}")
        key = np.array([seed & 0xFFFF_FFFF_FFFF_FFFF, (stream << 2) | SPLITS.index(split)], dtype=np.uint64)
        counter = np.array([0, 0, 0, index], dtype=np.uint64)
        self.generator = np.random.Generator(np.random.Philox(key=key, counter=counter))
        self._buffer: list[float] = []

    def uniform(self, low: float = 0.0, high: float = 1.0) -> float:
        """A number in [low, high)."""
        if not self._buffer:
            self._buffer = self.generator.random(self._BLOCK).tolist()
        return low + (high - low) * self._buffer.pop()

    def integer(self, count: int) -> int:
        """A number in {0, ..., count - 1}."""
        return int(self.uniform() * count)

    def choice(self, options):
        """One of a sequence's items, all equally likely."""
        return options[int(self.uniform() * len(options))]

    def weighted(self, options, weights):
        """One of a sequence's items, with probabilities in proportion to `weights`."""
        rest = self.uniform() * sum(weights)
        for option, weight in zip(options, weights, strict=True):
            rest -= weight
            if rest < 0:
                return option
        return options[-1]

    def shuffled(self, items) -> list:
        """The items in random order."""
        pool = list(items)
        for last in range(len(pool) - 1, 0, -1):
            other = int(self.uniform() * (last + 1))
            pool[last], pool[other] = pool[other], pool[last]
        return pool
