"""Flow matching by a small transformer over the tokens of a group (https://huggingface.co/papers/2412.15205)."""

from __future__ import annotations

from itertools import pairwise, product
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import nn
from transformers import initialization as init
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from ..backbones.gated import GeluGatedFeedForward, Rotary, RotaryAttention, modulate
from ..backbones.positions import axial_rotary, rotate_adjacent_pairs
from ..backbones.time import TimeEmbedding
from ..backbones.transformer import Modulation
from ..configuration import UniMMConfig
from ..errors import ConfigError
from ..generation.guidance import Guide
from ..generation.randomness import GeneratorRandomness, Randomness
from ..tokens import TokenKind
from .base import NO_CONTEXT, HeadContext, HeadSample, PredictionHead, TokenSampling
from .flow import network_times

EPS = 1e-6


class FlowTransformerHeadConfig(UniMMConfig):
    """A transformer that moves the tokens of one grid together from noise to data.

    Args:
        width: channels of the transformer.
        num_layers: blocks.
        head_width: channels of an attention head.
        cross_attention: look at the backbone's hidden states by cross-attention, beside the modulation by them.
        extent: all grids' coordinates run from 0 to this.
        rotary_theta: base of the rotary frequencies.
        num_inference_steps: wanted evaluations per group.
        time_grid: where a drawing stops on its way: `uniform`, or `two_part`: half of the points from 1 to 0.3, half from
            0.25 to 0 (an odd number of steps loses one).

    Raises:
        ConfigError: a value out of range.
    """

    model_type = "unimm_flow_transformer_head"
    width: int = 1024
    num_layers: int = 2
    head_width: int = 64
    cross_attention: bool = False
    extent: int = 16
    rotary_theta: float | int = 10000.0
    num_inference_steps: int = 25
    time_grid: Literal["uniform", "two_part"] = "two_part"

    def __post_init__(self, **kwargs: Any) -> None:
        super().__post_init__(**kwargs)
        if self.head_width < 4 or self.head_width % 4 or self.width % self.head_width or self.width < 1:
            raise ConfigError(
                f"width must be a multiple of head_width, and that of 4, given {self.width} and {self.head_width}"
            )
        if self.num_layers < 1 or self.num_inference_steps < 2:
            raise ConfigError(
                "a flow transformer needs at least one layer and two steps, given "
                f"{self.num_layers} and {self.num_inference_steps}"
            )

    @property
    def condition_form(self) -> None:
        return None

    def build(self, hidden_size: int, kind: TokenKind) -> FlowTransformerHead:
        if kind.is_discrete:
            raise ConfigError(
                f"the flow head predicts continuous latents, the tokenizer gives {kind}: choose a KL tokenizer, or a head "
                "for ids"
            )
        return FlowTransformerHead(self, hidden_size, kind)


class FlowBlock(nn.Module):
    """Attention and a gated feed-forward, both modulated by time and condition of every token."""

    def __init__(self, config: FlowTransformerHeadConfig, hidden_size: int):
        super().__init__()
        width = config.width
        self.attention = RotaryAttention(None, width, width // config.head_width, bias=False)
        self.feed_forward = GeluGatedFeedForward(width, int(width * 4 * 2 / 3))
        self.modulation = Modulation(width, width, chunks=6)

    def forward(
        self, states: torch.Tensor, time: torch.Tensor, steering: torch.Tensor, hidden: torch.Tensor, rotary: Rotary
    ) -> torch.Tensor:
        gate1, gate2, scale1, scale2, shift1, shift2 = self.modulation(steering).unbind(2)
        states = states + gate1 * self.attention(modulate(states, scale1, shift1, EPS), rotary)
        return states + gate2 * self.feed_forward(modulate(states, scale2, shift2, EPS))


class CrossAttention(nn.Module):
    """Attention from the noisy tokens to the backbone's hidden states of the same places."""

    def __init__(self, width: int, hidden_size: int, head_width: int):
        super().__init__()
        self.head_width = head_width
        self.query = nn.Linear(width, width, bias=False)
        self.key_value = nn.Linear(hidden_size, 2 * width, bias=False)
        self.proj = nn.Linear(width, width)

    def forward(self, states: torch.Tensor, hidden: torch.Tensor, rotary: Rotary) -> torch.Tensor:
        query = self.query(states).unflatten(-1, (-1, self.head_width))
        key, value = self.key_value(hidden).unflatten(-1, (2, -1, self.head_width)).unbind(2)
        query, key = rotate_adjacent_pairs(query, rotary), rotate_adjacent_pairs(key, rotary)
        attended = F.scaled_dot_product_attention(query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2))
        return self.proj(attended.transpose(1, 2).flatten(2))


class GainNorm(LlamaRMSNorm):
    """An RMS norm that knows its own initial weights, as parts of heads must."""

    def init_own_weights(self, std: float) -> None:
        """No gain."""
        init.ones_(self.weight)


class CrossFlowBlock(nn.Module):
    """Self-attention modulated by the time, cross-attention to the hidden states, and a modulated feed-forward."""

    def __init__(self, config: FlowTransformerHeadConfig, hidden_size: int):
        super().__init__()
        width = config.width
        self.attention = RotaryAttention(None, width, width // config.head_width, bias=False)
        self.attention_modulation = Modulation(width, width, chunks=3)
        self.query_norm = GainNorm(width, eps=EPS)
        self.memory_norm = GainNorm(hidden_size, eps=EPS)
        self.cross_attention = CrossAttention(width, hidden_size, config.head_width)
        self.feed_forward = GeluGatedFeedForward(width, int(width * 4 * 2 / 3))
        self.feed_forward_modulation = Modulation(width, width, chunks=3)

    def forward(
        self, states: torch.Tensor, time: torch.Tensor, steering: torch.Tensor, hidden: torch.Tensor, rotary: Rotary
    ) -> torch.Tensor:
        gate, scale, shift = self.attention_modulation(time).unbind(2)
        states = states + gate * self.attention(modulate(states, scale, shift, EPS), rotary)
        states = states + self.cross_attention(self.query_norm(states), self.memory_norm(hidden), rotary)
        gate, scale, shift = self.feed_forward_modulation(steering).unbind(2)
        return states + gate * self.feed_forward(modulate(states, scale, shift, EPS))


class FlowTransformerHead(PredictionHead):
    """`x_t = (1 - t) x + t noise`; a transformer over the tokens of a group gives the velocity `noise - x`."""

    is_categorical = False
    looks_at_groups = True

    def __init__(self, config: FlowTransformerHeadConfig, hidden_size: int, kind: TokenKind):
        super().__init__()
        self.config = config
        self.input_projection = nn.Linear(kind.channels, config.width)
        self.time_embedding = TimeEmbedding(config.width)
        self.condition_projection = nn.Linear(hidden_size, config.width)
        block = CrossFlowBlock if config.cross_attention else FlowBlock
        self.layers = nn.ModuleList(block(config, hidden_size) for _ in range(config.num_layers))
        self.final_modulation = Modulation(config.width, config.width, chunks=2)
        self.proj = nn.Linear(config.width, kind.channels)

    def init_own_weights(self, std: float) -> None:
        """Xavier-uniform layers, the modulations too."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                init.xavier_uniform_(module.weight)

    def velocity(
        self, noisy: torch.Tensor, times: torch.Tensor, hidden_states: torch.Tensor, shape: tuple[int, ...]
    ) -> torch.Tensor:
        """The velocity of the tokens of one grid, `(rows, tokens, channels)` fp32.

        Args:
            noisy: `(rows, tokens, channels)`.
            times: `(rows,)` in [0, 1].
            hidden_states: `(rows, tokens, hidden)`.
            shape: sides of the grid.
        """
        coordinates = torch.tensor(list(product(*map(range, shape))), dtype=torch.float32, device=noisy.device)
        coordinates = coordinates / torch.tensor(shape, device=noisy.device) * self.config.extent
        is_prefix = torch.zeros(len(coordinates), dtype=torch.bool, device=noisy.device)
        rotary = axial_rotary(coordinates, is_prefix, self.config.head_width, float(self.config.rotary_theta))
        hidden_states = hidden_states.to(self.proj.weight.dtype)
        time = self.time_embedding(network_times(times))
        steering = self.condition_projection(hidden_states) + time[:, None]
        states = self.input_projection(noisy.to(self.proj.weight.dtype))
        for layer in self.layers:
            states = layer(states, time, steering, hidden_states, rotary)
        shift, scale = self.final_modulation(steering).unbind(2)
        return self.proj(modulate(states, scale, shift, EPS)).float()

    def loss(
        self,
        hidden_states: torch.Tensor,
        targets: torch.Tensor,
        context: HeadContext = NO_CONTEXT,
        randomness: Randomness | None = None,
    ) -> torch.Tensor:
        """Mean squared error of the velocity, `(batch, tokens)`; draws `time` and `noise` per group."""
        assert context.groups is not None
        randomness = randomness or GeneratorRandomness()
        losses = []
        for group in context.groups:
            tokens = targets[:, group.tokens].float()
            times = randomness.uniform((len(tokens),), "time", tokens.device)
            noise = randomness.normal(tokens.shape, "noise", tokens.device)
            share = times[:, None, None]
            noisy = (1 - share) * tokens + share * noise
            velocity = self.velocity(noisy, times, hidden_states[:, group.tokens], group.shape)
            losses.append((velocity - (noise - tokens)).square().mean(-1))
        return torch.cat(losses, dim=1)

    def times(self, num_steps: int | None = None) -> torch.Tensor:
        """Where a drawing stops, from 1 to 0, fp64."""
        number = self.config.num_inference_steps if num_steps is None else num_steps
        if self.config.time_grid == "uniform":
            return torch.linspace(1, 0, number + 1, dtype=torch.float64)
        half = number // 2
        parts = (
            torch.linspace(1, 0.3, half, dtype=torch.float64),
            torch.linspace(0.25, 0, half + 1, dtype=torch.float64),
        )
        return torch.cat(parts)

    def integrate(
        self,
        hidden_states: torch.Tensor,
        shape: tuple[int, ...],
        guide: Guide,
        randomness: Randomness,
        num_steps: int | None = None,
        temperature: float = 1.0,
    ) -> torch.Tensor:
        """Euler's method from noise to tokens, in double precision: `(rows, tokens, channels)`, rows of all contexts.

        Where guidance holds, both contexts are asked about the condition's tokens and follow the guided velocity; elsewhere
        each follows its own.

        Args:
            hidden_states: `(rows, tokens, hidden)`.
            shape: sides of the tokens' grid.
            guide: combines the rows.
            randomness: draws `noise`, once per context.
            num_steps: wanted evaluations; None for the head's own number.
            temperature: factor on the noise.
        """
        rows, tokens, _ = hidden_states.shape
        device, batch = hidden_states.device, rows // guide.num_contexts
        size = (batch, tokens, self.proj.out_features)
        noise = [randomness.normal(size, "noise", device) for _ in range(guide.num_contexts)]
        state = torch.cat(noise).double() * temperature
        for time, following in pairwise(self.times(num_steps).tolist()):
            is_guided = guide.at(time).scale != 1.0
            noisy = guide.spread(state[:batch]) if is_guided else state
            told = torch.full((rows,), time, dtype=torch.float64, device=device)
            velocity = self.velocity(noisy.float(), told, hidden_states, shape).double()
            if is_guided:
                velocity = guide.spread(guide(velocity))
            state = state + (following - time) * velocity
        return state.float()

    def sample(
        self,
        hidden_states: torch.Tensor | None,
        context: HeadContext,
        guide: Guide,
        randomness: Randomness,
        sampling: TokenSampling,
    ) -> HeadSample:
        """Integrates the tokens of every group; draws `noise`, whose standard deviation the temperature multiplies.

        Raises:
            ConfigError: without draws (`do_sample=False`).
        """
        assert hidden_states is not None
        assert context.groups is not None
        if not sampling.do_sample:
            raise ConfigError("a flow head only draws, the likeliest latent is unknown: leave do_sample=True")
        batch = len(hidden_states) // guide.num_contexts
        options = guide, randomness, sampling.num_inference_steps, sampling.temperature
        parts = [self.integrate(hidden_states[:, one.tokens], one.shape, *options)[:batch] for one in context.groups]
        return HeadSample(torch.cat(parts, dim=1))

    def log_prob(
        self, hidden_states: torch.Tensor, values: torch.Tensor, context: HeadContext = NO_CONTEXT
    ) -> torch.Tensor:
        raise ConfigError(
            "a flow head gives no likelihood of tokens in closed form; use a head for ids where one is needed"
        )
