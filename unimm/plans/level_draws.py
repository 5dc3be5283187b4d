"""Which levels of a pyramid one training step uses."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from typing import Any

import torch

from ..errors import ConfigError, LayoutError, nearest
from ..generation.randomness import Randomness
from ..tokens import TokenLayout, VisualTokens

# More numbers than any draw takes.
_NUM_UNIFORMS = 256


@dataclass(frozen=True)
class LevelDraws:
    """A random list of levels, so that any list can be drawn later; the defaults are FlexVAR's
    (https://huggingface.co/papers/2502.20313).

    Args:
        always: sides of levels that belong to every list.
        some: `(number, lowest, highest)`: so many distinct sides out of a range, both ends included.
        usual: a fixed list of sides that is taken instead, in a share of the draws.
        usual_share: that share, in [0, 1].
        drop_above: one more level is dropped for each of these bounds that a uniform number exceeds; never the first two
            or the last one.
        max_tokens: while a list holds more tokens, one of its last four levels is dropped.

    Raises:
        ConfigError: values out of range.
    """

    always: tuple[int, ...] = (1, 2, 16)
    some: tuple[tuple[int, int, int], ...] = ((5, 3, 10), (2, 11, 15))
    usual: tuple[int, ...] = (1, 2, 3, 4, 5, 6, 8, 10, 13, 16)
    usual_share: float = 0.05
    drop_above: tuple[float, ...] = (0.9, 0.95, 0.98, 0.99)
    max_tokens: int = 680

    def __post_init__(self) -> None:
        object.__setattr__(self, "some", tuple(tuple(one) for one in self.some))
        if not self.always or not 0 <= self.usual_share <= 1 or self.max_tokens < 1:
            raise ConfigError(
                "level draws need at least one side in 'always', a usual_share in [0, 1] and max_tokens of at least 1, given "
                f"{self}"
            )
        if any(len(one) != 3 or not 0 <= one[0] <= one[2] - one[1] + 1 for one in self.some):
            raise ConfigError(
                f"'some' holds (number, lowest, highest) with number <= the sides in between, given {self.some}"
            )

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> LevelDraws:
        """The draws that a config describes.

        Raises:
            ConfigError: an unknown field, or values out of range.
        """
        known = [one.name for one in fields(cls)]
        for name in values:
            if name not in known:
                raise ConfigError(f"level_draws has no field '{name}'{nearest(name, known)}")
        try:
            given: dict[str, Any] = {
                name: tuple(value) if isinstance(value, list) else value for name, value in values.items()
            }
            return cls(**given)
        except TypeError as error:
            raise ConfigError(f"level_draws cannot be made of {dict(values)}: {error}") from error

    @property
    def sides(self) -> tuple[int, ...]:
        """All sides that may be drawn, rising."""
        ranges = (side for _, lowest, highest in self.some for side in range(lowest, highest + 1))
        return tuple(sorted({*self.always, *ranges, *(self.usual if self.usual_share else ())}))

    def draw(self, randomness: Randomness) -> list[int]:
        """A list of sides, rising."""
        uniform: Iterator[float] = iter(
            randomness.uniform((_NUM_UNIFORMS,), "levels", torch.device("cpu")).double().tolist()
        )

        def pick(items: list[int]) -> int:
            return items.pop(int(next(uniform) * len(items)))

        if next(uniform) < self.usual_share:
            chosen = list(self.usual)
        else:
            chosen = list(self.always)
            for number, lowest, highest in self.some:
                rest = list(range(lowest, highest + 1))
                chosen += [pick(rest) for _ in range(number)]
            chosen = sorted(set(chosen))
        bound = next(uniform)
        for limit in self.drop_above:
            if bound > limit and len(chosen) > 3:
                droppable = chosen[2:-1]
                pick(droppable)
                chosen = [*chosen[:2], *droppable, chosen[-1]]
        while sum(side * side for side in chosen) > self.max_tokens and len(chosen) > 1:
            tail = chosen[1:][-4:]
            head = chosen[: len(chosen) - len(tail)]
            pick(tail)
            chosen = head + tail
        return chosen


def take_levels(tokens: VisualTokens, sides: list[int]) -> VisualTokens:
    """The tokens of the square levels of some sides.

    Raises:
        LayoutError: there is no level of such a side.
    """
    by_shape = {shape: level for level, shape in enumerate(tokens.layout.levels)}
    missing = [side for side in sides if (side, side) not in by_shape]
    if missing:
        raise LayoutError(
            f"the levels drawn for training need sides {missing}, which the tokens of {tokens.layout} do not have: give the "
            "tokenizer all sides of level_draws as levels"
        )
    values = torch.cat([tokens.level(by_shape[side, side]) for side in sides], dim=1)
    return VisualTokens.of(TokenLayout.pyramid(sides), values)
