"""The contract of a prediction head: the distribution of a token given its hidden state."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

from ..generation.randomness import Randomness


@dataclass(frozen=True)
class HeadSample:
    """One step's tokens.

    Args:
        ids: `(batch, slots)` drawn ids.
        logits: `(batch, slots, vocabulary)` after guidance, before any filter.
        embeddings: `(batch, slots, channels)` soft codes, where the head was asked for them.
    """

    ids: torch.Tensor
    logits: torch.Tensor
    embeddings: torch.Tensor | None = None


class PredictionHead(nn.Module, ABC):
    """The distribution of a token given its hidden state, and the condition vector where the head is modulated."""

    @abstractmethod
    def loss(
        self,
        hidden_states: torch.Tensor,
        targets: torch.Tensor,
        condition: torch.Tensor | None = None,
        weights: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Loss per token, `(batch, slots)`; `weights` `(slots,)` multiply it."""

    @abstractmethod
    def sample(
        self,
        hidden_states: torch.Tensor,
        condition: torch.Tensor | None,
        guide: Callable[[torch.Tensor], torch.Tensor],
        randomness: Randomness,
        **options: object,
    ) -> HeadSample:
        """Draws one token per slot.

        Args:
            hidden_states: `(rows, slots, hidden)`, the rows of the unconditional context below the others.
            condition: `(rows, hidden)` or None.
            guide: combines the rows' predictions into one per sample.
            randomness: where the draws come from.
        """

    @abstractmethod
    def log_prob(
        self, hidden_states: torch.Tensor, ids: torch.Tensor, condition: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Log-probability of every token, `(batch, slots)`, unguided and unfiltered."""
