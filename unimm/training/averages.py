"""Means of what a run logs."""

from __future__ import annotations

import math
from typing import Any

import torch
from accelerate import Accelerator


class RunningMeans:
    """Means since the last log, kept on the device so that adding to them waits for nothing.

    Args:
        accelerator: averages over the processes.
    """

    def __init__(self, accelerator: Accelerator):
        self.accelerator = accelerator
        self.totals: dict[str, torch.Tensor] = {}
        self.counts: dict[str, int] = {}

    def add(self, name: str, value: torch.Tensor) -> None:
        """Adds a scalar."""
        value = value.detach().float()
        self.totals[name] = self.totals[name] + value if name in self.totals else value.clone()
        self.counts[name] = self.counts.get(name, 0) + 1

    def take(self) -> dict[str, float]:
        """The means, in the order in which their names first came; begins anew."""
        means = {
            name: self.accelerator.reduce(total / self.counts[name], "mean").item()
            for name, total in self.totals.items()
        }
        self.totals, self.counts = {}, {}
        return means

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps, exact to the bit."""
        return {"totals": {name: total.item() for name, total in self.totals.items()}, "counts": self.counts}

    def load(self, state: dict[str, Any]) -> None:
        """Takes `state` up again."""
        device = self.accelerator.device
        self.totals = {name: torch.tensor(total, device=device) for name, total in state["totals"].items()}
        self.counts = dict(state["counts"])


def mean_and_interval(values: torch.Tensor) -> dict[str, Any]:
    """A mean with its n and 95 % interval, `mean ± 1.96 s / sqrt(n)`.

    Args:
        values: `(n,)`.
    """
    number = values.numel()
    mean = values.double().mean().item()
    half = 1.96 * values.double().std().item() / math.sqrt(number) if number > 1 else math.inf
    return {"value": mean, "n": number, "interval": (mean - half, mean + half)}
