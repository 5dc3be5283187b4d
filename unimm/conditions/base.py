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
        vector: `(batch, hidden)`, modulates the blocks (AdaLN) or starts the first slot.
        prefix: `(batch, prefix length, hidden)`, slots put before the first token.
        prefix_mask: `(batch, prefix length)` bool, False for padding; None when nothing is padded.
    """

    vector: torch.Tensor | None = None
    prefix: torch.Tensor | None = None
    prefix_mask: torch.Tensor | None = None

    @property
    def prefix_length(self) -> int:
        return 0 if self.prefix is None else self.prefix.shape[1]

    @property
    def num_rows(self) -> int:
        part = self.vector if self.vector is not None else self.prefix
        assert part is not None
        return part.shape[0]

    @property
    def device(self) -> torch.device:
        part = self.vector if self.vector is not None else self.prefix
        assert part is not None
        return part.device

    def first_rows(self, number: int) -> Condition:
        """The first `number` rows."""
        return Condition(
            *(None if part is None else part[:number] for part in (self.vector, self.prefix, self.prefix_mask))
        )

    def repeat_interleave(self, times: int) -> Condition:
        """Every row `times` times, one after the other: several samples per condition."""
        return Condition(
            *(
                None if part is None else part.repeat_interleave(times, dim=0)
                for part in (self.vector, self.prefix, self.prefix_mask)
            )
        )

    def equals(self, other: Condition) -> bool:
        """Whether all rows are the same as another condition's. Waits for the device."""
        pairs = zip(
            (self.vector, self.prefix, self.prefix_mask), (other.vector, other.prefix, other.prefix_mask), strict=True
        )
        return all(
            (a is None and b is None) or (a is not None and b is not None and torch.equal(a, b)) for a, b in pairs
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

    Prefixes of unequal length are padded on the left, and masked there.
    """
    if len(conditions) == 1:
        return conditions[0]

    def rows(parts: list[torch.Tensor | None]) -> torch.Tensor | None:
        return None if parts[0] is None else torch.cat([part for part in parts if part is not None])

    vector = rows([condition.vector for condition in conditions])
    if conditions[0].prefix is None:
        return Condition(vector=vector)
    length = max(condition.prefix_length for condition in conditions)
    if all(condition.prefix_mask is None and condition.prefix_length == length for condition in conditions):
        return Condition(vector, rows([condition.prefix for condition in conditions]))
    prefixes, masks = [], []
    for condition in conditions:
        assert condition.prefix is not None
        missing = length - condition.prefix_length
        mask = condition.prefix_mask
        if mask is None:
            mask = torch.ones(condition.prefix.shape[:2], dtype=torch.bool, device=condition.device)
        prefixes.append(torch.nn.functional.pad(condition.prefix, (0, 0, missing, 0)))
        masks.append(torch.nn.functional.pad(mask.bool(), (missing, 0), value=False))
    return Condition(vector, torch.cat(prefixes), torch.cat(masks))


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
