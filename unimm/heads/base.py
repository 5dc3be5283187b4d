"""The contract of a prediction head: the distribution of a token given its hidden state."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import torch
from torch import nn
from transformers import LogitsProcessorList

from ..generation.filters import SoftCodes
from ..generation.guidance import Guide
from ..generation.randomness import Randomness

if TYPE_CHECKING:
    from ..plans.base import TokenGroup

#: `(noisy tokens (rows, tokens, channels), times (rows,)) -> hidden states (rows, tokens, hidden)`, for heads whose
#: network is the whole backbone.
Denoise = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class NoisyTokens:
    """Clean tokens on their way to noise, and what a denoising network is to say about them.

    Args:
        values: `(batch, tokens, channels)`.
        times: `(batch,)`, as the network is told.
        targets: `(batch, tokens, channels)`.
    """

    values: torch.Tensor
    times: torch.Tensor
    targets: torch.Tensor


#: `(clean tokens (batch, tokens, channels), randomness) -> noisy ones`, of heads whose network is the whole backbone. All
#: tokens of a sample get one time.
Corrupt = Callable[[torch.Tensor, Randomness], NoisyTokens]


@dataclass(frozen=True)
class HeadContext:
    """What a head may know beside the hidden states.

    Args:
        vector: `(rows, hidden)` condition vector, or `(rows, slots, hidden)`; None where the model has none.
        spoken: `(tokens, taps)` bool, which of a token's several hidden states speak of it; None for one hidden state.
        groups: tokens that stand on one grid together, for heads that look at all of them at once.
        phase: which of several heads predicts.
        known: `(batch, tokens)` bool, tokens that are given already, with their values in `values`.
        values: `(batch, tokens, …)`, valid where `known`.
        denoise: runs the backbone on noisy tokens, where it is the head's network.
    """

    vector: torch.Tensor | None = None
    spoken: torch.Tensor | None = None
    groups: tuple[TokenGroup, ...] | None = None
    phase: int = 0
    known: torch.Tensor | None = None
    values: torch.Tensor | None = None
    denoise: Denoise | None = None


#: Hidden states alone.
NO_CONTEXT = HeadContext()


@dataclass(frozen=True)
class TokenSampling:
    """How tokens are drawn from a head's distribution.

    Args:
        processors: transformers' logits processors (temperature, top-k, top-p, …), applied per slot.
        temperature: of continuous distributions, which no logits processor knows.
        do_sample: draw; otherwise take the most likely token.
        num_inference_steps: evaluations of a diffusion or flow head; None for the head's own number.
        soft_codes: also mix the codebook's rows by a relaxed draw.
        codebook: `(codebook, channels)`, needed for soft codes.
        progress: share of the steps that are done, in [0, 1].
        levels: processors and temperature per level of the layout, coarse to fine, instead of the same at all; the last
            ones hold for further levels.
    """

    processors: LogitsProcessorList = field(default_factory=LogitsProcessorList)
    temperature: float = 1.0
    do_sample: bool = True
    num_inference_steps: int | None = None
    soft_codes: SoftCodes | None = None
    codebook: torch.Tensor | None = None
    progress: float = 0.0
    levels: tuple[tuple[LogitsProcessorList, float], ...] = ()

    def at(self, level: int, progress: float) -> TokenSampling:
        """How tokens of a level are drawn."""
        if not self.levels:
            return replace(self, progress=progress)
        processors, temperature = self.levels[min(level, len(self.levels) - 1)]
        return replace(self, processors=processors, temperature=temperature, progress=progress)


@dataclass(frozen=True)
class HeadSample:
    """One step's tokens.

    Args:
        values: `(batch, tokens[, codes])` ids or `(batch, tokens, channels)` latents.
        logits: `(batch, tokens, …)` after guidance, before any filter; None for continuous heads.
        embeddings: `(batch, tokens, channels)` soft codes, where the head was asked for them.
        confidence: `(batch, tokens)` probability of what was drawn, after all filters; None where nobody knows it.
    """

    values: torch.Tensor
    logits: torch.Tensor | None = None
    embeddings: torch.Tensor | None = None
    confidence: torch.Tensor | None = None


class PredictionHead(nn.Module, ABC):
    """The distribution of a token given its hidden state, and the condition vector where the head is modulated."""

    #: Whether the distribution has logits over ids, with filters of their own.
    is_categorical = True
    #: Whether the tokens of a group depend on each other inside the head.
    looks_at_groups = False

    @abstractmethod
    def loss(
        self,
        hidden_states: torch.Tensor,
        targets: torch.Tensor,
        context: HeadContext = NO_CONTEXT,
        randomness: Randomness | None = None,
    ) -> torch.Tensor:
        """Loss per token, `(batch, tokens)`.

        Args:
            hidden_states: `(batch, tokens, hidden)`, or `(batch, tokens, taps, hidden)`.
            targets: `(batch, tokens[, codes])` ids or `(batch, tokens, channels)` latents.
            context: what else the head may know.
            randomness: where noise and times come from.
        """

    @abstractmethod
    def sample(
        self,
        hidden_states: torch.Tensor | None,
        context: HeadContext,
        guide: Guide,
        randomness: Randomness,
        sampling: TokenSampling,
    ) -> HeadSample:
        """Draws one token per slot.

        Args:
            hidden_states: `(rows, tokens, hidden)`, the rows of the other contexts below those of the condition; None
                where the backbone is the head's network.
            context: what else the head may know.
            guide: combines the rows' predictions into one per sample.
            randomness: where the draws come from.
            sampling: filters, temperature, number of steps.
        """

    def logits(self, hidden_states: torch.Tensor, context: HeadContext = NO_CONTEXT) -> torch.Tensor | None:
        """Unguided logits of every token, None for heads without logits."""
        return None

    @abstractmethod
    def log_prob(
        self, hidden_states: torch.Tensor, values: torch.Tensor, context: HeadContext = NO_CONTEXT
    ) -> torch.Tensor:
        """Log-probability of every token, `(batch, tokens)`, unguided and unfiltered.

        Raises:
            ConfigError: a head without a tractable likelihood.
        """
