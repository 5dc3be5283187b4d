"""Gaussian diffusion with a learned variance over kept steps of a training process (https://huggingface.co/papers/2102.09672).

diffusers' `DDPMScheduler` has none of the variational term, of the temperature and of a variance per context, and keeps
its tables in single precision, where the first reverse steps lose four digits. These are few formulas, so they are here.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import torch

from ..errors import ConfigError

#: Half the width of a bin of the discretised likelihood: 8-bit pixels in [-1, 1].
_HALF_BIN = 1.0 / 255.0
_EDGE = 0.999


def cosine_betas(num_steps: int, largest: float = 0.999) -> np.ndarray:
    """`beta_i = min(1 - abar((i + 1) / T) / abar(i / T), largest)`, `abar(u) = cos^2((u + 0.008) / 1.008 * pi / 2)`."""

    def kept(share: float) -> float:
        return math.cos((share + 0.008) / 1.008 * math.pi / 2) ** 2

    return np.array([min(1 - kept((i + 1) / num_steps) / kept(i / num_steps), largest) for i in range(num_steps)])


def kept_steps(num_steps: int, respacing: str) -> list[int]:
    """Steps of the training process that sampling keeps, rising.

    Args:
        num_steps: steps of the training process.
        respacing: `"N"` keeps N evenly spread steps; `"a,b,…"` cuts the process into equal sections (the earlier ones take
            what remains) and keeps so many of each; `"ddimN"` keeps every k-th, with the k that gives N.

    Raises:
        ConfigError: another form, or more steps than there are.
    """
    if respacing.startswith("ddim") and respacing[4:].isdecimal():
        wanted = int(respacing[4:])
        for stride in range(1, num_steps + 1):
            if len(range(0, num_steps, stride)) == wanted:
                return list(range(0, num_steps, stride))
        raise ConfigError(f"no whole stride keeps {wanted} of {num_steps} diffusion steps (respacing '{respacing}')")
    counts = [int(part) if part.strip().isdecimal() else 0 for part in respacing.split(",")]
    if min(counts) < 1:
        raise ConfigError(f"respacing must read like '100', '10,20,30' or 'ddim50', given {respacing!r}")
    size, remainder = divmod(num_steps, len(counts))
    kept: list[int] = []
    start = 0
    for section, count in enumerate(counts):
        length = size + (1 if section < remainder else 0)
        if length < count:
            raise ConfigError(f"cannot keep {count} of a section's {length} diffusion steps (respacing '{respacing}')")
        spacing = 1.0 if count == 1 else (length - 1) / (count - 1)
        position = 0.0
        for _ in range(count):
            kept.append(start + round(position))
            # Added up, not multiplied: that decides which way halves are rounded.
            position += spacing
        start += length
    return kept


class GaussianDiffusion:
    """`x_t = sqrt(abar_t) x + sqrt(1 - abar_t) eps` over the kept steps; a network predicts `eps` and a variance.

    The network's second half `v` interpolates the log-variance between that of the posterior and `ln beta`:
    `f ln beta + (1 - f) ln beta~`, `f = (v + 1) / 2`. `x` is never clipped.

    Args:
        num_steps: steps of the training process, with a cosine schedule.
        respacing: which of them are kept (see `kept_steps`); all when None.
    """

    def __init__(self, num_steps: int = 1000, respacing: str | None = None):
        original = np.cumprod(1.0 - cosine_betas(num_steps))
        self.timesteps = list(range(num_steps)) if respacing is None else kept_steps(num_steps, respacing)
        self.alphas_cumprod = original[self.timesteps] if respacing is not None else original
        previous = np.append(1.0, self.alphas_cumprod[:-1])
        # Over all steps, the betas themselves: dividing products again would lose their last digits.
        self.betas = cosine_betas(num_steps) if respacing is None else 1.0 - self.alphas_cumprod / previous
        variance = self.betas * (1.0 - previous) / (1.0 - self.alphas_cumprod)
        if len(variance) > 1:
            # The last reverse step has a variance of zero, whose logarithm is that of the step before it.
            variance[0] = variance[1]
        else:
            variance = self.betas
        self.posterior_log_variance_clipped = np.log(variance)
        self.posterior_mean_coef1 = self.betas * np.sqrt(previous) / (1.0 - self.alphas_cumprod)
        self.posterior_mean_coef2 = (1.0 - previous) * np.sqrt(1.0 - self.betas) / (1.0 - self.alphas_cumprod)
        self._tables = {
            "signal": np.sqrt(self.alphas_cumprod),
            "noise": np.sqrt(1.0 - self.alphas_cumprod),
            "inverse_signal": np.sqrt(1.0 / self.alphas_cumprod),
            "inverse_noise": np.sqrt(1.0 / self.alphas_cumprod - 1.0),
            "log_beta": np.log(self.betas),
            "log_variance": self.posterior_log_variance_clipped,
            "clean": self.posterior_mean_coef1,
            "noisy": self.posterior_mean_coef2,
        }
        self._on_device: dict[tuple[str, torch.device], torch.Tensor] = {}

    @property
    def num_steps(self) -> int:
        """Number of kept steps."""
        return len(self.timesteps)

    def add_noise(self, clean: torch.Tensor, steps: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        """`x_t` of clean rows.

        Args:
            clean: `(rows, channels)`.
            steps: `(rows,)` int64 indices among the kept steps.
            noise: `(rows, channels)`.
        """
        return self._at("signal", steps) * clean + self._at("noise", steps) * noise

    def log_variance(self, interpolation: torch.Tensor, steps: torch.Tensor | int) -> torch.Tensor:
        """Log-variance of the reverse step for the network's `v`."""
        share = (interpolation + 1) / 2
        return share * self._at("log_beta", steps) + (1 - share) * self._at("log_variance", steps)

    def clean(self, noisy: torch.Tensor, noise: torch.Tensor, steps: torch.Tensor | int) -> torch.Tensor:
        """`x` for a prediction of the noise."""
        return self._at("inverse_signal", steps) * noisy - self._at("inverse_noise", steps) * noise

    def posterior_mean(self, clean: torch.Tensor, noisy: torch.Tensor, steps: torch.Tensor | int) -> torch.Tensor:
        """Mean of `q(x_{t-1} | x_t, x)`."""
        return self._at("clean", steps) * clean + self._at("noisy", steps) * noisy

    def loss_terms(
        self,
        predicted_noise: torch.Tensor,
        interpolation: torch.Tensor,
        clean: torch.Tensor,
        noisy: torch.Tensor,
        noise: torch.Tensor,
        steps: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Squared error of the noise, and the variational term in bits, both per row and averaged over channels.

        The variational term trains the variance alone: its mean is cut off from the gradient.

        Args:
            predicted_noise: `(rows, channels)`.
            interpolation: `(rows, channels)`, the network's `v`.
            clean: `(rows, channels)`.
            noisy: `(rows, channels)`, from `add_noise`.
            noise: `(rows, channels)`.
            steps: `(rows,)` int64.

        Returns:
            Two tensors `(rows,)`.
        """
        squared_error = (noise - predicted_noise).square().mean(-1)
        guess = self.clean(noisy, predicted_noise.detach(), steps)
        mean, log_variance = self.posterior_mean(guess, noisy, steps), self.log_variance(interpolation, steps)
        true_mean = self.posterior_mean(clean, noisy, steps)
        divergence = _normal_divergence(true_mean, self._at("log_variance", steps), mean, log_variance)
        likelihood = _discretised_log_likelihood(clean, mean, 0.5 * log_variance)
        bits = torch.where(steps[:, None] == 0, -likelihood, divergence).mean(-1) / math.log(2.0)
        return squared_error, bits

    def reverse(
        self,
        predict: Callable[[torch.Tensor, torch.Tensor], tuple[torch.Tensor, torch.Tensor]],
        start: torch.Tensor,
        noise: Callable[[], torch.Tensor],
        temperature: float = 1.0,
    ) -> torch.Tensor:
        """Ancestral sampling over the kept steps: `x <- mean + exp(log variance / 2) * noise * temperature`.

        Args:
            predict: noisy rows and their original time `(rows,)` to the predicted noise and `v`.
            start: `(rows, …, channels)` standard normal.
            noise: gives the noise of each step but the last, in the form of `start`.
            temperature: factor on the noise of the steps.
        """
        state = start
        for index in reversed(range(self.num_steps)):
            times = torch.full((len(start),), self.timesteps[index], device=start.device)
            predicted_noise, interpolation = predict(state, times)
            state_mean = self.posterior_mean(self.clean(state, predicted_noise, index), state, index)
            if index == 0:
                return state_mean
            deviation = (0.5 * self.log_variance(interpolation, index)).exp()
            state = state_mean + deviation * noise() * temperature
        raise AssertionError("a process has at least one step")

    def _at(self, name: str, steps: torch.Tensor | int) -> Any:
        """A table's entry at one step, or `(rows, 1)` fp32 entries at each row's."""
        if isinstance(steps, int):
            return float(self._tables[name][steps])
        if (name, steps.device) not in self._on_device:
            self._on_device[name, steps.device] = torch.from_numpy(self._tables[name]).float().to(steps.device)
        return self._on_device[name, steps.device][steps][:, None]


@cache
def diffusion(num_steps: int, respacing: str | None) -> GaussianDiffusion:
    """The process with these tables, computed once."""
    return GaussianDiffusion(num_steps, respacing)


def _normal_divergence(
    mean: torch.Tensor, log_variance: torch.Tensor, other_mean: torch.Tensor, other_log_variance: torch.Tensor
) -> torch.Tensor:
    """`KL(N(mean, variance) || N(other))` per channel, in nats."""
    ratio = (log_variance - other_log_variance).exp()
    distance = (mean - other_mean).square() * (-other_log_variance).exp()
    return 0.5 * (other_log_variance - log_variance + ratio + distance - 1.0)


def _discretised_log_likelihood(values: torch.Tensor, mean: torch.Tensor, log_scale: torch.Tensor) -> torch.Tensor:
    """Log-probability of the bin around each value under a Gaussian, the outermost bins open, in nats."""
    centred, inverse = values - mean, (-log_scale).exp()
    upper, lower = _cumulative(inverse * (centred + _HALF_BIN)), _cumulative(inverse * (centred - _HALF_BIN))
    inside = (upper - lower).clamp(min=1e-12).log()
    below, above = upper.clamp(min=1e-12).log(), (1.0 - lower).clamp(min=1e-12).log()
    return torch.where(values < -_EDGE, below, torch.where(values > _EDGE, above, inside))


def _cumulative(values: torch.Tensor) -> torch.Tensor:
    """The standard normal's cumulative distribution, by the usual tanh approximation."""
    return 0.5 * (1.0 + torch.tanh(math.sqrt(2.0 / math.pi) * (values + 0.044715 * values**3)))
