"""A masked autoencoder's two stages: an encoder over the known slots alone, a decoder over all of them.

https://huggingface.co/papers/2111.06377; as a generator https://huggingface.co/papers/2406.11838.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import nn
from transformers import Cache, PreTrainedModel
from transformers import initialization as init
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutputWithPast
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from ..conditions.base import Condition
from ..configuration import UniMMConfig
from ..errors import ConfigError, LayoutError
from ..hub.mixins import HubModelMixin
from ..plans.base import AttentionRule, SlotPositions
from ..tokens import put_tokens, take_tokens
from .attention import eager_attention
from .condition import EncodedCondition
from .positions import EncodedPositions

_SIZES = (
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "intermediate_size",
    "decoder_hidden_size",
    "decoder_num_layers",
    "decoder_num_heads",
    "decoder_intermediate_size",
    "num_slots",
)


class EncoderDecoderConfig(UniMMConfig):
    """Two stacks of vision transformer blocks.

    Args:
        hidden_size: width of the encoder.
        num_hidden_layers: blocks of the encoder.
        num_attention_heads: heads of the encoder.
        intermediate_size: width of the encoder's feed-forwards.
        decoder_hidden_size: width of the decoder, and of what comes out.
        decoder_num_layers: blocks of the decoder.
        decoder_num_heads: heads of the decoder.
        decoder_intermediate_size: width of the decoder's feed-forwards.
        num_slots: slots of a whole sequence, prefix included; the decoder learns a position for each.
        num_prefix_slots: how many of them are the condition's prefix; those after it get a second learned position at the
            end.
        norm_eps: of all layer norms.
        dropout: share of channels dropped after each branch in training.
        attention_dropout: share of attention weights dropped in training.
        initializer_range: standard deviation of positions and of the mask's vector; linear layers start by Xavier's rule.

    Raises:
        ConfigError: sizes below 1, or that do not divide.
    """

    model_type = "unimm_encoder_decoder"
    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    decoder_hidden_size: int = 768
    decoder_num_layers: int = 12
    decoder_num_heads: int = 12
    decoder_intermediate_size: int = 3072
    num_slots: int = 320
    num_prefix_slots: int = 64
    norm_eps: float = 1e-6
    dropout: float | int = 0.0
    attention_dropout: float | int = 0.0
    initializer_range: float | int = 0.02

    #: It leaves out slots whose tokens are hidden, and makes no sense for a plan that hides none.
    abilities: ClassVar[tuple[str, ...]] = ("known",)
    requires: ClassVar[tuple[str, ...]] = ("known",)
    condition_form: ClassVar[None] = None

    def __post_init__(self, **kwargs: Any) -> None:
        super().__post_init__(**kwargs)
        for name in _SIZES:
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be at least 1, given {getattr(self, name)}")
        if not 0 <= self.num_prefix_slots < self.num_slots:
            raise ConfigError(
                f"num_prefix_slots must be below num_slots ({self.num_slots}), given {self.num_prefix_slots}"
            )
        for size, heads in (("hidden_size", "num_attention_heads"), ("decoder_hidden_size", "decoder_num_heads")):
            if getattr(self, size) % getattr(self, heads):
                raise ConfigError(
                    f"{size} ({getattr(self, size)}) must be a multiple of {heads} ({getattr(self, heads)})"
                )

    @property
    def output_size(self) -> int:
        """Width of the hidden states that come out."""
        return self.decoder_hidden_size


class ViTAttention(nn.Module):
    """Multi-head self-attention with biases everywhere."""

    def __init__(self, config: EncoderDecoderConfig, width: int, num_heads: int):
        super().__init__()
        self.config = config
        self.num_heads = num_heads
        self.head_dim = width // num_heads
        self.num_key_value_groups = 1
        self.is_causal = False
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, hidden_states: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        states = self.qkv(hidden_states).unflatten(-1, (3, self.num_heads, self.head_dim))
        query, key, value = states.permute(2, 0, 3, 1, 4).unbind(0)
        attend = ALL_ATTENTION_FUNCTIONS.get_interface(self.config._attn_implementation, eager_attention)
        output, _ = attend(
            self,
            query,
            key,
            value,
            mask,
            dropout=float(self.config.attention_dropout) if self.training else 0.0,
            scaling=self.head_dim**-0.5,
            is_causal=False,
        )
        return self.proj(output.reshape(hidden_states.shape))


class ViTBlock(GradientCheckpointingLayer):
    """`h = x + attention(norm(x))`, `out = h + down(gelu(up(norm(h))))`."""

    def __init__(self, config: EncoderDecoderConfig, width: int, num_heads: int, intermediate_size: int):
        super().__init__()
        self.attention_norm = nn.LayerNorm(width, eps=config.norm_eps)
        self.attention = ViTAttention(config, width, num_heads)
        self.feed_forward_norm = nn.LayerNorm(width, eps=config.norm_eps)
        self.up = nn.Linear(width, intermediate_size)
        self.down = nn.Linear(intermediate_size, width)
        self.dropout = nn.Dropout(float(config.dropout))

    def forward(self, hidden_states: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        hidden_states = hidden_states + self.dropout(self.attention(self.attention_norm(hidden_states), mask))
        fed = self.dropout(F.gelu(self.up(self.feed_forward_norm(hidden_states))))
        return hidden_states + self.dropout(self.down(fed))


class EncoderDecoder(HubModelMixin, PreTrainedModel):
    """Turns slots into hidden states; where a slot's token is hidden, what the slot starts from is never looked at."""

    config: EncoderDecoderConfig
    config_class = EncoderDecoderConfig
    base_model_prefix = "backbone"
    main_input_name = "inputs_embeds"
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_flex_attn = True
    _no_split_modules = ["ViTBlock"]

    def __init__(self, config: EncoderDecoderConfig):
        super().__init__(config)
        width = config.decoder_hidden_size
        self.encoder_layers = nn.ModuleList(
            ViTBlock(config, config.hidden_size, config.num_attention_heads, config.intermediate_size)
            for _ in range(config.num_hidden_layers)
        )
        self.encoder_norm = nn.LayerNorm(config.hidden_size, eps=config.norm_eps)
        self.decoder_projection = nn.Linear(config.hidden_size, width)
        self.mask_embedding = nn.Parameter(torch.zeros(width))
        self.decoder_positions = nn.Embedding(config.num_slots, width)
        self.decoder_layers = nn.ModuleList(
            ViTBlock(config, width, config.decoder_num_heads, config.decoder_intermediate_size)
            for _ in range(config.decoder_num_layers)
        )
        self.decoder_norm = nn.LayerNorm(width, eps=config.norm_eps)
        self.output_positions = nn.Embedding(config.num_slots - config.num_prefix_slots, width)
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        std = float(self.config.initializer_range)
        if isinstance(module, nn.Linear):
            init.xavier_uniform_(module.weight)
            init.zeros_(module.bias)
        elif isinstance(module, nn.Embedding):
            init.normal_(module.weight, std=std)
        elif isinstance(module, nn.LayerNorm):
            init.ones_(module.weight)
            init.zeros_(module.bias)
        elif isinstance(module, EncoderDecoder):
            init.normal_(module.mask_embedding, std=std)

    def encode_positions(self, positions: SlotPositions) -> EncodedPositions:
        """No more than the running index: positions are learned vectors."""
        return EncodedPositions(None, positions.position_ids)

    def encode_condition(self, condition: Condition | None) -> EncodedCondition:
        """Nothing: these blocks take a condition among their slots."""
        return EncodedCondition()

    def forward(
        self,
        inputs_embeds: torch.Tensor,
        positions: EncodedPositions,
        rule: AttentionRule,
        condition: EncodedCondition | None = None,
        cache: Cache | None = None,
        start: int = 0,
        output_hidden_states: bool = False,
        known: torch.Tensor | None = None,
        num_known: int | None = None,
    ) -> BaseModelOutputWithPast:
        """Encodes the known slots and decodes all of them.

        Args:
            inputs_embeds: `(batch, slots, hidden)`, always the whole sequence.
            positions: unused.
            rule: visibility over the sequence, in both stages.
            condition: unused.
            cache: refused.
            start: always 0.
            output_hidden_states: also return the inputs of the decoder's blocks and the last one's output.
            known: `(batch, slots)` bool, the slots that the encoder sees, as many in every row; None for all.
            num_known: their number per row, where the caller knows it; counting them waits for the device.

        Returns:
            `last_hidden_state`: `(batch, slots, decoder hidden)`.

        Raises:
            LayoutError: another number of slots than the positions were learned for, or rows that differ in their number
                of known slots.
            ConfigError: a cache, or an attention implementation that cannot express the rule.
        """
        batch, length, _ = inputs_embeds.shape
        if cache is not None or start:
            raise ConfigError("an encoder-decoder sees its whole sequence at every step and keeps no cache")
        if length != self.config.num_slots:
            raise LayoutError(f"this backbone learned positions for {self.config.num_slots} slots, given {length}")
        places = None if known is None else known_places(known, num_known)
        dense = None if rule.everything_visible(0, length) else rule.dense(batch, inputs_embeds.device)
        encoded = inputs_embeds if places is None else take_tokens(inputs_embeds, places)
        mask = self._mask(dense, places, encoded.dtype)
        for layer in self.encoder_layers:
            encoded = layer(encoded, mask)
        encoded = self.decoder_projection(self.encoder_norm(encoded))
        hidden_states = encoded
        if places is not None:
            hidden_states = self.mask_embedding.to(encoded.dtype).expand(batch, length, -1).clone()
            put_tokens(hidden_states, places, encoded)
        hidden_states = hidden_states + self.decoder_positions(torch.arange(length, device=encoded.device))
        mask, collected = self._mask(dense, None, encoded.dtype), []
        for layer in self.decoder_layers:
            collected.append(hidden_states)
            hidden_states = layer(hidden_states, mask)
        collected.append(hidden_states)
        prefix, tokens = self.decoder_norm(hidden_states).tensor_split([self.config.num_prefix_slots], dim=1)
        tokens = tokens + self.output_positions(torch.arange(tokens.shape[1], device=tokens.device))
        return BaseModelOutputWithPast(
            last_hidden_state=torch.cat([prefix, tokens], dim=1),
            hidden_states=tuple(collected) if output_hidden_states else None,
        )

    def _mask(self, dense: torch.Tensor | None, places: torch.Tensor | None, dtype: torch.dtype) -> torch.Tensor | None:
        """What transformers' attention interface takes for the rule among all slots, or among those at some places."""
        if dense is None:
            return None
        implementation = self.config._attn_implementation or "eager"
        if implementation not in ("eager", "sdpa"):
            raise ConfigError(
                f"attention implementation '{implementation}' cannot express which of the known slots see each other; "
                "choose 'sdpa' or 'eager'"
            )
        if places is not None:
            rows = torch.arange(len(dense), device=dense.device)[:, None, None]
            dense = dense[rows, places[:, :, None], places[:, None, :]]
        if implementation == "sdpa":
            return dense[:, None]
        lowest = torch.finfo(dtype).min
        return torch.zeros_like(dense, dtype=dtype).masked_fill(~dense, lowest)[:, None]


def known_places(known: torch.Tensor, number: int | None = None) -> torch.Tensor:
    """Places of the known slots in their order, `(batch, number)` int64.

    Args:
        known: `(batch, slots)` bool.
        number: of known slots per row; None counts them, which waits for the device.

    Raises:
        LayoutError: rows with different numbers of known slots.
    """
    if number is None:
        counts = known.sum(1).tolist()
        if len(set(counts)) > 1:
            raise LayoutError(f"every sample needs the same number of known slots, given {counts}")
        number = counts[0]
    return known.to(torch.uint8).argsort(dim=1, descending=True, stable=True)[:, :number]
