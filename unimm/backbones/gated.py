"""Parts of transformers whose blocks are steered by a condition and gate their feed-forward by GELU (xAR, FlowAR)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from transformers import Cache
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from .attention import eager_attention
from .positions import rotate_adjacent_pairs

Rotary = tuple[torch.Tensor, torch.Tensor]


def modulate(states: torch.Tensor, scale: torch.Tensor, shift: torch.Tensor, eps: float) -> torch.Tensor:
    """`rms(states) * (1 + scale) + shift`, an RMS norm without gain, its mean of squares in fp32."""
    normed = F.rms_norm(states.float(), states.shape[-1:], eps=eps).to(states.dtype)
    return normed * (1 + scale) + shift


def spread_over_runs(vectors: torch.Tensor, runs: Sequence[int] | None) -> torch.Tensor:
    """`(rows, vectors, …)` to `(rows, slots, …)`: each vector holds for a run of slots. None leaves them as they are."""
    if runs is None:
        return vectors
    parts = zip(vectors.split(1, dim=1), runs, strict=True)
    return torch.cat([one.expand(-1, run, *vectors.shape[2:]) for one, run in parts], dim=1)


class GeluGatedFeedForward(nn.Module):
    """`down(gelu(gate(x)) * up(x))` with the exact GELU, all layers with biases."""

    def __init__(self, width: int, inner: int, dropout: float = 0.0):
        super().__init__()
        self.gate = nn.Linear(width, inner)
        self.up = nn.Linear(width, inner)
        self.down = nn.Linear(inner, width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        return self.dropout(self.down(F.gelu(self.gate(states)) * self.up(states)))


class RotaryAttention(nn.Module):
    """Multi-head self-attention with rotary positions: one fused projection (rows: queries, keys, values).

    Args:
        owner: config of the model that it belongs to, which names the attention implementation; None for PyTorch's own.
        width: channels.
        num_heads: attention heads.
        bias: of the fused projection; the output projection always has one.
        layer_index: its place in the cache.
        dropout: share of output channels dropped in training.
        attention_dropout: share of attention weights dropped in training.
    """

    num_key_value_groups = 1
    is_causal = False

    def __init__(
        self,
        owner: Any,
        width: int,
        num_heads: int,
        *,
        bias: bool = True,
        layer_index: int = 0,
        dropout: float = 0.0,
        attention_dropout: float = 0.0,
    ):
        super().__init__()
        self.owner, self.layer_index, self.attention_dropout = owner, layer_index, attention_dropout
        self.head_dim = width // num_heads
        self.scaling = self.head_dim**-0.5
        self.qkv = nn.Linear(width, 3 * width, bias=bias)
        self.proj = nn.Linear(width, width)
        self.output_dropout = nn.Dropout(dropout)

    def forward(
        self,
        states: torch.Tensor,
        rotary: Rotary,
        mask: Any = None,
        is_causal: bool = False,
        cache: Cache | None = None,
    ) -> torch.Tensor:
        """Attends from `states` `(rows, slots, width)` to itself and to what the cache holds."""
        query, key, value = self.qkv(states).unflatten(-1, (3, -1, self.head_dim)).unbind(2)
        query, key = rotate_adjacent_pairs(query, rotary), rotate_adjacent_pairs(key, rotary)
        query, key, value = query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2)
        if cache is not None:
            key, value = cache.update(key, value, self.layer_index)
        implementation = "sdpa" if self.owner is None else self.owner._attn_implementation
        attend = ALL_ATTENTION_FUNCTIONS.get_interface(implementation, eager_attention)
        attended, _ = attend(
            self,
            query,
            key,
            value,
            mask,
            dropout=self.attention_dropout if self.training else 0.0,
            scaling=self.scaling,
            is_causal=is_causal,
        )
        return self.output_dropout(self.proj(attended.flatten(2)))
