"""A transformer in two halves, each with position tables of its own, whose blocks a condition steers (xAR, FlowAR)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import nn
from transformers import Cache, PreTrainedModel
from transformers import initialization as init
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutputWithPast
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from ..conditions.base import Condition
from ..configuration import UniMMConfig
from ..errors import ConfigError
from ..hub.mixins import HubModelMixin
from ..plans.base import AttentionRule, SlotPositions
from .condition import EncodedCondition
from .gated import GeluGatedFeedForward, Rotary, RotaryAttention, modulate, spread_over_runs
from .positions import axial_rotary
from .transformer import Modulation


class HalvesTransformerConfig(UniMMConfig):
    """Two stacks of blocks, one behind the other.

    Args:
        num_encoder_layers: blocks of the first half.
        num_decoder_layers: blocks of the second half.
        num_attention_heads: heads of the first half.
        num_decoder_attention_heads: heads of the second half; None for as many.
        intermediate_size: width of the gated feed-forward.
        num_positions: slots of the longest sequence, rows of the position tables.
        output_positions: add a third position table to the output.
        rotary_theta: base of the rotary frequencies over grid coordinates.
        dropout: share of the branches' output channels dropped in training.
        initializer_range: standard deviation of the tables; linear layers are Xavier-uniform.

    Raises:
        ConfigError: sizes below 1, or that do not divide.
    """

    model_type = "unimm_halves_transformer"
    hidden_size: int = 768
    num_encoder_layers: int = 8
    num_decoder_layers: int = 8
    num_attention_heads: int = 12
    num_decoder_attention_heads: int | None = None
    intermediate_size: int = 2048
    num_positions: int = 256
    output_positions: bool = False
    rotary_theta: float | int = 10000.0
    norm_eps: float = 1e-6
    dropout: float | int = 0.0
    attention_dropout: float | int = 0.0
    initializer_range: float | int = 0.02

    #: What plans may ask of it.
    abilities: ClassVar[tuple[str, ...]] = ("slot_conditions",)

    def __post_init__(self, **kwargs: Any) -> None:
        super().__post_init__(**kwargs)
        if self.num_decoder_attention_heads is None:
            self.num_decoder_attention_heads = self.num_attention_heads
        for name in (
            "hidden_size",
            "num_encoder_layers",
            "num_decoder_layers",
            "num_attention_heads",
            "num_decoder_attention_heads",
            "intermediate_size",
            "num_positions",
        ):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be at least 1, given {getattr(self, name)}")
        for name in ("num_attention_heads", "num_decoder_attention_heads"):
            if self.hidden_size % getattr(self, name):
                raise ConfigError(
                    f"hidden_size ({self.hidden_size}) must be a multiple of {name} ({getattr(self, name)})"
                )

    @property
    def num_hidden_layers(self) -> int:
        return self.num_encoder_layers + self.num_decoder_layers

    @property
    def condition_form(self) -> str:
        return "vector"


@dataclass(frozen=True)
class HalvesPositions:
    """Positions of a sequence for both halves.

    Args:
        encoder: cosines and sines of the first half, each `(slots, head_dim / 2)` fp32.
        decoder: the same of the second half.
        position_ids: `(batch or 1, slots)` int64, rows of the tables.
    """

    encoder: Rotary
    decoder: Rotary
    position_ids: torch.Tensor

    def first_rows(self, number: int) -> HalvesPositions:
        """The positions of the first `number` rows of the batch."""
        return HalvesPositions(self.encoder, self.decoder, self.position_ids[:number])

    def __getitem__(self, slots: slice) -> HalvesPositions:
        encoder, decoder = ((cosine[slots], sine[slots]) for cosine, sine in (self.encoder, self.decoder))
        return HalvesPositions(encoder, decoder, self.position_ids[:, slots])


class GatedAdaLNBlock(GradientCheckpointingLayer):
    """RMS norms without gain, scaled, shifted and gated by the condition; a feed-forward gated by GELU.

    The six vectors come in the order attention gate, feed-forward gate, attention scale, feed-forward scale, attention
    shift, feed-forward shift.
    """

    def __init__(self, config: HalvesTransformerConfig, num_heads: int, layer_index: int):
        super().__init__()
        width = config.hidden_size
        self.eps = config.norm_eps
        self.attention = RotaryAttention(
            config,
            width,
            num_heads,
            layer_index=layer_index,
            dropout=float(config.dropout),
            attention_dropout=float(config.attention_dropout),
        )
        self.feed_forward = GeluGatedFeedForward(width, config.intermediate_size, float(config.dropout))
        self.modulation = Modulation(width, width, chunks=6)

    def forward(
        self,
        hidden_states: torch.Tensor,
        modulation: torch.Tensor,
        runs: Sequence[int] | None,
        rotary: Rotary,
        mask: Any,
        is_causal: bool,
        cache: Cache | None = None,
    ) -> torch.Tensor:
        vectors = spread_over_runs(modulation, runs).to(hidden_states.dtype)
        gate1, gate2, scale1, scale2, shift1, shift2 = vectors.unbind(2)
        normed = modulate(hidden_states, scale1, shift1, self.eps)
        hidden_states = hidden_states + gate1 * self.attention(normed, rotary, mask, is_causal, cache)
        return hidden_states + gate2 * self.feed_forward(modulate(hidden_states, scale2, shift2, self.eps))


class HalvesTransformer(HubModelMixin, PreTrainedModel):
    """`out = norm(decoder(between(norm(encoder(norm(slots + table)))) + table))`, with a third table where asked for."""

    config: HalvesTransformerConfig
    config_class = HalvesTransformerConfig
    base_model_prefix = "backbone"
    main_input_name = "inputs_embeds"
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_flex_attn = True
    _no_split_modules = ["GatedAdaLNBlock"]
    _full_precision_modules = (r".*modulation",)

    def __init__(self, config: HalvesTransformerConfig):
        super().__init__(config)
        width = config.hidden_size
        self.encoder_positions = nn.Embedding(config.num_positions, width)
        self.input_norm = LlamaRMSNorm(width, eps=config.norm_eps)
        self.encoder = nn.ModuleList(
            GatedAdaLNBlock(config, config.num_attention_heads, index) for index in range(config.num_encoder_layers)
        )
        self.encoder_norm = LlamaRMSNorm(width, eps=config.norm_eps)
        self.between = nn.Linear(width, width)
        self.decoder_positions = nn.Embedding(config.num_positions, width)
        heads = config.num_decoder_attention_heads
        assert heads is not None
        self.decoder = nn.ModuleList(
            GatedAdaLNBlock(config, heads, config.num_encoder_layers + index)
            for index in range(config.num_decoder_layers)
        )
        self.final_norm = LlamaRMSNorm(width, eps=config.norm_eps)
        self.output_positions = nn.Embedding(config.num_positions, width) if config.output_positions else None
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, nn.Linear):
            init.xavier_uniform_(module.weight)
            if module.bias is not None:
                init.zeros_(module.bias)
        elif isinstance(module, nn.Embedding):
            init.normal_(module.weight, std=float(self.config.initializer_range))
        elif isinstance(module, LlamaRMSNorm):
            init.ones_(module.weight)

    def encode_positions(self, positions: SlotPositions) -> HalvesPositions:
        """The rotary tables of a sequence and its rows of the position tables.

        Raises:
            ConfigError: a head width that does not divide by twice the number of grid axes, or a sequence longer than the
                tables.
        """
        number, num_axes = positions.position_ids.shape[1], positions.coordinates.shape[1]
        if number > self.config.num_positions:
            raise ConfigError(
                f"the position tables have {self.config.num_positions} rows, the sequence has {number} slots"
            )
        rotaries = []
        for heads in (self.config.num_attention_heads, self.config.num_decoder_attention_heads):
            assert heads is not None
            head_dim = self.config.hidden_size // heads
            if head_dim % (2 * num_axes):
                raise ConfigError(
                    f"rotary positions over {num_axes} axes need a head width divisible by {2 * num_axes}, given {head_dim}"
                )
            theta = float(self.config.rotary_theta)
            rotaries.append(axial_rotary(positions.coordinates, positions.is_prefix, head_dim, theta))
        return HalvesPositions(rotaries[0], rotaries[1], positions.position_ids)

    def encode_condition(self, condition: Condition | None) -> EncodedCondition:
        """Every block's modulation for a condition, computed once and used at every step.

        Raises:
            ConfigError: no condition vector.
        """
        if condition is None or condition.vector is None:
            raise ConfigError("AdaLN blocks need a condition vector; give the condition the form 'vector'")
        blocks: list[Any] = [*self.encoder, *self.decoder]
        return EncodedCondition([block.modulation(condition.vector) for block in blocks])

    def forward(
        self,
        inputs_embeds: torch.Tensor,
        positions: HalvesPositions,
        rule: AttentionRule,
        condition: EncodedCondition,
        cache: Cache | None = None,
        start: int = 0,
        output_hidden_states: bool = False,
        condition_runs: Sequence[int] | None = None,
    ) -> BaseModelOutputWithPast:
        """Runs both halves over new slots.

        Args:
            inputs_embeds: `(batch, slots, hidden)`.
            positions: of the new slots, from `encode_positions`.
            rule: visibility over the whole sequence.
            condition: from `encode_condition`.
            cache: keys and values of the slots before `start`; the new ones are appended.
            start: index of the first new slot in the sequence.
            output_hidden_states: also return the inputs of all blocks and the output.
            condition_runs: how many slots each of the condition's vectors holds for, in order; None where there is one
                for all or one for each.
        """
        batch, length, _ = inputs_embeds.shape
        stop = start + length
        key_length = stop
        if cache is not None and cache.is_compileable:
            key_length = cache.get_mask_sizes(length, 0)[0]
        mask, is_causal = rule.mask(
            self.config._attn_implementation or "eager",
            start,
            stop,
            batch,
            inputs_embeds.device,
            inputs_embeds.dtype,
            key_length,
        )
        modulations, collected = list(condition.modulations), []
        places = positions.position_ids
        states = self.input_norm(inputs_embeds + self.encoder_positions(places))
        for layer, modulation in zip(self.encoder, modulations[: len(self.encoder)], strict=True):
            collected.append(states)
            states = layer(states, modulation, condition_runs, positions.encoder, mask, is_causal, cache)
        states = self.between(self.encoder_norm(states)) + self.decoder_positions(places)
        for layer, modulation in zip(self.decoder, modulations[len(self.encoder) :], strict=True):
            collected.append(states)
            states = layer(states, modulation, condition_runs, positions.decoder, mask, is_causal, cache)
        collected.append(states)
        states = self.final_norm(states)
        if self.output_positions is not None:
            states = states + self.output_positions(places)
        return BaseModelOutputWithPast(
            last_hidden_state=states,
            cache=cache,
            hidden_states=tuple(collected) if output_hidden_states else None,
        )
