"""Self-attention of the visual transformer, through transformers' attention interface."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import nn
from transformers import Cache
from transformers.integrations.sdpa_attention import repeat_kv
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from .positions import EncodedPositions, rotate_adjacent_pairs

if TYPE_CHECKING:
    from .transformer import VisualTransformerConfig


def eager_attention(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float,
    dropout: float = 0.0,
    **kwargs: Any,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention in plain operations, with the weights returned; arguments as in transformers' attention interface."""
    groups = module.num_key_value_groups
    key, value = repeat_kv(key, groups), repeat_kv(value, groups)
    weights = torch.matmul(query, key.transpose(2, 3)) * scaling
    if attention_mask is not None:
        weights = weights + attention_mask[..., : key.shape[-2]]
    weights = F.softmax(weights, dim=-1, dtype=torch.float32).to(query.dtype)
    weights = F.dropout(weights, p=dropout, training=module.training)
    return torch.matmul(weights, value).transpose(1, 2).contiguous(), weights


class Attention(nn.Module):
    """Multi-head or grouped-query self-attention with one fused projection (rows: queries, keys, values).

    Options of the config: biases on queries and values only, queries and keys of unit length with a learned scale per
    head (`q * exp(min(log_scale, log 100))`, softmax scale 1), rotary positions.
    """

    def __init__(self, config: VisualTransformerConfig, layer_index: int):
        super().__init__()
        self.config = config
        self.layer_index = layer_index
        self.num_heads = config.num_attention_heads
        self.num_key_value_heads = config.num_key_value_heads or config.num_attention_heads
        self.num_key_value_groups = self.num_heads // self.num_key_value_heads
        self.head_dim = config.head_dim
        self.is_causal = False
        self.qkv = nn.Linear(
            config.hidden_size, (self.num_heads + 2 * self.num_key_value_heads) * self.head_dim, bias=False
        )
        if config.query_value_bias:
            self.query_bias = nn.Parameter(torch.zeros(self.num_heads * self.head_dim))
            self.value_bias = nn.Parameter(torch.zeros(self.num_key_value_heads * self.head_dim))
        if config.normalize_queries_and_keys:
            self.log_scale = nn.Parameter(torch.full((1, self.num_heads, 1, 1), math.log(4.0)))
        self.scaling = config.softmax_scale if config.softmax_scale is not None else self.head_dim**-0.5
        self.proj = nn.Linear(self.num_heads * self.head_dim, config.hidden_size, bias=config.use_bias)
        self.output_dropout = nn.Dropout(float(config.dropout))

    def forward(
        self,
        hidden_states: torch.Tensor,
        positions: EncodedPositions,
        mask: Any,
        is_causal: bool,
        cache: Cache | None = None,
    ) -> torch.Tensor:
        """Attends from `hidden_states` `(batch, slots, hidden)` to itself and to what the cache holds."""
        batch, length, _ = hidden_states.shape
        # The layer itself is called, never its weight alone: it may be quantized, adapted or offloaded.
        states = self.qkv(hidden_states)
        if self.config.query_value_bias:
            bias = torch.cat([self.query_bias, torch.zeros_like(self.value_bias), self.value_bias])
            states = states + bias.to(states.dtype)
        states = states.view(batch, length, -1, self.head_dim)
        query, key, value = states.split([self.num_heads, self.num_key_value_heads, self.num_key_value_heads], dim=2)
        if positions.rotary is not None:
            query = rotate_adjacent_pairs(query, positions.rotary)
            key = rotate_adjacent_pairs(key, positions.rotary)
        query, key, value = query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2)
        if self.config.normalize_queries_and_keys:
            scale = self.log_scale.clamp(max=math.log(100.0)).exp()
            query = (F.normalize(query, dim=-1) * scale).to(value.dtype)
            key = F.normalize(key, dim=-1).to(value.dtype)
        if cache is not None:
            key, value = cache.update(key, value, self.layer_index)
        attend = ALL_ATTENTION_FUNCTIONS.get_interface(self.config._attn_implementation, eager_attention)
        output, _ = attend(
            self,
            query,
            key,
            value,
            mask,
            dropout=float(self.config.attention_dropout) if self.training else 0.0,
            scaling=self.scaling,
            is_causal=is_causal,
        )
        return self.output_dropout(self.proj(output.reshape(batch, length, -1)))
