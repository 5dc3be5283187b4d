"""One softmax per code of a token, all independent given the hidden state: a classifier of 2^d values with 2d outputs."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from ..errors import ConfigError
from ..generation.guidance import Guide
from ..generation.randomness import Randomness
from ..tokens import TokenKind
from .base import NO_CONTEXT, HeadContext, HeadSample, TokenSampling
from .categorical import CategoricalHead, CategoricalHeadConfig, draw_ids


class BitwiseHeadConfig(CategoricalHeadConfig):
    """A linear layer with one softmax per code (https://huggingface.co/papers/2412.04431, section 3.2).

    Fields as in `CategoricalHeadConfig`. With bits, parameters grow with the number of bits, not with the number of values
    of a token.
    """

    model_type = "unimm_bitwise_head"

    def build(self, hidden_size: int, kind: TokenKind) -> BitwiseHead:
        if not kind.is_discrete or kind.num_codes < 2:
            raise ConfigError(
                f"the bitwise head predicts several codes per token, the tokenizer gives {kind}: choose a bitwise tokenizer, "
                "or the categorical head"
            )
        return BitwiseHead(self, hidden_size, kind)


class BitwiseHead(CategoricalHead):
    """`softmax` over each code's own rows of `proj(norm(hidden))`, in fp32."""

    def __init__(self, config: BitwiseHeadConfig, hidden_size: int, kind: TokenKind):
        super().__init__(config, hidden_size, kind)
        assert kind.codebook_size is not None
        self.kind = kind
        self.proj = nn.Linear(hidden_size, kind.num_codes * kind.codebook_size, bias=config.bias)

    def logits(self, hidden_states: torch.Tensor, context: HeadContext = NO_CONTEXT) -> torch.Tensor:
        """`(rows, slots, hidden)` to `(rows, slots, codes, codebook)` fp32."""
        return super().logits(hidden_states, context).unflatten(-1, (self.kind.num_codes, -1))

    def loss(
        self,
        hidden_states: torch.Tensor,
        targets: torch.Tensor,
        context: HeadContext = NO_CONTEXT,
        randomness: Randomness | None = None,
    ) -> torch.Tensor:
        """Mean over the codes of a token, `(batch, tokens)`."""
        smoothing = float(self.config.label_smoothing) if self.training else 0.0
        logits = self.logits(hidden_states, context).movedim(-1, 1)
        return F.cross_entropy(logits, targets, reduction="none", label_smoothing=smoothing).mean(-1)

    def sample(
        self,
        hidden_states: torch.Tensor | None,
        context: HeadContext,
        guide: Guide,
        randomness: Randomness,
        sampling: TokenSampling,
    ) -> HeadSample:
        """Draws every code from its guided and filtered distribution, in the order of slots and codes.

        Raises:
            ConfigError: soft codes, which mix the rows of a table that these tokens do not have.
        """
        assert hidden_states is not None
        if sampling.soft_codes is not None:
            raise ConfigError(
                "soft codes mix the rows of one codebook, these tokens have several codes and no such table"
            )
        logits = guide(self.logits(hidden_states, context))
        drawn = draw_ids(logits.flatten(1, 2), randomness, sampling)
        assert drawn.confidence is not None
        shape = logits.shape[1:3]
        confidence = drawn.confidence.unflatten(1, shape).prod(-1)
        return HeadSample(drawn.values.unflatten(1, shape), logits, confidence=confidence)

    def log_prob(
        self, hidden_states: torch.Tensor, values: torch.Tensor, context: HeadContext = NO_CONTEXT
    ) -> torch.Tensor:
        """Sum over the codes of a token, `(batch, tokens)`."""
        log_probs = self.logits(hidden_states, context).log_softmax(-1)
        return log_probs.gather(-1, values[..., None])[..., 0].sum(-1)
