"""Classifier-free guidance: a schedule of scales over the steps of a plan (https://huggingface.co/papers/2207.12598)."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch

from ..errors import ConfigError, nearest


class GuidanceSchedule(ABC):
    """`guided = unconditional + scale(step) * (conditional - unconditional)`; scale 1 is no guidance."""

    @abstractmethod
    def scale(self, step: int, num_steps: int) -> float:
        """The scale at step `step` of `num_steps`, counted from 0."""

    def last_guided_step(self, num_steps: int) -> int:
        """Index of the last step with a scale other than 1, -1 when there is none: from there on one context is enough."""
        return max((step for step in range(num_steps) if self.scale(step, num_steps) != 1.0), default=-1)

    def to_dict(self) -> dict[str, Any]:
        """The schedule as JSON, for `generation_config.json`; `as_schedule` reads it back.

        Raises:
            ConfigError: a schedule of a class of your own.
        """
        for name, kind in SCHEDULES.items():
            if type(self) is kind:
                return {"type": name, **asdict(self)}  # type: ignore[call-overload]
        raise ConfigError(
            f"a {type(self).__name__} cannot be saved, only schedules of the kinds {', '.join(SCHEDULES)}"
        )


@dataclass(frozen=True)
class ConstantGuidance(GuidanceSchedule):
    """The same scale at every step."""

    value: float

    def __post_init__(self) -> None:
        _check_scales(self.value)

    def scale(self, step: int, num_steps: int) -> float:
        return self.value


@dataclass(frozen=True)
class LinearGuidance(GuidanceSchedule):
    """From `first` at the first step linearly to `last` at the last one.

    VAR's `cfg` is `LinearGuidance(1, 1 + cfg)`: its first map is never guided.
    """

    first: float
    last: float

    def __post_init__(self) -> None:
        _check_scales(self.first, self.last)

    def scale(self, step: int, num_steps: int) -> float:
        return self.first + (self.last - self.first) * (step / max(num_steps - 1, 1))


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

    def scale(self, step: int, num_steps: int) -> float:
        return self.value if self.start <= step <= self.stop else 1.0


#: Kinds of schedule by their name in `generation_config.json`.
SCHEDULES: dict[str, type[GuidanceSchedule]] = {
    "constant": ConstantGuidance,
    "linear": LinearGuidance,
    "interval": IntervalGuidance,
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


def combine(predictions: torch.Tensor, scale: float) -> torch.Tensor:
    """Guides a doubled batch, conditional rows above unconditional ones: `(2 batch, …)` to `(batch, …)`."""
    conditional, unconditional = predictions.chunk(2)
    if scale == 1.0:
        return conditional
    return unconditional + scale * (conditional - unconditional)
