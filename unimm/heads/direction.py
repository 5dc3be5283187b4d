"""One softmax per token from several hidden states, each with a linear layer of its own."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers import initialization as init

from ..configuration import UniMMConfig
from ..errors import ConfigError
from ..tokens import TokenKind
from .base import NO_CONTEXT, HeadContext
from .categorical import SoftmaxHead


class DirectionHeadConfig(UniMMConfig):
    """A linear layer per tap of the backbone, the mean of their logits, and a softmax.

    Args:
        num_taps: hidden states per token: 2 for a picture (right, down), 3 for a video (then the next frame).
        label_smoothing: share of the target's mass spread evenly over the codebook in training.
        initializer_gains: factor on the initial weights of every linear layer, 1 when None.

    Raises:
        ConfigError: no tap, or another number of gains than of taps.
    """

    model_type = "unimm_direction_head"
    num_taps: int = 2
    label_smoothing: float | int = 0.0
    initializer_gains: list[float] | tuple[float, ...] | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        super().__post_init__(**kwargs)
        if self.num_taps < 1:
            raise ConfigError(f"num_taps must be at least 1, given {self.num_taps}")
        if self.initializer_gains is not None and len(self.initializer_gains) != self.num_taps:
            raise ConfigError(f"initializer_gains has {len(self.initializer_gains)} entries for {self.num_taps} taps")

    @property
    def condition_form(self) -> str | None:
        return None

    def build(self, hidden_size: int, kind: TokenKind) -> DirectionHead:
        if not kind.is_discrete or kind.num_codes > 1:
            raise ConfigError(
                f"the direction head predicts one id per token, the tokenizer gives {kind}: choose a tokenizer with one "
                "codebook, or a head for these tokens"
            )
        return DirectionHead(self, hidden_size, kind)


class DirectionHead(SoftmaxHead):
    """`softmax(mean over the taps t that speak of the token of proj_t(hidden_t))`, in fp32.

    The logits are averaged, not the probabilities (https://huggingface.co/papers/2503.10696).
    """

    def __init__(self, config: DirectionHeadConfig, hidden_size: int, kind: TokenKind):
        super().__init__()
        assert kind.codebook_size is not None
        self.config = config
        self.label_smoothing = float(config.label_smoothing)
        self.projections = nn.ModuleList(
            nn.Linear(hidden_size, kind.codebook_size, bias=False) for _ in range(config.num_taps)
        )

    def init_own_weights(self, std: float) -> None:
        """Scales the linear layers by the config's gains."""
        gains = self.config.initializer_gains or [1.0] * self.config.num_taps
        for tap, gain in enumerate(gains):
            weight = self.projections.get_parameter(f"{tap}.weight")
            init.copy_(weight, torch.nn.init.trunc_normal_(torch.empty_like(weight), std=std) * gain)

    def logits(self, hidden_states: torch.Tensor, context: HeadContext = NO_CONTEXT) -> torch.Tensor:
        """`(rows, tokens, taps, hidden)` to `(rows, tokens, codebook)` fp32."""
        each = [
            projection(tap).float() for projection, tap in zip(self.projections, hidden_states.unbind(2), strict=True)
        ]
        if context.spoken is None:
            return torch.stack(each).mean(0)
        shares = context.spoken.to(hidden_states.device, torch.float32)
        shares = shares / shares.sum(1, keepdim=True)
        return sum(logits * shares[:, index, None] for index, logits in enumerate(each))
