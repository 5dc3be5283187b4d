"""Classifier-free guidance: a schedule of scales over the steps of a plan (https://huggingface.co/papers/2207.12598)."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Literal

import torch

from ..errors import ConfigError, nearest


@dataclass(frozen=True)
class Progress:
    """Where a drawing stands at a step.

    Args:
        step: number of the step, counted from 0.
        num_steps: steps in all.
        level: the layout's level that the step works on.
        num_levels: levels in all.
        placed: share of the tokens that are final after the step, in (0, 1].
        phase: of plans that predict in several ways.
    """

    step: int
    num_steps: int
    level: int = 0
    num_levels: int = 1
    placed: float = 1.0
    phase: int = 0

    @classmethod
    def plain(cls, num_steps: int) -> list[Progress]:
        """The steps of a plan that places one token per step, on one level."""
        return [cls(step, num_steps, placed=(step + 1) / num_steps) for step in range(num_steps)]


class GuidanceSchedule(ABC):
    """`guided = unconditional + scale(step) * (conditional - unconditional)`; scale 1 is no guidance."""

    #: Between which times of a diffusion or flow (0 data, 1 noise) a step is guided.
    times: tuple[float, float] = (0.0, 1.0)

    @abstractmethod
    def scale(self, progress: Progress) -> float:
        """The scale at a step."""

    def scales(self, steps: Sequence[Progress]) -> list[float]:
        """The scales of a whole drawing."""
        return [self.scale(progress) for progress in steps]

    def to_dict(self) -> dict[str, Any]:
        """The schedule as JSON, for `generation_config.json`; `as_schedule` reads it back.

        Raises:
            ConfigError: a schedule of a class of your own.
        """
        for name, kind in SCHEDULES.items():
            if type(self) is kind:
                chosen = {field.name: getattr(self, field.name) for field in fields(self)}  # type: ignore[arg-type]
                defaults = {field.name: field.default for field in fields(self)}  # type: ignore[arg-type]
                return {"type": name} | {key: value for key, value in chosen.items() if value != defaults[key]}
        raise ConfigError(
            f"a {type(self).__name__} cannot be saved, only schedules of the kinds {', '.join(SCHEDULES)}"
        )


@dataclass(frozen=True)
class ConstantGuidance(GuidanceSchedule):
    """The same scale at every step."""

    value: float

    def __post_init__(self) -> None:
        _check_scales(self.value)

    def scale(self, progress: Progress) -> float:
        return self.value


@dataclass(frozen=True)
class LinearGuidance(GuidanceSchedule):
    """From `first` linearly to `last`.

    VAR's `cfg` is `LinearGuidance(1, 1 + cfg)`: its first map is never guided. MAR's linear schedule is
    `LinearGuidance(1, cfg, over="tokens", limit=1 - 1 / length)`, whose last step counts as if one token were hidden.

    Args:
        first: at the first step or level, or where no token is placed.
        last: at the last step or level, or where all tokens are placed.
        over: what is counted: `steps`, `levels`, or the share of `tokens` that are final after the step.
        times: between which times of a diffusion or flow (0 data, 1 noise) a step is guided
            (https://huggingface.co/papers/2404.07724); heads for ids do not know any.
        limit: the largest share that counts, in (0, 1]; the scale stays there after that.
    """

    first: float
    last: float
    over: Literal["steps", "levels", "tokens"] = "steps"
    times: tuple[float, float] = (0.0, 1.0)
    limit: float = 1.0

    def __post_init__(self) -> None:
        _check_scales(self.first, self.last)
        if self.over not in ("steps", "levels", "tokens"):
            raise ConfigError(f"linear guidance counts over 'steps', 'levels' or 'tokens', given {self.over!r}")
        _check_scales(*self.times)
        if len(self.times) != 2 or not 0 <= self.times[0] <= self.times[1] <= 1:
            raise ConfigError(f"times of guidance are two numbers with 0 <= first <= second <= 1, given {self.times!r}")
        object.__setattr__(self, "times", tuple(self.times))
        if not 0 < self.limit <= 1:
            raise ConfigError(f"the limit of linear guidance is a share in (0, 1], given {self.limit!r}")

    def scale(self, progress: Progress) -> float:
        if self.over == "tokens":
            share = progress.placed
        elif self.over == "levels":
            share = progress.level / max(progress.num_levels - 1, 1)
        else:
            share = progress.step / max(progress.num_steps - 1, 1)
        return self.first + (self.last - self.first) * min(share, self.limit)


@dataclass(frozen=True)
class IntervalGuidance(GuidanceSchedule):
    """`value` at the steps `start..stop` (both included), none elsewhere (https://huggingface.co/papers/2404.07724)."""

    value: float
    start: int
    stop: int

    def __post_init__(self) -> None:
        _check_scales(self.value)
        if not all(isinstance(step, int) for step in (self.start, self.stop)) or not 0 <= self.start <= self.stop:
            raise ConfigError(
                f"an interval needs whole steps with 0 <= start <= stop, given start={self.start!r} and stop={self.stop!r}"
            )

    def scale(self, progress: Progress) -> float:
        return self.value if self.start <= progress.step <= self.stop else 1.0


@dataclass(frozen=True)
class ListedGuidance(GuidanceSchedule):
    """One scale per level, coarse to fine (https://huggingface.co/papers/2412.04431); the last one holds for further levels."""

    values: tuple[float, ...]

    def __post_init__(self) -> None:
        if not isinstance(self.values, list | tuple) or not self.values:
            raise ConfigError(f"listed guidance needs a scale for at least one level, given {self.values!r}")
        _check_scales(*self.values)
        object.__setattr__(self, "values", tuple(float(value) for value in self.values))

    def scale(self, progress: Progress) -> float:
        return self.values[min(progress.level, len(self.values) - 1)]


@dataclass(frozen=True)
class PhaseGuidance(GuidanceSchedule):
    """A schedule for each phase of a plan that predicts in several ways; the last one holds for further phases.

    Args:
        schedules: numbers or schedules.
    """

    schedules: tuple[Any, ...]

    def __post_init__(self) -> None:
        if not isinstance(self.schedules, list | tuple) or not self.schedules:
            raise ConfigError(f"guidance by phase needs a schedule for at least one phase, given {self.schedules!r}")
        object.__setattr__(self, "schedules", tuple(as_schedule(one) for one in self.schedules))

    def scale(self, progress: Progress) -> float:
        return self.schedules[min(progress.phase, len(self.schedules) - 1)].scale(progress)

    def to_dict(self) -> dict[str, Any]:
        return {"type": "phases", "schedules": [one.to_dict() for one in self.schedules]}


#: Kinds of schedule by their name in `generation_config.json`.
SCHEDULES: dict[str, type[GuidanceSchedule]] = {
    "constant": ConstantGuidance,
    "linear": LinearGuidance,
    "interval": IntervalGuidance,
    "listed": ListedGuidance,
    "phases": PhaseGuidance,
}


def as_schedule(guidance: float | GuidanceSchedule | Mapping[str, Any]) -> GuidanceSchedule:
    """A number means the same scale at every step; a mapping is what `to_dict` gives.

    Raises:
        ConfigError: neither a finite number, a schedule nor such a mapping.
    """
    if isinstance(guidance, GuidanceSchedule):
        return guidance
    if isinstance(guidance, Mapping):
        fields = dict(guidance)
        kind = str(fields.pop("type", None))
        if kind not in SCHEDULES:
            raise ConfigError(f"there is no guidance schedule of type '{kind}'{nearest(kind, SCHEDULES)}")
        try:
            return SCHEDULES[kind](**fields)
        except TypeError as error:
            raise ConfigError(f"a guidance schedule of type '{kind}' cannot be made of {fields}: {error}") from error
    if not _is_scale(guidance):
        raise ConfigError(f"guidance_scale must be a finite number or a GuidanceSchedule, given {guidance!r}")
    return ConstantGuidance(float(guidance))


def _is_scale(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _check_scales(*scales: Any) -> None:
    for scale in scales:
        if not _is_scale(scale):
            raise ConfigError(f"a scale of guidance must be a finite number, given {scale!r}")


@dataclass(frozen=True)
class Guide:
    """Combines the predictions of several contexts into one per sample, and hands what is shared back to all of them.

    The rows of the condition stand above those of the unconditional context.

    Args:
        scale: of the guidance.
        num_contexts: 2 with an unconditional context, 1 without.
        times: between which times of a diffusion or flow it guides.
    """

    scale: float = 1.0
    num_contexts: int = 1
    times: tuple[float, float] = GuidanceSchedule.times

    def at(self, time: float) -> Guide:
        """The guide at a time of a diffusion or flow: this one, or none outside of its times."""
        return self if self.times[0] <= time <= self.times[1] else replace(self, scale=1.0)

    def __call__(self, predictions: torch.Tensor) -> torch.Tensor:
        """`unconditional + scale * (conditional - unconditional)`: `(contexts * batch, …)` to `(batch, …)`."""
        if self.num_contexts == 1:
            return predictions
        conditional, unconditional = predictions.chunk(2)
        if self.scale == 1.0:
            return conditional
        return unconditional + self.scale * (conditional - unconditional)

    def mix(self, states: torch.Tensor) -> torch.Tensor:
        """The guided prediction in the place of every context's own, `(contexts * batch, …)`."""
        return self.spread(self(states))

    def spread(self, samples: torch.Tensor) -> torch.Tensor:
        """The same for every context: `(batch, …)` to `(contexts * batch, …)`."""
        return samples if self.num_contexts == 1 else torch.cat([samples] * self.num_contexts)
