"""What steers a generation, in the forms that plans, backbones and heads take it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import nn

if TYPE_CHECKING:
    from .text_encoder import TextEncoder


@dataclass(frozen=True)
class Condition:
    """A batch of conditions.

    Args:
        vector: `(batch, hidden)`, modulates the blocks (AdaLN) or starts the first slot; `(batch, slots, hidden)` where
            it differs from slot to slot.
        prefix: `(batch, prefix length, hidden)`, slots put before the first token.
        prefix_mask: `(batch, prefix length)` bool, False for padding; None when nothing is padded.
        memory: `(batch, memory length, channels)`, what blocks with cross-attention look at.
        memory_mask: `(batch, memory length)` bool, False for padding; None when nothing is padded.
    """

    vector: torch.Tensor | None = None
    prefix: torch.Tensor | None = None
    prefix_mask: torch.Tensor | None = None
    memory: torch.Tensor | None = None
    memory_mask: torch.Tensor | None = None

    @property
    def parts(self) -> tuple[torch.Tensor | None, ...]:
        return self.vector, self.prefix, self.prefix_mask, self.memory, self.memory_mask

    @property
    def _any_part(self) -> torch.Tensor:
        return next(part for part in self.parts if part is not None)

    @property
    def prefix_length(self) -> int:
        return 0 if self.prefix is None else self.prefix.shape[1]

    @property
    def num_rows(self) -> int:
        return self._any_part.shape[0]

    @property
    def device(self) -> torch.device:
        return self._any_part.device

    def first_rows(self, number: int) -> Condition:
        """The first `number` rows."""
        return Condition(*(None if part is None else part[:number] for part in self.parts))

    def repeat_interleave(self, times: int) -> Condition:
        """Every row `times` times, one after the other: several samples per condition."""
        return Condition(*(None if part is None else part.repeat_interleave(times, dim=0) for part in self.parts))

    def equals(self, other: Condition) -> bool:
        """Whether all rows are the same as another condition's. Waits for the device."""
        return all(
            (a is None and b is None) or (a is not None and b is not None and torch.equal(a, b))
            for a, b in zip(self.parts, other.parts, strict=True)
        )

    def position_ids(self, length: int) -> torch.Tensor:
        """Running index of `length` slots after the prefix included, padding not counted, `(batch or 1, length)`."""
        steps = torch.arange(length, device=self.device)
        if self.prefix_mask is None:
            return steps[None]
        padding = (~self.prefix_mask).long()
        counts = torch.nn.functional.pad(padding.cumsum(1), (0, length - self.prefix_length), mode="replicate")
        return (steps[None] - counts).clamp(min=0)

    def key_mask(self, length: int) -> torch.Tensor | None:
        """The prefix's mask continued by True for the slots after it, `(batch, length)`; None when nothing is padded."""
        if self.prefix_mask is None:
            return None
        return torch.nn.functional.pad(self.prefix_mask.bool(), (0, length - self.prefix_length), value=True)


def stack_conditions(conditions: list[Condition]) -> Condition:
    """The rows of several conditions under each other: a doubled batch for guidance.

    Prefixes and memories of unequal length are padded, and masked there: prefixes on the left, memories on the right.
    """
    if len(conditions) == 1:
        return conditions[0]
    vectors = [condition.vector for condition in conditions if condition.vector is not None]
    prefix, prefix_mask = _stack([(one.prefix, one.prefix_mask) for one in conditions], pad_left=True)
    memory, memory_mask = _stack([(one.memory, one.memory_mask) for one in conditions], pad_left=False)
    return Condition(torch.cat(vectors) if vectors else None, prefix, prefix_mask, memory, memory_mask)


def _stack(
    parts: list[tuple[torch.Tensor | None, torch.Tensor | None]], pad_left: bool
) -> tuple[torch.Tensor | None, torch.Tensor | None]:
    """Sequences `(batch, length, channels)` of unequal length under each other, with their masks."""
    given = [(sequence, mask) for sequence, mask in parts if sequence is not None]
    if not given:
        return None, None
    length = max(sequence.shape[1] for sequence, _ in given)
    if all(mask is None and sequence.shape[1] == length for sequence, mask in given):
        return torch.cat([sequence for sequence, _ in given]), None
    sequences, masks = [], []
    for sequence, mask in given:
        missing = length - sequence.shape[1]
        padding = (missing, 0) if pad_left else (0, missing)
        if mask is None:
            mask = torch.ones(sequence.shape[:2], dtype=torch.bool, device=sequence.device)
        sequences.append(torch.nn.functional.pad(sequence, (0, 0, *padding)))
        masks.append(torch.nn.functional.pad(mask.bool(), padding, value=False))
    return torch.cat(sequences), torch.cat(masks)


class Conditioner(nn.Module, ABC):
    """Turns what a user gives (a label, text features) into a `Condition`, and knows the null condition."""

    #: Names of the inputs that `forward` takes, the required one first.
    input_names: tuple[str, ...]
    #: Share of the training samples whose condition is replaced by the null condition, for guidance.
    drop_probability: float

    @property
    def takes_text(self) -> bool:
        """Whether the inputs are features of a text encoder."""
        return "text_features" in self.input_names

    @property
    def described_inputs(self) -> str:
        """The inputs in words, for error messages."""
        return " and ".join(self.input_names)

    @property
    def needs_empty_prompt(self) -> bool:
        """Whether the null condition is the empty prompt, whose features are not known yet."""
        return False

    def learn_null(self, encoder: TextEncoder) -> None:
        """Takes the empty prompt's features, where they are the null condition and not known yet."""

    @abstractmethod
    def forward(self, **inputs: torch.Tensor) -> Condition:
        """The condition of a batch."""

    @abstractmethod
    def null(self, **inputs: torch.Tensor) -> Condition:
        """The null condition for the same batch."""

    @abstractmethod
    def check(self, **inputs: torch.Tensor) -> None:
        """Refuses inputs of another shape or range than the condition was built for."""

    @abstractmethod
    def batch_size(self, **inputs: torch.Tensor) -> int:
        """Number of samples that the inputs speak of."""
