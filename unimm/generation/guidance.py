"""Classifier-free guidance: a schedule of scales over the steps of a plan (https://huggingface.co/papers/2207.12598)."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch


class GuidanceSchedule(ABC):
    """`guided = unconditional + scale(step) * (conditional - unconditional)`; scale 1 is no guidance."""

    @abstractmethod
    def scale(self, step: int, num_steps: int) -> float:
        """The scale at step `step` of `num_steps`, counted from 0."""

    def last_guided_step(self, num_steps: int) -> int:
        """Index of the last step with a scale other than 1, -1 when there is none: from there on one context is enough."""
        return max((step for step in range(num_steps) if self.scale(step, num_steps) != 1.0), default=-1)


@dataclass(frozen=True)
class ConstantGuidance(GuidanceSchedule):
    """The same scale at every step."""

    value: float

    def scale(self, step: int, num_steps: int) -> float:
        return self.value


@dataclass(frozen=True)
class LinearGuidance(GuidanceSchedule):
    """From `first` at the first step linearly to `last` at the last one.

    VAR's `cfg` is `LinearGuidance(1, 1 + cfg)`: its first map is never guided.
    """

    first: float
    last: float

    def scale(self, step: int, num_steps: int) -> float:
        return self.first + (self.last - self.first) * (step / max(num_steps - 1, 1))


@dataclass(frozen=True)
class IntervalGuidance(GuidanceSchedule):
    """`value` at the steps `start..stop` (both included), none elsewhere (https://huggingface.co/papers/2404.07724)."""

    value: float
    start: int
    stop: int

    def scale(self, step: int, num_steps: int) -> float:
        return self.value if self.start <= step <= self.stop else 1.0


def as_schedule(guidance: float | GuidanceSchedule) -> GuidanceSchedule:
    """A number means the same scale at every step."""
    return guidance if isinstance(guidance, GuidanceSchedule) else ConstantGuidance(float(guidance))


def combine(predictions: torch.Tensor, scale: float) -> torch.Tensor:
    """Guides a doubled batch, conditional rows above unconditional ones: `(2 batch, …)` to `(batch, …)`."""
    conditional, unconditional = predictions.chunk(2)
    if scale == 1.0:
        return conditional
    return unconditional + scale * (conditional - unconditional)
