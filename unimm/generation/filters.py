"""Token filters (transformers' logits processors) and soft codes."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from transformers import (
    LogitsProcessorList,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from ..errors import ConfigError
from .randomness import Randomness


def token_filters(temperature: float = 1.0, top_k: int = 0, top_p: float = 1.0) -> LogitsProcessorList:
    """Temperature, then top-k, then nucleus filtering of what is left.

    Args:
        temperature: logits are divided by it; must be positive.
        top_k: keep the `top_k` largest logits; 0 keeps all.
        top_p: keep the smallest set of the most likely ids whose probability exceeds `top_p`, in (0, 1].

    Raises:
        ConfigError: a value out of range.
    """
    if not 0 < temperature < math.inf:
        raise ConfigError(
            f"temperature must be positive and finite, given {temperature}; use do_sample=False for the likeliest id"
        )
    if top_k < 0 or not 0 < top_p <= 1:
        raise ConfigError(f"top_k must be at least 0 and top_p in (0, 1], given top_k={top_k}, top_p={top_p}")
    processors = LogitsProcessorList()
    if temperature != 1.0:
        processors.append(TemperatureLogitsWarper(float(temperature)))
    if top_k > 0:
        processors.append(TopKLogitsWarper(top_k))
    if top_p < 1.0:
        processors.append(TopPLogitsWarper(float(top_p)))
    return processors


@dataclass(frozen=True)
class SoftCodes:
    """A relaxed draw: a mix of codebook rows instead of one row, sharper from step to step.

    `softmax(((1 + progress) * logits + gumbel) / temperature)` with
    `temperature = max(start * (1 - decay * progress), minimum)`; for pictures that look smoother, not for scores
    (https://huggingface.co/papers/2404.02905, released sampling code's option for visualisation).

    Args:
        start: temperature of the first step.
        decay: share of the temperature that is gone at the last step.
        minimum: lowest temperature.

    Raises:
        ConfigError: no numbers, or out of range.
    """

    start: float = 0.27
    decay: float = 0.95
    minimum: float = 0.005

    def __post_init__(self) -> None:
        numbers = (self.start, self.decay, self.minimum)
        if not all(isinstance(number, int | float) and math.isfinite(number) for number in numbers):
            raise ConfigError(f"soft codes need finite numbers, given {self}")
        if self.start <= 0 or self.minimum <= 0 or not 0 <= self.decay <= 1:
            raise ConfigError(f"soft codes need start and minimum above 0 and decay in [0, 1], given {self}")

    def __call__(self, logits: torch.Tensor, progress: float, randomness: Randomness) -> torch.Tensor:
        """Weights over the codebook, of the logits' shape `(batch, slots, codebook)`."""
        temperature = max(self.start * (1 - self.decay * progress), self.minimum)
        gumbel = -randomness.exponential(logits.shape, "soft_code", logits.device).log()
        return (((1 + progress) * logits + gumbel) / temperature).softmax(-1)
