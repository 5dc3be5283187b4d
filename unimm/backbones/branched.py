"""A visual transformer whose last blocks exist once per phase."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from ..errors import ConfigError
from .transformer import AdaLNBlock, LlamaBlock, VisualTransformer, VisualTransformerConfig


class BranchedTransformerConfig(VisualTransformerConfig):
    """A visual transformer with several ends: phase 0 runs through all `num_hidden_layers` blocks, every further phase through
    the first ones of them and then through last blocks of its own.

    Args:
        num_phases: number of ends.
        branch_layers: blocks that every phase has for itself.

    Raises:
        ConfigError: fewer than two phases, or more branch layers than layers.
    """

    model_type = "unimm_branched_transformer"
    num_phases: int = 2
    branch_layers: int = 8

    #: What a plan may need of a backbone.
    abilities = ("phases",)

    def __post_init__(self, **kwargs: Any) -> None:
        super().__post_init__(**kwargs)
        if self.num_phases < 2 or not 1 <= self.branch_layers <= self.num_hidden_layers:
            raise ConfigError(
                "a branched transformer has at least 2 phases and 1 to num_hidden_layers branch_layers, given "
                f"num_phases={self.num_phases}, branch_layers={self.branch_layers} and "
                f"num_hidden_layers={self.num_hidden_layers}"
            )


class BranchedTransformer(VisualTransformer):
    """Turns slots into hidden states, by the end that belongs to a phase."""

    config: BranchedTransformerConfig
    config_class = BranchedTransformerConfig

    def __init__(self, config: BranchedTransformerConfig):
        super().__init__(config)
        block = AdaLNBlock if config.block == "adaln" else LlamaBlock
        first = config.num_hidden_layers - config.branch_layers
        rates = torch.linspace(0, float(config.drop_path), config.num_hidden_layers, device="cpu").tolist()
        self.branches = nn.ModuleList(
            nn.ModuleList(block(config, index, rates[index]) for index in range(first, config.num_hidden_layers))
            for _ in range(config.num_phases - 1)
        )
        self.post_init()

    def blocks(self) -> list[nn.Module]:
        return [*self.layers, *(block for branch in self.branches for block in branch)]  # type: ignore[attr-defined]

    def path(self, phase: int) -> Sequence[int]:
        depth, own = self.config.num_hidden_layers, self.config.branch_layers
        if phase == 0:
            return range(depth)
        start = depth + (phase - 1) * own
        return [*range(depth - own), *range(start, start + own)]
