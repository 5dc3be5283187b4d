"""One softmax over the codebook per slot."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
import torch.nn.functional as F
from torch import nn
from transformers import LogitsProcessorList
from transformers import initialization as init

from ..configuration import UniMMConfig
from ..generation.filters import SoftCodes
from ..generation.randomness import Randomness
from .base import HeadSample, PredictionHead


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

    def build(self, hidden_size: int, codebook_size: int) -> CategoricalHead:
        return CategoricalHead(self, hidden_size, codebook_size)


class CategoricalHead(PredictionHead):
    """`softmax(proj(norm(hidden)))`, in fp32."""

    def __init__(self, config: CategoricalHeadConfig, hidden_size: int, codebook_size: int):
        super().__init__()
        self.config = config
        if config.norm == "adaln":
            self.norm = nn.LayerNorm(hidden_size, eps=config.norm_eps, elementwise_affine=False)
            self.modulation = nn.Linear(hidden_size, 2 * hidden_size)
        self.proj = nn.Linear(hidden_size, codebook_size, bias=config.bias)

    def init_own_weights(self, std: float) -> None:
        """Scales the linear layer by the config's gain, and halves the modulation."""
        gain = float(self.config.initializer_gain)
        init.copy_(self.proj.weight, torch.nn.init.trunc_normal_(torch.empty_like(self.proj.weight), std=std) * gain)
        if self.config.norm == "adaln":
            init.trunc_normal_(self.modulation.weight, std=std * 0.5)

    def logits(self, hidden_states: torch.Tensor, condition: torch.Tensor | None = None) -> torch.Tensor:
        """`(rows, slots, hidden)` to `(rows, slots, codebook)` fp32."""
        if self.config.norm == "adaln":
            assert condition is not None
            scale, shift = self.modulation(F.silu(condition))[:, None].chunk(2, dim=-1)
            hidden_states = self.norm(hidden_states) * (1 + scale) + shift
        return self.proj(hidden_states).float()

    def loss(
        self,
        hidden_states: torch.Tensor,
        targets: torch.Tensor,
        condition: torch.Tensor | None = None,
        weights: torch.Tensor | None = None,
    ) -> torch.Tensor:
        smoothing = float(self.config.label_smoothing) if self.training else 0.0
        logits = self.logits(hidden_states, condition)
        loss = F.cross_entropy(logits.transpose(1, 2), targets, reduction="none", label_smoothing=smoothing)
        return loss if weights is None else loss * weights

    def sample(  # type: ignore[override]
        self,
        hidden_states: torch.Tensor,
        condition: torch.Tensor | None,
        guide: Callable[[torch.Tensor], torch.Tensor],
        randomness: Randomness,
        *,
        processors: LogitsProcessorList,
        do_sample: bool = True,
        soft_codes: SoftCodes | None = None,
        codebook: torch.Tensor | None = None,
        progress: float = 0.0,
    ) -> HeadSample:
        """Draws ids from the guided and filtered distribution.

        Args:
            processors: transformers' logits processors (temperature, top-k, top-p, …), applied per slot.
            do_sample: draw; otherwise take the most likely id.
            soft_codes: also mix the codebook's rows by a relaxed draw.
            codebook: `(codebook, channels)`, needed for soft codes.
            progress: share of the steps that are done, in [0, 1].
        """
        guided = guide(self.logits(hidden_states, condition))
        batch, slots, vocabulary = guided.shape
        filtered = guided
        if len(processors):
            flat = guided.reshape(-1, vocabulary)
            no_ids = flat.new_zeros(flat.shape[0], 0, dtype=torch.long)
            filtered = processors(no_ids, flat).view(batch, slots, vocabulary)
        embeddings = None
        if soft_codes is not None:
            assert codebook is not None
            weights = soft_codes(filtered, progress, randomness)
            embeddings, ids = weights.to(codebook.dtype) @ codebook, weights.argmax(-1)
        elif do_sample:
            ids = randomness.categorical(filtered.softmax(-1), "token")
        else:
            ids = filtered.argmax(-1)
        return HeadSample(ids=ids, logits=guided, embeddings=embeddings)

    def log_prob(
        self, hidden_states: torch.Tensor, ids: torch.Tensor, condition: torch.Tensor | None = None
    ) -> torch.Tensor:
        log_probs = self.logits(hidden_states, condition).log_softmax(-1)
        return log_probs.gather(-1, ids[..., None])[..., 0]
