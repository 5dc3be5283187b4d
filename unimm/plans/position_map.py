"""Positions of any grid from one learned map."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import nn
from transformers import initialization as init


class PositionMap(nn.Module):
    """A learned map of position vectors that is resized to the grid at hand (https://huggingface.co/papers/2502.20313).

    Args:
        hidden_size: channels.
        rows: of the map.
        columns: of the map.
    """

    def __init__(self, hidden_size: int, rows: int, columns: int):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(hidden_size, rows, columns))

    def init_own_weights(self, std: float) -> None:
        """Channel `2i` starts as `sin(row * w_i)`, channel `2i + 1` as `cos(column * w_i)`, `w_i = 10000^(-2i / channels)`."""
        channels, rows, columns = self.weight.shape
        device = self.weight.device
        frequencies = 10000.0 ** (-torch.arange(0, channels, 2, device=device) / channels)
        fresh = torch.empty(self.weight.shape, device=device)
        fresh[0::2] = (torch.arange(rows, device=device) * frequencies[:, None]).sin()[:, :, None]
        fresh[1::2] = (torch.arange(columns, device=device) * frequencies[: channels // 2, None]).cos()[:, None]
        init.copy_(self.weight, fresh)

    def forward(self, size: Sequence[int]) -> torch.Tensor:
        """Positions of a `(height, width)` grid in raster order, `(height * width, channels)`: averages of the map's cells."""
        return F.interpolate(self.weight[None], size=tuple(size), mode="area")[0].flatten(1).T
