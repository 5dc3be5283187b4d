"""A table of codes that keeps itself in use, and what every quantizer shares.

Nearest codes are searched in fp32 whatever the precision around it, so that ids do not depend on autocast.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn
from transformers import initialization as init
from transformers.utils.generic import maybe_autocast

from ..errors import ConfigError
from .autoencoder import ConvolutionalTokenizerConfig

# Scores of the nearest-code search that are held at once (256 MiB).
_MAX_SCORES = 2**26


class CodebookTokenizerConfig(ConvolutionalTokenizerConfig):
    """What all convolutional tokenizers with one table of codes share.

    Args:
        codebook_size: number of codes.
        unit_codes: latents and codes are divided by their length, before the search and in what comes out of
            it.
        similarity: what nearest means: smallest Euclidean distance, or largest cosine.
        codebook_weight: weight of `mean((code - sg(latent))^2)`, which moves codes to latents.
        commitment_weight: weight of `mean((sg(code) - latent)^2)`, which moves latents to codes.
        entropy_weight: weight of the entropy term, see `entropy_loss`; 0 leaves it out.
        entropy_temperature: temperature of the entropy term's assignment probabilities.
        usage_window: number of the most recent ids of training from which usage is measured; 0 measures it
            per batch.
        revive_after: a code that no latent chose for so many training steps is put onto a badly quantized
            latent; 0 never.
        initialize_from_data: the first training batch replaces the codes that it does not choose; needs
            `revive_after`.
        ema_decay: codes follow a moving average of the latents that chose them, instead of a gradient; None
            turns it off.

    Raises:
        ConfigError: a value out of range, or options that exclude each other.
    """

    codebook_size: int = 16384
    unit_codes: bool = True
    similarity: Literal["euclidean", "cosine"] = "euclidean"
    codebook_weight: float | int = 1.0
    commitment_weight: float | int = 0.25
    entropy_weight: float | int = 0.0
    entropy_temperature: float = 0.01
    usage_window: int = 65536
    revive_after: int = 0
    initialize_from_data: bool = False
    ema_decay: float | None = None

    def __post_init__(self, **kwargs: object) -> None:
        super().__post_init__(**kwargs)
        if self.codebook_size < 1 or self.usage_window < 0 or self.revive_after < 0:
            raise ConfigError(
                "codebook_size must be positive, usage_window and revive_after at least 0, given "
                f"{self.codebook_size}, {self.usage_window} and {self.revive_after}"
            )
        if self.initialize_from_data and not self.revive_after:
            raise ConfigError(
                "initialize_from_data needs revive_after: set it to a number of training steps, such as 50"
            )
        if self.ema_decay is not None and not 0 < self.ema_decay < 1:
            raise ConfigError(f"ema_decay must lie between 0 and 1, given {self.ema_decay}")
        if self.entropy_weight and self.entropy_temperature <= 0:
            raise ConfigError(f"entropy_temperature must be positive, given {self.entropy_temperature}")


@dataclass(frozen=True)
class QuantizerOutput:
    """What a quantizer makes of a feature map.

    Args:
        quantized: `(batch, channels, h, w)` fp32; its value is the codes', its gradient goes straight to the
            features.
        ids: `(batch, length)` int64.
        losses: terms by name, multiplied by their weights.
        codebook_usage: share of the codebook in use, a scalar.
    """

    quantized: torch.Tensor
    ids: torch.Tensor
    losses: dict[str, torch.Tensor]
    codebook_usage: torch.Tensor


class Codebook(nn.Module):
    """A table of codes with nearest-code search, usage statistics, revival of unused codes and moving
    averages.

    All state is in the weight and in persistent buffers, and nothing is drawn at random: a resumed run equals
    an undisturbed one.
    """

    recent_ids: torch.Tensor
    idle_steps: torch.Tensor
    ema_counts: torch.Tensor
    ema_sums: torch.Tensor

    def __init__(self, config: CodebookTokenizerConfig):
        super().__init__()
        self.config = config
        self.size, channels = config.codebook_size, config.code_channels
        self.weight = nn.Parameter(torch.empty(self.size, channels), requires_grad=config.ema_decay is None)
        if config.usage_window:
            # Floating point, as in released checkpoints, which so load and export bit for bit.
            self.register_buffer("recent_ids", torch.empty(config.usage_window))
        if config.revive_after:
            # Floating point because transformers casts all of a module that it keeps in fp32, integers too.
            self.register_buffer("idle_steps", torch.empty(self.size))
        if config.ema_decay is not None:
            self.register_buffer("ema_counts", torch.empty(self.size))
            self.register_buffer("ema_sums", torch.empty(self.size, channels))
        self.init_own_weights()

    @torch.no_grad()
    def init_own_weights(self) -> None:
        """Fills the codes and the statistics; tensors that were loaded stay."""
        if self.config.unit_codes:
            init.copy_(self.weight, F.normalize(torch.randn_like(self.weight), dim=-1))
        else:
            init.uniform_(self.weight, -1 / self.size, 1 / self.size)
        if self.config.usage_window:
            init.zeros_(self.recent_ids)
        if self.config.revive_after:
            # Idle for long enough already: the first batch revives all that it does not use.
            init.constant_(self.idle_steps, self.config.revive_after if self.config.initialize_from_data else 0)
        if self.config.ema_decay is not None:
            init.ones_(self.ema_counts)
            init.copy_(self.ema_sums, self.weight)

    def forward(self, ids: torch.Tensor | None = None) -> torch.Tensor:
        """Codes of ids, `(…, channels)` fp32; all codes in order where no ids are given.

        All reading of the weight goes through here, where the hooks of offloaded models bring it to the device.
        """
        codes = (self.weight if ids is None else F.embedding(ids, self.weight)).float()
        return F.normalize(codes, dim=-1) if self.config.unit_codes else codes

    def rows(self) -> torch.Tensor:
        """All codes as they come out, `(size, channels)` fp32."""
        return self()

    def lookup(self, ids: torch.Tensor) -> torch.Tensor:
        """Codes of ids, `(…, channels)` fp32."""
        return self(ids)

    @torch.no_grad()
    def nearest(self, vectors: torch.Tensor) -> torch.Tensor:
        """Id of the nearest code, the first one on ties.

        `argmax_v z e_v - |e_v|^2 / 2`, which is the smallest distance by one matrix product.

        Args:
            vectors: `(number, channels)`, of unit length where the codes are.
        """
        with maybe_autocast(vectors.device.type, enabled=False):
            vectors, rows = vectors.float(), self.rows()
            if self.config.similarity == "cosine":
                rows = F.normalize(rows, dim=-1)
            bias = -0.5 * rows.square().sum(-1)
            chunks = vectors.split(max(1, _MAX_SCORES // self.size))
            return torch.cat([torch.addmm(bias, chunk, rows.T).argmax(-1) for chunk in chunks])

    def entropy_loss(self, vectors: torch.Tensor) -> torch.Tensor:
        """Low where every latent is sure of its code and all codes are chosen alike.

        `mean_i H(p_i) - H(mean_i p_i)` with `p_i = softmax(-|z_i - e|^2 / temperature)` and 1e-5 inside of
        the logarithms (https://huggingface.co/papers/2310.05737, section 3).

        Args:
            vectors: `(number, channels)`.
        """
        rows = self.rows()
        squares = vectors.square().sum(-1, keepdim=True) + rows.square().sum(-1)
        affinity = torch.addmm(squares, vectors, rows.T, alpha=-2) / -self.config.entropy_temperature
        probabilities = affinity.softmax(-1)
        each = -(probabilities * (affinity + 1e-5).log_softmax(-1)).sum(-1).mean()
        mean = probabilities.mean(0)
        return each + (mean * (mean + 1e-5).log()).sum()

    @torch.no_grad()
    def observe(self, vectors: torch.Tensor, ids: torch.Tensor) -> None:
        """Updates the statistics and the codes that depend on them. For training, before the codes are looked
        up.

        Args:
            vectors: `(number, channels)` latents.
            ids: `(number,)` their codes.
        """
        vectors = vectors.detach().float()
        if self.config.usage_window:
            recent = torch.cat([self.recent_ids, ids.to(self.recent_ids.dtype)])[-self.config.usage_window :]
            self.recent_ids.copy_(recent)
        if self.config.ema_decay is not None:
            self._follow_average(vectors, ids, self.config.ema_decay)
        if self.config.revive_after:
            self._revive(vectors, ids)

    def usage(self, ids: torch.Tensor) -> torch.Tensor:
        """Share of the codes among the recent ids (in training), or among the given ones."""
        if self.config.usage_window and self.training:
            ids = self.recent_ids.long()
        return torch.zeros(self.size, device=ids.device).scatter_(0, ids.flatten(), 1.0).mean()

    def _follow_average(self, vectors: torch.Tensor, ids: torch.Tensor, decay: float) -> None:
        counts = torch.zeros_like(self.ema_counts).index_add_(0, ids, torch.ones_like(vectors[:, 0]))
        sums = torch.zeros_like(self.ema_sums).index_add_(0, ids, vectors)
        if _is_distributed():
            dist.all_reduce(counts)
            dist.all_reduce(sums)
        self.ema_counts.lerp_(counts, 1 - decay)
        self.ema_sums.lerp_(sums, 1 - decay)
        total = self.ema_counts.sum()
        # Laplace smoothing keeps codes without latents finite.
        smoothed = (self.ema_counts + 1e-5) / (total + self.size * 1e-5) * total
        self.weight.copy_(self.ema_sums / smoothed[:, None])

    def _revive(self, vectors: torch.Tensor, ids: torch.Tensor) -> None:
        hits = torch.zeros(self.size, device=ids.device).index_fill_(0, ids, 1.0)
        if _is_distributed():
            dist.all_reduce(hits, dist.ReduceOp.MAX)
        self.idle_steps.copy_(torch.where(hits > 0, 0.0, self.idle_steps + 1))
        dead = self.idle_steps >= self.config.revive_after
        # Systematic resampling in proportion to the squared error: dead code number r of n takes the latent
        # at the quantile (r + 1/2) / n. No draw, no branch, and no wait for the device.
        errors = (vectors - self.lookup(ids)).square().sum(-1)
        cumulative = (errors + 1e-3 * errors.mean() + 1e-12).cumsum(0)
        quantiles = (dead.cumsum(0) - 0.5) / dead.sum().clamp(min=1)
        chosen = torch.searchsorted(cumulative, quantiles.clamp(min=0) * cumulative[-1]).clamp(max=len(vectors) - 1)
        candidates = vectors[chosen]
        if _is_distributed():
            dist.broadcast(candidates, 0)
        self.weight.copy_(torch.where(dead[:, None], candidates, self.weight))
        self.idle_steps.masked_fill_(dead, 0)
        if self.config.ema_decay is not None:
            self.ema_counts.masked_fill_(dead, 1.0)
            self.ema_sums.copy_(torch.where(dead[:, None], candidates, self.ema_sums))


def _is_distributed() -> bool:
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def straight_through(values: torch.Tensor, features: torch.Tensor) -> torch.Tensor:
    """The value of `values`, to the last bit, with the gradient of `features`."""
    return values.detach() + (features - features.detach())
