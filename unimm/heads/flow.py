"""Flow matching with the whole backbone as the network: tokens move from noise to data along straight lines."""

from __future__ import annotations

from itertools import pairwise
from typing import ClassVar, Literal

import torch
from torch import nn
from transformers import initialization as init

from ..configuration import UniMMConfig
from ..errors import ConfigError
from ..generation.guidance import Guide
from ..generation.randomness import Randomness
from ..tokens import TokenKind
from .base import NO_CONTEXT, HeadContext, HeadSample, NoisyTokens, PredictionHead, TokenSampling

#: Networks are told times as whole numbers in [0, NUM_TIMES].
NUM_TIMES = 1000


class FlowHeadConfig(UniMMConfig):
    """A linear layer that reads a velocity from each hidden state.

    Args:
        time_distribution: of training times: `logit_normal` (the sigmoid of a standard normal) or `uniform`.
        sampler: `sde` adds noise on the way (Euler-Maruyama with diffusion `2 t`), `ode` follows the velocity.
        num_inference_steps: evaluations of the backbone per group of tokens.
        last_time: where the last step starts, in (0, 1); it ends at 0.

    Raises:
        ConfigError: a value out of range.
    """

    model_type = "unimm_flow_head"
    time_distribution: Literal["logit_normal", "uniform"] = "logit_normal"
    sampler: Literal["sde", "ode"] = "sde"
    num_inference_steps: int = 50
    last_time: float = 0.04

    denoises: ClassVar[bool] = True

    def __post_init__(self, **kwargs: object) -> None:
        super().__post_init__(**kwargs)
        if self.num_inference_steps < 1 or not 0 < self.last_time < 1:
            raise ConfigError(
                "a flow head needs num_inference_steps of at least 1 and last_time in (0, 1), given "
                f"{self.num_inference_steps} and {self.last_time}"
            )

    @property
    def condition_form(self) -> None:
        return None

    def build(self, hidden_size: int, kind: TokenKind) -> FlowHead:
        if kind.is_discrete:
            raise ConfigError(
                f"the flow head predicts continuous latents, the tokenizer gives {kind}: choose a KL tokenizer, or a head "
                "for ids"
            )
        return FlowHead(self, hidden_size, kind)


class FlowHead(PredictionHead):
    """`x_t = (1 - t) x + t noise`; the hidden states of the noisy tokens give the velocity `noise - x`.

    The score of `x_t` follows from the velocity `v` as `-((1 - t) v + x_t) / t`, so that the stochastic sampler with
    diffusion `2 t` drifts by `v - t score = (2 - t) v + x_t` (https://huggingface.co/papers/2502.20388).
    """

    is_categorical = False
    denoises = True

    def __init__(self, config: FlowHeadConfig, hidden_size: int, kind: TokenKind):
        super().__init__()
        self.config = config
        self.proj = nn.Linear(hidden_size, kind.channels)

    def init_own_weights(self, std: float) -> None:
        """A Xavier-uniform layer."""
        init.xavier_uniform_(self.proj.weight)

    def velocity(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """`(rows, tokens, hidden)` to `(rows, tokens, channels)` fp32."""
        return self.proj(hidden_states).float()

    def corrupt(self, tokens: torch.Tensor, randomness: Randomness) -> NoisyTokens:
        """Tokens at a random time each sample, and their velocity; draws `time` and `noise`.

        Args:
            tokens: `(batch, tokens, channels)`.
            randomness: where times and noise come from.
        """
        device = tokens.device
        if self.config.time_distribution == "uniform":
            times = randomness.uniform((len(tokens),), "time", device)
        else:
            times = randomness.normal((len(tokens),), "time", device).sigmoid()
        tokens = tokens.float()
        noise = randomness.normal(tokens.shape, "noise", device)
        share = times[:, None, None]
        return NoisyTokens((1 - share) * tokens + share * noise, network_times(times), noise - tokens)

    def loss(
        self,
        hidden_states: torch.Tensor,
        targets: torch.Tensor,
        context: HeadContext = NO_CONTEXT,
        randomness: Randomness | None = None,
    ) -> torch.Tensor:
        """Mean squared error of the velocity, `(batch, tokens)`; targets are what `corrupt` gave."""
        return (self.velocity(hidden_states) - targets).square().mean(-1)

    def times(self, num_steps: int | None = None) -> torch.Tensor:
        """Where the steps of a drawing begin, from 1 down to `last_time`, and 0 at the end: `(steps + 1,)` fp64."""
        number = self.config.num_inference_steps if num_steps is None else num_steps
        return torch.cat([torch.linspace(1, self.config.last_time, number, dtype=torch.float64), torch.zeros(1)])

    def sample(
        self,
        hidden_states: torch.Tensor | None,
        context: HeadContext,
        guide: Guide,
        randomness: Randomness,
        sampling: TokenSampling,
    ) -> HeadSample:
        """Integrates from noise to tokens in double precision; draws `noise` and, in the SDE, `step_noise`.

        The temperature multiplies the standard deviation of the noise on the way (SDE) or at the start (ODE).

        Raises:
            ConfigError: without draws (`do_sample=False`).
        """
        assert context.denoise is not None
        assert context.groups is not None
        assert context.vector is not None
        if not sampling.do_sample:
            raise ConfigError("a flow head only draws, the likeliest latent is unknown: leave do_sample=True")
        rows, device = len(context.vector), context.vector.device
        shape = (rows // guide.num_contexts, context.groups[-1].tokens.stop, self.proj.out_features)
        is_stochastic, temperature = self.config.sampler == "sde", sampling.temperature
        state = randomness.normal(shape, "noise", device).double() * (1.0 if is_stochastic else temperature)
        times = self.times(sampling.num_inference_steps)
        told = network_times(times)
        for index, (time, following) in enumerate(pairwise(times.tolist())):
            noisy = guide.spread(state).float()
            hidden = context.denoise(noisy, told[index].to(device).expand(rows))
            drift = self.velocity(hidden).double()
            if is_stochastic:
                drift = (2 - time) * drift + guide.spread(state)
            step = following - time
            state = state + guide.at(time)(drift) * step
            if is_stochastic and index < len(times) - 2:
                noise = randomness.normal(shape, "step_noise", device, torch.float64)
                state = state + temperature * (2 * time * -step) ** 0.5 * noise
        return HeadSample(state.float())

    def log_prob(
        self, hidden_states: torch.Tensor, values: torch.Tensor, context: HeadContext = NO_CONTEXT
    ) -> torch.Tensor:
        raise ConfigError(
            "a flow head gives no likelihood of tokens in closed form; use a head for ids where one is needed"
        )


def network_times(times: torch.Tensor) -> torch.Tensor:
    """Times in [0, 1] as a network is told them: `floor(1000 t)`, the product in fp32 and kept as such."""
    return (times.float() * NUM_TIMES).floor()
