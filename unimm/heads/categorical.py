"""One softmax over the codebook per slot."""

from __future__ import annotations

from abc import abstractmethod
from typing import Literal

import torch
import torch.nn.functional as F
from torch import nn
from transformers import initialization as init

from ..configuration import UniMMConfig
from ..errors import ConfigError
from ..generation.guidance import Guide
from ..generation.randomness import Randomness
from ..tokens import TokenKind
from .base import NO_CONTEXT, HeadContext, HeadSample, PredictionHead, TokenSampling


class CategoricalHeadConfig(UniMMConfig):
    """A linear layer and a softmax.

    Args:
        norm: `adaln` puts a layer norm modulated by the condition vector before the linear layer (VAR).
        bias: bias of the linear layer.
        label_smoothing: share of the target's mass spread evenly over the codebook in training.
        initializer_gain: factor on the initial weights of the linear layer; 0 starts from the uniform distribution.
    """

    model_type = "unimm_categorical_head"
    norm: Literal["none", "adaln"] = "none"
    norm_eps: float = 1e-6
    bias: bool = False
    label_smoothing: float | int = 0.0
    initializer_gain: float | int = 1.0

    @property
    def condition_form(self) -> str | None:
        return "vector" if self.norm == "adaln" else None

    def build(self, hidden_size: int, kind: TokenKind) -> CategoricalHead:
        if not kind.is_discrete or kind.num_codes > 1:
            raise ConfigError(
                f"the categorical head predicts one id per token, the tokenizer gives {kind}: choose a tokenizer with one "
                "codebook, or a head for these tokens"
            )
        return CategoricalHead(self, hidden_size, kind)


class SoftmaxHead(PredictionHead):
    """One softmax over the codebook per token; subclasses give its logits."""

    label_smoothing = 0.0

    @abstractmethod
    def logits(self, hidden_states: torch.Tensor, context: HeadContext = NO_CONTEXT) -> torch.Tensor:
        """Logits of every token, `(rows, tokens, codebook)` fp32."""

    def loss(
        self,
        hidden_states: torch.Tensor,
        targets: torch.Tensor,
        context: HeadContext = NO_CONTEXT,
        randomness: Randomness | None = None,
    ) -> torch.Tensor:
        smoothing = self.label_smoothing if self.training else 0.0
        logits = self.logits(hidden_states, context)
        return F.cross_entropy(logits.transpose(1, 2), targets, reduction="none", label_smoothing=smoothing)

    def sample(
        self,
        hidden_states: torch.Tensor | None,
        context: HeadContext,
        guide: Guide,
        randomness: Randomness,
        sampling: TokenSampling,
    ) -> HeadSample:
        """Draws ids from the guided and filtered distribution."""
        assert hidden_states is not None
        return draw_ids(guide(self.logits(hidden_states, context)), randomness, sampling)

    def log_prob(
        self, hidden_states: torch.Tensor, values: torch.Tensor, context: HeadContext = NO_CONTEXT
    ) -> torch.Tensor:
        log_probs = self.logits(hidden_states, context).log_softmax(-1)
        return log_probs.gather(-1, values[..., None])[..., 0]


class CategoricalHead(SoftmaxHead):
    """`softmax(proj(norm(hidden)))`, in fp32."""

    def __init__(self, config: CategoricalHeadConfig, hidden_size: int, kind: TokenKind):
        super().__init__()
        assert kind.codebook_size is not None
        self.config = config
        self.label_smoothing = float(config.label_smoothing)
        if config.norm == "adaln":
            self.norm = nn.LayerNorm(hidden_size, eps=config.norm_eps, elementwise_affine=False)
            self.modulation = nn.Linear(hidden_size, 2 * hidden_size)
        self.proj = nn.Linear(hidden_size, kind.codebook_size, bias=config.bias)

    def init_own_weights(self, std: float) -> None:
        """Scales the linear layer by the config's gain, and halves the modulation."""
        gain = float(self.config.initializer_gain)
        init.copy_(self.proj.weight, torch.nn.init.trunc_normal_(torch.empty_like(self.proj.weight), std=std) * gain)
        if self.config.norm == "adaln":
            init.trunc_normal_(self.modulation.weight, std=std * 0.5)

    def logits(self, hidden_states: torch.Tensor, context: HeadContext = NO_CONTEXT) -> torch.Tensor:
        """`(rows, slots, hidden)` to `(rows, slots, codebook)` fp32."""
        if self.config.norm == "adaln":
            assert context.vector is not None
            scale, shift = self.modulation(F.silu(context.vector))[:, None].chunk(2, dim=-1)
            hidden_states = self.norm(hidden_states) * (1 + scale) + shift
        return self.proj(hidden_states).float()


def draw_ids(logits: torch.Tensor, randomness: Randomness, sampling: TokenSampling) -> HeadSample:
    """One id per slot from guided logits `(batch, slots, vocabulary)`, filtered as the sampling says."""
    batch, slots, vocabulary = logits.shape
    filtered = logits
    if len(sampling.processors):
        flat = logits.reshape(-1, vocabulary)
        no_ids = flat.new_zeros(flat.shape[0], 0, dtype=torch.long)
        filtered = sampling.processors(no_ids, flat).view(batch, slots, vocabulary)
    if sampling.soft_codes is not None:
        assert sampling.codebook is not None
        weights = sampling.soft_codes(filtered, sampling.progress, randomness)
        ids = weights.argmax(-1)
        return HeadSample(ids, logits, weights.to(sampling.codebook.dtype) @ sampling.codebook)
    probabilities = filtered.softmax(-1)
    ids = randomness.categorical(probabilities, "token") if sampling.do_sample else filtered.argmax(-1)
    return HeadSample(ids, logits, confidence=probabilities.gather(-1, ids[..., None])[..., 0])
