"""Attention from slots to a condition's memory."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import nn

if TYPE_CHECKING:
    from .transformer import VisualTransformerConfig


class CrossAttention(nn.Module):
    """Multi-head attention to a memory whose keys and values are computed once per generation.

    Queries have a bias, keys have none, values have one of their own.
    """

    def __init__(self, config: VisualTransformerConfig, memory_size: int):
        super().__init__()
        self.config = config
        self.head_dim = config.head_dim
        self.query = nn.Linear(config.hidden_size, config.hidden_size)
        self.key_value = nn.Linear(memory_size, 2 * config.hidden_size, bias=False)
        self.value_bias = nn.Parameter(torch.zeros(config.hidden_size))
        self.proj = nn.Linear(config.hidden_size, config.hidden_size)
        self.output_dropout = nn.Dropout(float(config.dropout))

    def remember(self, memory: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values without their bias, `(batch, heads, length, head width)`, of a memory `(batch, length, channels)`."""
        keys, values = self.key_value(memory).chunk(2, dim=-1)
        return self._heads(keys), self._heads(values)

    def forward(
        self,
        hidden_states: torch.Tensor,
        memory: tuple[torch.Tensor, torch.Tensor],
        mask: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Attends from slots `(batch, slots, hidden)` to keys and values from `remember`.

        Args:
            mask: `(batch, 1, 1, length)` bool, False for padding.
        """
        keys, values = memory
        # Here and not in `remember`: an offloaded bias is on the device while `forward` runs.
        values = values + self.value_bias.to(values.dtype).unflatten(-1, (-1, 1, self.head_dim))
        attended = F.scaled_dot_product_attention(
            self._heads(self.query(hidden_states)),
            keys,
            values,
            attn_mask=mask,
            dropout_p=float(self.config.attention_dropout) if self.training else 0.0,
        )
        return self.output_dropout(self.proj(attended.transpose(1, 2).flatten(2)))

    def _heads(self, states: torch.Tensor) -> torch.Tensor:
        return states.unflatten(-1, (-1, self.head_dim)).transpose(1, 2)
