"""Our visual transformer: AdaLN blocks as in VAR, or Llama-like blocks with rotary positions on a grid as in LlamaGen."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
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
from .attention import Attention
from .condition import EncodedCondition
from .cross_attention import CrossAttention
from .positions import EncodedPositions, axial_rotary

_SIZES = ("hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "intermediate_size")


class VisualTransformerConfig(UniMMConfig):
    """A decoder over slots.

    Args:
        block: `adaln` modulates parameter-free layer norms by the condition vector, with a GELU feed-forward (VAR);
            `llama` has RMS norms with gain and a gated feed-forward (LlamaGen).
        intermediate_size: width of the feed-forward.
        num_key_value_heads: heads of keys and values, as many as of queries when None.
        memory_size: channels of the condition's memory, which AdaLN blocks then attend to between self-attention and
            feed-forward, after a layer norm with gain; None for no cross-attention.
        share_modulation: one modulation layer for all blocks, with a learned offset per block (VAR at 512 pixels).
        use_bias: biases on the attention's output and the feed-forward.
        query_value_bias: biases on queries and values, none on keys.
        normalize_queries_and_keys: unit length, with a learned scale per head.
        softmax_scale: factor on the attention logits, `head_dim ** -0.5` when None.
        rotary_theta: base of the rotary frequencies over grid coordinates; None for no rotary encoding.
        drop_path: share of residual branches dropped in the last block, rising linearly from 0.
        initializer_range: standard deviation of weights; `sqrt(1 / (3 hidden_size))` when None.
        gate_initializer_gain: factor on the initial rows of the modulation that gate the branches.
        scale_residual_initializer: divide the output layers of the branches by `sqrt(2 num_hidden_layers)` at the start.
        tap_depths: numbers of blocks after which hidden states are given, each with a final norm of its own, for plans and
            heads that read several depths; the last one is `num_hidden_layers`. None for the last block's alone.

    Raises:
        ConfigError: sizes below 1, or that do not divide, or depths that do not exist.
    """

    model_type = "unimm_visual_transformer"
    block: Literal["adaln", "llama"] = "llama"
    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    num_key_value_heads: int | None = None
    intermediate_size: int = 2048
    memory_size: int | None = None
    share_modulation: bool = False
    use_bias: bool = False
    query_value_bias: bool = False
    normalize_queries_and_keys: bool = False
    softmax_scale: float | int | None = None
    rotary_theta: float | int | None = 10000.0
    norm_eps: float = 1e-5
    dropout: float | int = 0.0
    attention_dropout: float | int = 0.0
    drop_path: float | int = 0.0
    initializer_range: float | int | None = 0.02
    gate_initializer_gain: float | int = 1e-3
    scale_residual_initializer: bool = False
    tap_depths: list[int] | tuple[int, ...] | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        super().__post_init__(**kwargs)
        if self.num_key_value_heads is None:
            self.num_key_value_heads = self.num_attention_heads
        for name in _SIZES:
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be at least 1, given {getattr(self, name)}")
        if self.memory_size is not None and (self.memory_size < 1 or self.block != "adaln"):
            raise ConfigError(
                f"memory_size must be at least 1 and belongs to blocks 'adaln', given {self.memory_size} with '{self.block}'"
            )
        if self.hidden_size % self.num_attention_heads or self.num_attention_heads % self.num_key_value_heads:
            raise ConfigError(
                f"hidden_size ({self.hidden_size}) must be a multiple of num_attention_heads "
                f"({self.num_attention_heads}), and that of num_key_value_heads ({self.num_key_value_heads})"
            )

        depths = self.tap_depths
        if depths is not None and (
            not depths or min(depths) < 1 or list(depths) != sorted(depths) or depths[-1] != self.num_hidden_layers
        ):
            raise ConfigError(
                f"tap_depths must rise from at least 1 to num_hidden_layers ({self.num_hidden_layers}), given "
                f"{tuple(depths)}"
            )

    @property
    def head_dim(self) -> int:
        return self.hidden_size // self.num_attention_heads

    @property
    def num_taps(self) -> int:
        return len(self.tap_depths or (self.num_hidden_layers,))

    @property
    def abilities(self) -> tuple[str, ...]:
        return () if self.tap_depths is None else ("taps",)

    @property
    def condition_form(self) -> str | None:
        return "vector" if self.block == "adaln" else None

    @property
    def condition_forms(self) -> tuple[str, ...]:
        """All forms of condition that the blocks take."""
        vector = () if self.condition_form is None else (self.condition_form,)
        return vector if self.memory_size is None else (*vector, "memory")


@dataclass
class VisualTransformerOutput(BaseModelOutputWithPast):
    """Hidden states of the new slots.

    Args:
        last_hidden_state: `(batch, slots, hidden)`.
        taps: the same at every depth of `tap_depths`, the last of which is `last_hidden_state`; None without such depths.
        hidden_states: inputs of all blocks and the last block's output, where asked for.
    """

    taps: tuple[torch.Tensor, ...] | None = None


class FeedForward(nn.Module):
    """`down(gelu(up(x)))` with the tanh form of GELU."""

    def __init__(self, config: VisualTransformerConfig):
        super().__init__()
        self.up = nn.Linear(config.hidden_size, config.intermediate_size, bias=config.use_bias)
        self.down = nn.Linear(config.intermediate_size, config.hidden_size, bias=config.use_bias)
        self.dropout = nn.Dropout(float(config.dropout))

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return self.dropout(self.down(F.gelu(self.up(hidden_states), approximate="tanh")))


class GatedFeedForward(nn.Module):
    """`down(silu(gate(x)) * up(x))`."""

    def __init__(self, config: VisualTransformerConfig):
        super().__init__()
        self.gate = nn.Linear(config.hidden_size, config.intermediate_size, bias=config.use_bias)
        self.up = nn.Linear(config.hidden_size, config.intermediate_size, bias=config.use_bias)
        self.down = nn.Linear(config.intermediate_size, config.hidden_size, bias=config.use_bias)
        self.dropout = nn.Dropout(float(config.dropout))

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return self.dropout(self.down(F.silu(self.gate(hidden_states)) * self.up(hidden_states)))


class DropPath(nn.Module):
    """Drops a residual branch for a share of the samples in training, and scales the others up."""

    def __init__(self, probability: float):
        super().__init__()
        self.probability = probability

    def forward(self, branch: torch.Tensor) -> torch.Tensor:
        if not self.training or self.probability == 0.0:
            return branch
        keep = 1.0 - self.probability
        mask = torch.rand(branch.shape[0], *[1] * (branch.dim() - 1), device=branch.device) < keep
        return branch * mask.to(branch.dtype) / keep


class Modulation(nn.Module):
    """Vectors that modulate layer norms, from the condition: `linear(silu(condition))`, split into `chunks`."""

    def __init__(self, condition_size: int, hidden_size: int, chunks: int):
        super().__init__()
        self.chunks = chunks
        self.linear = nn.Linear(condition_size, chunks * hidden_size)

    def forward(self, condition: torch.Tensor) -> torch.Tensor:
        """`(batch, condition_size)` to `(batch, 1, chunks, hidden)`, or `(batch, slots, …)` to `(batch, slots, chunks, …)`."""
        vectors = self.linear(F.silu(condition)).unflatten(-1, (self.chunks, -1))
        return vectors[:, None] if vectors.dim() == 3 else vectors


class LlamaBlock(GradientCheckpointingLayer):
    """`h = x + attention(norm(x))`, `out = h + feed_forward(norm(h))`."""

    def __init__(self, config: VisualTransformerConfig, layer_index: int, drop_path: float):
        super().__init__()
        self.attention_norm = LlamaRMSNorm(config.hidden_size, eps=config.norm_eps)
        self.attention = Attention(config, layer_index)
        self.feed_forward_norm = LlamaRMSNorm(config.hidden_size, eps=config.norm_eps)
        self.feed_forward = GatedFeedForward(config)
        self.drop_path = DropPath(drop_path)

    def forward(
        self,
        hidden_states: torch.Tensor,
        modulation: torch.Tensor | None,
        positions: EncodedPositions,
        mask: Any,
        is_causal: bool,
        cache: Cache | None = None,
    ) -> torch.Tensor:
        attended = self.attention(self.attention_norm(hidden_states), positions, mask, is_causal, cache)
        hidden_states = hidden_states + self.drop_path(attended)
        return hidden_states + self.drop_path(self.feed_forward(self.feed_forward_norm(hidden_states)))


class AdaLNBlock(GradientCheckpointingLayer):
    """Layer norms without gain, scaled, shifted and gated by the condition.

    The six vectors come in the order attention gate, feed-forward gate, attention scale, feed-forward scale, attention
    shift, feed-forward shift.
    """

    def __init__(self, config: VisualTransformerConfig, layer_index: int, drop_path: float):
        super().__init__()
        self.norm = nn.LayerNorm(config.hidden_size, eps=config.norm_eps, elementwise_affine=False)
        self.attention = Attention(config, layer_index)
        self.has_memory = config.memory_size is not None
        if config.memory_size is not None:
            self.cross_attention_norm = nn.LayerNorm(config.hidden_size, eps=config.norm_eps)
            self.cross_attention = CrossAttention(config, config.memory_size)
        self.feed_forward = FeedForward(config)
        self.drop_path = DropPath(drop_path)
        if config.share_modulation:
            self.modulation_offset = nn.Embedding(6, config.hidden_size)
        else:
            self.modulation = Modulation(config.hidden_size, config.hidden_size, chunks=6)

    def modulate(self, condition: torch.Tensor, shared: torch.Tensor | None) -> torch.Tensor:
        """This block's six vectors, `(batch, 1, 6, hidden)`."""
        if shared is None:
            return self.modulation(condition)
        return shared + self.modulation_offset(torch.arange(6, device=shared.device))

    def forward(
        self,
        hidden_states: torch.Tensor,
        modulation: torch.Tensor,
        positions: EncodedPositions,
        mask: Any,
        is_causal: bool,
        cache: Cache | None = None,
        memory: tuple[torch.Tensor, torch.Tensor] | None = None,
        memory_mask: torch.Tensor | None = None,
    ) -> torch.Tensor:
        gate1, gate2, scale1, scale2, shift1, shift2 = modulation.unbind(2)
        attended = self.attention(self.norm(hidden_states) * (1 + scale1) + shift1, positions, mask, is_causal, cache)
        hidden_states = hidden_states + self.drop_path(attended * gate1)
        if self.has_memory:
            assert memory is not None
            seen = self.cross_attention(self.cross_attention_norm(hidden_states), memory, memory_mask)
            hidden_states = hidden_states + seen
        fed = self.feed_forward(self.norm(hidden_states) * (1 + scale2) + shift2)
        return hidden_states + self.drop_path(fed * gate2)


class VisualTransformer(HubModelMixin, PreTrainedModel):
    """Turns slots into hidden states."""

    config: VisualTransformerConfig
    config_class = VisualTransformerConfig
    base_model_prefix = "backbone"
    main_input_name = "inputs_embeds"
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_flex_attn = True
    _no_split_modules = ["LlamaBlock", "AdaLNBlock"]
    _full_precision_modules = (r".*modulation",)
    #: Whether `forward` takes `mix_after`.
    mixes_rows = True

    def __init__(self, config: VisualTransformerConfig):
        super().__init__(config)
        block = AdaLNBlock if config.block == "adaln" else LlamaBlock
        rates = torch.linspace(0, float(config.drop_path), config.num_hidden_layers, device="cpu").tolist()
        self.layers = nn.ModuleList([block(config, index, rate) for index, rate in enumerate(rates)])
        if config.block == "adaln" and config.share_modulation:
            self.shared_modulation = Modulation(config.hidden_size, config.hidden_size, chunks=6)
        self.final_norm = _final_norm(config)
        if config.tap_depths is not None:
            self.tap_norms = nn.ModuleList(_final_norm(config) for _ in config.tap_depths[:-1])
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        std = self.config.initializer_range
        std = math.sqrt(1 / (3 * self.config.hidden_size)) if std is None else float(std)
        if isinstance(module, nn.Linear | nn.Embedding):
            init.trunc_normal_(module.weight, std=std)
            if getattr(module, "bias", None) is not None:
                init.zeros_(module.bias)
        elif isinstance(module, LlamaRMSNorm):
            init.ones_(module.weight)
        elif isinstance(module, nn.LayerNorm) and module.elementwise_affine:
            init.ones_(module.weight)
            init.zeros_(module.bias)
        elif isinstance(module, CrossAttention):
            init.zeros_(module.value_bias)
        elif isinstance(module, Attention):
            if self.config.query_value_bias:
                init.zeros_(module.query_bias)
                init.zeros_(module.value_bias)
            if self.config.normalize_queries_and_keys:
                init.constant_(module.log_scale, math.log(4.0))
        elif isinstance(module, AdaLNBlock | LlamaBlock) and self.config.scale_residual_initializer:
            shrunk = std / math.sqrt(2 * self.config.num_hidden_layers)
            init.trunc_normal_(module.attention.proj.weight, std=shrunk)
            init.trunc_normal_(module.feed_forward.down.weight, std=shrunk)
        if isinstance(module, AdaLNBlock):
            table = module.modulation_offset if self.config.share_modulation else module.modulation.linear
            self._init_gates(table.weight, std)
        elif isinstance(module, VisualTransformer) and self.config.block == "adaln" and self.config.share_modulation:
            self._init_gates(self.shared_modulation.linear.weight, std)

    def _init_gates(self, weight: torch.Tensor, std: float) -> None:
        """Rows that gate a branch start near zero, rows that scale and shift at half the usual size."""
        fresh = torch.empty_like(weight)
        nn.init.trunc_normal_(fresh, std=std * 0.5)
        num_gate_rows = weight.shape[0] // 3
        nn.init.trunc_normal_(fresh[:num_gate_rows], std=std)
        fresh[:num_gate_rows] *= float(self.config.gate_initializer_gain)
        init.copy_(weight, fresh)

    def encode_positions(self, positions: SlotPositions) -> EncodedPositions:
        """The rotary table (if any) of a sequence, computed once and sliced by step.

        Raises:
            ConfigError: the head width does not divide by twice the number of grid axes.
        """
        rotary = None
        if self.config.rotary_theta is not None:
            num_axes = positions.coordinates.shape[1]
            if self.config.head_dim % (2 * num_axes):
                raise ConfigError(
                    f"rotary positions over {num_axes} axes need a head width divisible by {2 * num_axes}, "
                    f"given {self.config.head_dim}"
                )
            rotary = axial_rotary(
                positions.coordinates, positions.is_prefix, self.config.head_dim, float(self.config.rotary_theta)
            )
        return EncodedPositions(rotary, positions.position_ids)

    def encode_condition(self, condition: Condition | None) -> EncodedCondition:
        """Every block's modulation for a condition, computed once and used at every step.

        Raises:
            ConfigError: AdaLN blocks without a condition vector, or cross-attention without a memory.
        """
        if self.config.block != "adaln":
            return EncodedCondition([None] * len(self.blocks()))
        if condition is None or condition.vector is None:
            raise ConfigError("AdaLN blocks need a condition vector; give the condition the form 'vector'")
        vector = condition.vector
        shared = self.shared_modulation(vector) if self.config.share_modulation else None
        blocks: Iterable[Any] = self.blocks()
        modulations = [block.modulate(vector, shared) for block in blocks]
        if self.config.memory_size is None:
            return EncodedCondition(modulations)
        if condition.memory is None:
            raise ConfigError("blocks with cross-attention need a memory; give a condition of the form 'memory'")
        memories = [block.cross_attention.remember(condition.memory) for block in blocks]
        mask = condition.memory_mask
        return EncodedCondition(modulations, memories, None if mask is None else mask[:, None, None].bool())

    def blocks(self) -> list[nn.Module]:
        """All blocks, in the order of an encoded condition."""
        return list(self.layers)

    def path(self, phase: int) -> Sequence[int]:
        """Which of `blocks` a phase runs through, in their order."""
        return range(len(self.layers))

    def forward(
        self,
        inputs_embeds: torch.Tensor,
        positions: EncodedPositions,
        rule: AttentionRule,
        condition: EncodedCondition | None = None,
        cache: Cache | None = None,
        start: int = 0,
        output_hidden_states: bool = False,
        mix_after: Mapping[int, Callable[[torch.Tensor], torch.Tensor]] | None = None,
        phase: int = 0,
    ) -> VisualTransformerOutput:
        """Runs the blocks over new slots.

        Args:
            inputs_embeds: `(batch, slots, hidden)`.
            positions: of the new slots, from `encode_positions`.
            rule: visibility over the whole sequence.
            condition: from `encode_condition`.
            cache: keys and values of the slots before `start`; the new ones are appended.
            start: index of the first new slot in the sequence.
            output_hidden_states: also return the inputs of all blocks and the output.
            mix_after: what the rows do with each other after a block, by its place on the path: guidance of hidden states.
            phase: which of several branches predicts.
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
        if condition is None:
            condition = self.encode_condition(None)
        hidden_states, collected, taps = inputs_embeds, [], []
        early_depths = (self.config.tap_depths or ())[:-1]
        blocks = self.blocks()
        for depth, index in enumerate(self.path(phase), start=1):
            layer, modulation = blocks[index], condition.modulations[index]
            if output_hidden_states:
                collected.append(hidden_states)
            memory = (condition.memories[index], condition.memory_mask) if condition.memories else ()
            hidden_states = layer(hidden_states, modulation, positions, mask, is_causal, cache, *memory)
            if mix_after and depth - 1 in mix_after:
                hidden_states = mix_after[depth - 1](hidden_states)
            taps += [self.tap_norms[tap](hidden_states) for tap, one in enumerate(early_depths) if one == depth]
        if output_hidden_states:
            collected.append(hidden_states)
        last_hidden_state = self.final_norm(hidden_states)
        return VisualTransformerOutput(
            last_hidden_state=last_hidden_state,
            cache=cache,
            hidden_states=tuple(collected) if output_hidden_states else None,
            taps=None if self.config.tap_depths is None else (*taps, last_hidden_state),
        )


def _final_norm(config: VisualTransformerConfig) -> nn.Module:
    if config.block == "llama":
        return LlamaRMSNorm(config.hidden_size, eps=config.norm_eps)
    return nn.Identity()
