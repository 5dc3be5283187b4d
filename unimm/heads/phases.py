"""One head per phase of a plan."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers import PreTrainedConfig

from ..configuration import UniMMConfig, any_config
from ..errors import ConfigError
from ..generation.guidance import Guide
from ..generation.randomness import Randomness
from ..tokens import TokenKind
from .base import NO_CONTEXT, HeadContext, HeadSample, PredictionHead, TokenSampling


class PhaseHeadsConfig(UniMMConfig):
    """Several heads of one kind, for plans and backbones that predict in several phases.

    Args:
        head_config: of every head.
        num_phases: number of heads.

    Raises:
        ConfigError: no phase.
    """

    model_type = "unimm_phase_heads"
    sub_configs_defaults = {"head_config": any_config("unimm_categorical_head")}
    head_config: dict[str, Any] | PreTrainedConfig | None = None
    num_phases: int = 2

    def __post_init__(self, **kwargs: Any) -> None:
        super().__post_init__(**kwargs)
        if self.num_phases < 1:
            raise ConfigError(f"num_phases must be at least 1, given {self.num_phases}")

    @property
    def condition_form(self) -> str | None:
        return self.head_config.condition_form

    def build(self, hidden_size: int, kind: TokenKind) -> PhaseHeads:
        return PhaseHeads([self.head_config.build(hidden_size, kind) for _ in range(self.num_phases)])


class PhaseHeads(PredictionHead):
    """Leaves everything to the head of the context's phase."""

    def __init__(self, heads: list[PredictionHead]):
        super().__init__()
        self.heads = nn.ModuleList(heads)
        self.is_categorical = heads[0].is_categorical
        self.looks_at_groups = heads[0].looks_at_groups

    def _head(self, context: HeadContext) -> PredictionHead:
        head = self.heads[context.phase]
        assert isinstance(head, PredictionHead)
        return head

    def loss(
        self,
        hidden_states: torch.Tensor,
        targets: torch.Tensor,
        context: HeadContext = NO_CONTEXT,
        randomness: Randomness | None = None,
    ) -> torch.Tensor:
        return self._head(context).loss(hidden_states, targets, context, randomness)

    def sample(
        self,
        hidden_states: torch.Tensor | None,
        context: HeadContext,
        guide: Guide,
        randomness: Randomness,
        sampling: TokenSampling,
    ) -> HeadSample:
        return self._head(context).sample(hidden_states, context, guide, randomness, sampling)

    def logits(self, hidden_states: torch.Tensor, context: HeadContext = NO_CONTEXT) -> torch.Tensor | None:
        return self._head(context).logits(hidden_states, context)

    def log_prob(
        self, hidden_states: torch.Tensor, values: torch.Tensor, context: HeadContext = NO_CONTEXT
    ) -> torch.Tensor:
        return self._head(context).log_prob(hidden_states, values, context)
