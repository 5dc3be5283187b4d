"""How far a token is on its way from data to noise, as a vector."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import nn
from transformers import initialization as init


class TimeEmbedding(nn.Module):
    """`second(silu(first(cos(t f) | sin(t f))))` with frequencies `f` that fall from 1 to nearly 1 / 10000.

    Args:
        hidden_size: width of the vector.
        channels: number of cosines and sines.
    """

    def __init__(self, hidden_size: int, channels: int = 256):
        super().__init__()
        self.channels = channels
        self.first = nn.Linear(channels, hidden_size)
        self.second = nn.Linear(hidden_size, hidden_size)

    def init_own_weights(self, std: float) -> None:
        """Xavier-uniform layers."""
        for layer in (self.first, self.second):
            init.xavier_uniform_(layer.weight)

    def forward(self, times: torch.Tensor) -> torch.Tensor:
        """`(…)` times to `(…, hidden)` vectors."""
        half = self.channels // 2
        steps = torch.arange(half, dtype=torch.float32, device=times.device)
        angles = times.float()[..., None] * torch.exp(-math.log(10000.0) / half * steps)
        waves = torch.cat([angles.cos(), angles.sin()], dim=-1)
        return self.second(F.silu(self.first(waves.to(self.first.weight.dtype))))
