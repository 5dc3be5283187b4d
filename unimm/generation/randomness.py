"""The one source of random draws in sampling and training, with a name for every draw."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence

import torch

from ..checks import require_tensor
from ..errors import ConfigError, UniMMError


class Randomness(ABC):
    """Named draws. `uniform`, `exponential` and `normal` are what a source provides, `categorical` follows from them."""

    @abstractmethod
    def uniform(self, shape: Sequence[int], name: str, device: torch.device) -> torch.Tensor:
        """Uniform numbers in [0, 1), fp32."""

    @abstractmethod
    def exponential(self, shape: Sequence[int], name: str, device: torch.device) -> torch.Tensor:
        """Exponential numbers of rate 1, fp32."""

    @abstractmethod
    def normal(
        self, shape: Sequence[int], name: str, device: torch.device, dtype: torch.dtype = torch.float32
    ) -> torch.Tensor:
        """Standard normal numbers."""

    def categorical(self, probabilities: torch.Tensor, name: str) -> torch.Tensor:
        """Ids drawn from `(…, vocabulary)` probabilities: `argmax p_v / e_v` with exponential `e`."""
        noise = self.exponential(probabilities.shape, name, probabilities.device)
        return (probabilities / noise).argmax(-1)


class GeneratorRandomness(Randomness):
    """Draws from a `torch.Generator`, or from one per sample, so that a batch equals its samples one by one.

    Args:
        generator: one for the batch, a list with one per sample, or None for torch's global one.
    """

    def __init__(self, generator: torch.Generator | Sequence[torch.Generator] | None = None):
        self.generator = generator

    def uniform(self, shape: Sequence[int], name: str, device: torch.device) -> torch.Tensor:
        return self._draw(shape, device, "uniform_")

    def exponential(self, shape: Sequence[int], name: str, device: torch.device) -> torch.Tensor:
        return self._draw(shape, device, "exponential_").clamp_(min=torch.finfo(torch.float32).tiny)

    def normal(
        self, shape: Sequence[int], name: str, device: torch.device, dtype: torch.dtype = torch.float32
    ) -> torch.Tensor:
        return self._draw(shape, device, "normal_", dtype)

    def _draw(
        self, shape: Sequence[int], device: torch.device, method: str, dtype: torch.dtype = torch.float32
    ) -> torch.Tensor:
        if self.generator is None or isinstance(self.generator, torch.Generator):
            where = device if self.generator is None else self.generator.device
            empty = torch.empty(*shape, device=where, dtype=dtype)
            return getattr(empty, method)(generator=self.generator).to(device)
        if len(self.generator) != shape[0]:
            raise UniMMError(f"{len(self.generator)} generators given for a batch of {shape[0]}: give one per sample")
        rows = [
            getattr(torch.empty(tuple(shape[1:]), device=generator.device, dtype=dtype), method)(generator=generator)
            for generator in self.generator
        ]
        return torch.stack(rows).to(device)


class RecordedRandomness(Randomness):
    """Replays recorded draws, for verification.

    A categorical draw takes a recorded uniform `u` and gives the number of entries whose inclusive cumulative
    probability, in double precision and in the order of the vocabulary, is `<= u`.

    Args:
        draws: name to the recorded numbers, consumed in order over all calls with that name.

    Raises:
        ConfigError: draws that are no tensors.
    """

    def __init__(self, draws: Mapping[str, torch.Tensor]):
        for name, numbers in draws.items():
            require_tensor(numbers, f"the recorded draws '{name}'", "(…)", error=ConfigError)
        self.draws = {name: numbers.flatten() for name, numbers in draws.items()}
        self.consumed = dict.fromkeys(draws, 0)

    def uniform(self, shape: Sequence[int], name: str, device: torch.device) -> torch.Tensor:
        return self._next(shape, name).to(device)

    def exponential(self, shape: Sequence[int], name: str, device: torch.device) -> torch.Tensor:
        return self._next(shape, name).to(device)

    def normal(
        self, shape: Sequence[int], name: str, device: torch.device, dtype: torch.dtype = torch.float32
    ) -> torch.Tensor:
        return self._next(shape, name).to(device, dtype)

    def categorical(self, probabilities: torch.Tensor, name: str) -> torch.Tensor:
        uniform = self._next(probabilities.shape[:-1], name).to(probabilities.device).double()
        cumulative = probabilities.double().cumsum(-1)
        ids = (cumulative <= uniform[..., None]).sum(-1)
        return ids.clamp(max=probabilities.shape[-1] - 1)

    def _next(self, shape: Sequence[int], name: str) -> torch.Tensor:
        if name not in self.draws:
            raise UniMMError(f"no draws named '{name}' were recorded, only {sorted(self.draws)}")
        number, start = int(torch.Size(shape).numel()), self.consumed[name]
        if start + number > self.draws[name].numel():
            raise UniMMError(f"the recorded draws '{name}' ran out: {self.draws[name].numel()} recorded")
        self.consumed[name] = start + number
        return self.draws[name][start : start + number].view(*shape)
