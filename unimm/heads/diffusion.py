"""A small diffusion model per token, conditioned on its hidden state (https://huggingface.co/papers/2406.11838)."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from transformers import initialization as init

from ..configuration import UniMMConfig
from ..errors import ConfigError
from ..generation.guidance import Guide
from ..generation.randomness import GeneratorRandomness, Randomness
from ..tokens import TokenKind
from .base import NO_CONTEXT, HeadContext, HeadSample, PredictionHead, TokenSampling
from .gaussian_diffusion import GaussianDiffusion, diffusion, kept_steps

#: Channels of the sinusoid of a time.
_TIME_CHANNELS = 256


class DiffusionHeadConfig(UniMMConfig):
    """Residual blocks modulated by the hidden state and the time, under a cosine schedule with learned variance.

    Args:
        hidden_size: width of the blocks.
        num_layers: number of blocks.
        norm_eps: of all layer norms.
        num_train_steps: steps of the training process.
        respacing: steps that sampling keeps: `"100"`, `"10,20,30"` or `"ddim50"` (`gaussian_diffusion.kept_steps`).
        num_noise_draws: times and noises per token in a training step.
        output_initializer_range: standard deviation of the initial weights of modulations and of the output; 0 starts from
            a prediction of zero.

    Raises:
        ConfigError: sizes below 1, or a respacing that cannot be read.
    """

    model_type = "unimm_diffusion_head"
    hidden_size: int = 1024
    num_layers: int = 6
    norm_eps: float = 1e-6
    num_train_steps: int = 1000
    respacing: str = "100"
    num_noise_draws: int = 4
    output_initializer_range: float | int = 0.0

    def __post_init__(self, **kwargs: Any) -> None:
        super().__post_init__(**kwargs)
        for name in ("hidden_size", "num_layers", "num_train_steps", "num_noise_draws"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be at least 1, given {getattr(self, name)}")
        kept_steps(self.num_train_steps, self.respacing)

    @property
    def condition_form(self) -> None:
        return None

    def build(self, hidden_size: int, kind: TokenKind) -> DiffusionHead:
        if kind.is_discrete:
            raise ConfigError(
                f"the diffusion head models continuous latents, the tokenizer gives {kind}: choose a tokenizer with "
                "latents such as 'unimm_kl_tokenizer', or the categorical head"
            )
        return DiffusionHead(self, hidden_size, kind)


class ModulatedBlock(nn.Module):
    """`x + gate * mlp(norm(x) * (1 + scale) + shift)`; shift, scale and gate come from the condition, in this order."""

    def __init__(self, config: DiffusionHeadConfig):
        super().__init__()
        width = config.hidden_size
        self.norm = nn.LayerNorm(width, eps=config.norm_eps)
        self.up = nn.Linear(width, width)
        self.down = nn.Linear(width, width)
        self.modulation = nn.Linear(width, 3 * width)

    def forward(self, states: torch.Tensor, condition: torch.Tensor) -> torch.Tensor:
        shift, scale, gate = self.modulation(F.silu(condition)).chunk(3, dim=-1)
        changed = self.norm(states) * (1 + scale) + shift
        return states + gate * self.down(F.silu(self.up(changed)))


class DenoisingNetwork(nn.Module):
    """`(noisy tokens, times, hidden states) -> (noise, v)`, every row by itself."""

    def __init__(self, config: DiffusionHeadConfig, condition_size: int, channels: int):
        super().__init__()
        width = config.hidden_size
        self.time_up = nn.Linear(_TIME_CHANNELS, width)
        self.time_down = nn.Linear(width, width)
        self.condition_projection = nn.Linear(condition_size, width)
        self.input_projection = nn.Linear(channels, width)
        self.blocks = nn.ModuleList([ModulatedBlock(config) for _ in range(config.num_layers)])
        self.final_norm = nn.LayerNorm(width, eps=config.norm_eps, elementwise_affine=False)
        self.final_modulation = nn.Linear(width, 2 * width)
        self.output = nn.Linear(width, 2 * channels)

    def condition(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """The part of the condition that no time changes, `(rows, tokens, width)`."""
        return self.condition_projection(hidden_states)

    def forward(
        self, noisy: torch.Tensor, times: torch.Tensor, condition: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Predicted noise and `v`, each `(rows, tokens, channels)`.

        Args:
            noisy: `(rows, tokens, channels)`.
            times: `(rows,)` or `(rows, tokens)` int64 steps of the training process.
            condition: from `condition`.
        """
        embedded = self.time_down(F.silu(self.time_up(_sinusoid(times).to(condition.dtype))))
        condition = condition + (embedded[:, None] if times.dim() == 1 else embedded)
        states = self.input_projection(noisy.to(condition.dtype))
        for block in self.blocks:
            states = block(states, condition)
        shift, scale = self.final_modulation(F.silu(condition)).chunk(2, dim=-1)
        noise, interpolation = self.output(self.final_norm(states) * (1 + scale) + shift).chunk(2, dim=-1)
        return noise, interpolation


class DiffusionHead(PredictionHead):
    """`p(token | hidden state)` as a diffusion of `num_train_steps` steps; the tokens do not look at each other."""

    is_categorical = False

    def __init__(self, config: DiffusionHeadConfig, hidden_size: int, kind: TokenKind):
        super().__init__()
        self.config = config
        self.channels = kind.channels
        self.network = DenoisingNetwork(config, hidden_size, kind.channels)

    def init_own_weights(self, std: float) -> None:
        """Xavier linears, times at 0.02, and modulations and the output at the config's range."""
        network, small = self.network, float(self.config.output_initializer_range)
        for module in network.modules():
            if isinstance(module, nn.Linear):
                init.xavier_uniform_(module.weight)
                init.zeros_(module.bias)
        for times in (network.time_up, network.time_down):
            init.normal_(times.weight, std=0.02)
        layers: list[Any] = [block.modulation for block in network.blocks]
        for layer in (*layers, network.final_modulation, network.output):
            init.normal_(layer.weight, std=small)

    def process(self, num_inference_steps: int | None = None) -> GaussianDiffusion:
        """The process that sampling runs: the config's, or one of so many evenly spread steps.

        Raises:
            ConfigError: more steps than the training process has.
        """
        respacing = self.config.respacing if num_inference_steps is None else str(num_inference_steps)
        return diffusion(self.config.num_train_steps, respacing)

    def predict(
        self, noisy: torch.Tensor, times: torch.Tensor, hidden_states: torch.Tensor, guide: Guide | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Predicted noise and `v`, each `(rows, tokens, channels)`.

        With a guide, all contexts read the condition's noisy tokens and get the guided noise; `v` is each one's own.

        Args:
            noisy: `(rows, tokens, channels)`.
            times: `(rows,)` or `(rows, tokens)` int64.
            hidden_states: `(rows, tokens, hidden)`.
            guide: combines the contexts.
        """
        return self._predict(noisy, times, self.network.condition(hidden_states), guide or Guide())

    def _predict(
        self, noisy: torch.Tensor, times: torch.Tensor, condition: torch.Tensor, guide: Guide
    ) -> tuple[torch.Tensor, torch.Tensor]:
        shared = guide.spread(noisy[: len(noisy) // guide.num_contexts])
        noise, interpolation = self.network(shared, times, condition)
        return guide.spread(guide(noise)), interpolation

    def loss(
        self,
        hidden_states: torch.Tensor,
        targets: torch.Tensor,
        context: HeadContext = NO_CONTEXT,
        randomness: Randomness | None = None,
    ) -> torch.Tensor:
        """Squared error of the noise plus the variational term, averaged over `num_noise_draws` draws per token."""
        randomness = randomness or GeneratorRandomness()
        draws, (batch, tokens, channels) = self.config.num_noise_draws, targets.shape
        uniform = randomness.uniform((batch, draws, tokens), "time", targets.device)
        times = (uniform * self.config.num_train_steps).long().clamp(max=self.config.num_train_steps - 1)
        noise = randomness.normal((batch, draws, tokens, channels), "noise", targets.device)
        squared_error, bits = self.loss_terms(hidden_states, targets, times, noise)
        return (squared_error + bits).mean(1)

    def loss_terms(
        self, hidden_states: torch.Tensor, targets: torch.Tensor, times: torch.Tensor, noise: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The two terms of the loss for given draws, each `(batch, draws, tokens)`.

        Args:
            hidden_states: `(batch, tokens, hidden)`.
            targets: `(batch, tokens, channels)`.
            times: `(batch, draws, tokens)` int64 steps of the training process.
            noise: `(batch, draws, tokens, channels)`.
        """
        process, draws = diffusion(self.config.num_train_steps, None), times.shape[1]
        steps, noise = times.flatten(), noise.flatten(0, 2)
        clean = targets.float()[:, None].expand(-1, draws, -1, -1).flatten(0, 2)
        noisy = process.add_noise(clean, steps, noise)
        # The draws of a token share its projected hidden state.
        condition = self.network.condition(hidden_states)[:, None].expand(-1, draws, -1, -1).flatten(0, 2)
        predicted, interpolation = self.network(noisy[:, None], steps, condition[:, None])
        terms = process.loss_terms(predicted[:, 0].float(), interpolation[:, 0].float(), clean, noisy, noise, steps)
        squared_error, bits = (term.view(times.shape) for term in terms)
        return squared_error, bits

    def sample(
        self,
        hidden_states: torch.Tensor | None,
        context: HeadContext,
        guide: Guide,
        randomness: Randomness,
        sampling: TokenSampling,
    ) -> HeadSample:
        """Draws tokens by ancestral sampling; without drawing, every noise after the first is left out."""
        assert hidden_states is not None
        shape = (len(hidden_states) // guide.num_contexts, hidden_states.shape[1], self.channels)
        device = hidden_states.device
        rows = self.denoise(
            hidden_states,
            guide,
            guide.spread(randomness.normal(shape, "start", device)),
            lambda: guide.spread(randomness.normal(shape, "noise", device)),
            num_inference_steps=sampling.num_inference_steps,
            temperature=sampling.temperature if sampling.do_sample else 0.0,
        )
        return HeadSample(rows[: shape[0]])

    def denoise(
        self,
        hidden_states: torch.Tensor,
        guide: Guide,
        start: torch.Tensor,
        noise: Any,
        *,
        num_inference_steps: int | None = None,
        temperature: float = 1.0,
    ) -> torch.Tensor:
        """Tokens of all contexts `(rows, tokens, channels)`, those of the condition first, which are the sample.

        Args:
            hidden_states: `(rows, tokens, hidden)`.
            guide: combines the contexts.
            start: `(rows, tokens, channels)` standard normal.
            noise: called for the noise of every reverse step but the last, in the form of `start`.
            num_inference_steps: evenly spread steps instead of the config's respacing.
            temperature: factor on the noise of the steps.
        """
        condition = self.network.condition(hidden_states)

        def predict(noisy: torch.Tensor, times: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            predicted, interpolation = self._predict(noisy, times, condition, guide)
            return predicted.float(), interpolation.float()

        return self.process(num_inference_steps).reverse(predict, start, noise, temperature)

    def log_prob(
        self, hidden_states: torch.Tensor, values: torch.Tensor, context: HeadContext = NO_CONTEXT
    ) -> torch.Tensor:
        """There is none.

        Raises:
            ConfigError: always.
        """
        raise ConfigError(
            "a diffusion head has no likelihood in closed form; its variational bound is `loss_terms`, and objectives "
            "that need log-probabilities need a categorical head"
        )


def _sinusoid(times: torch.Tensor) -> torch.Tensor:
    """Cosines, then sines, of times at frequencies from 1 down to almost 1/10000: `(…)` to `(…, 256)`."""
    half = _TIME_CHANNELS // 2
    exponents = torch.arange(half, dtype=torch.float32, device=times.device) / half
    angles = times[..., None].float() * torch.exp(-torch.log(torch.tensor(10000.0, device=times.device)) * exponents)
    return torch.cat([angles.cos(), angles.sin()], dim=-1)
