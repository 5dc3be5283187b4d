"""Coordinates that are the same for a place of the picture on all levels and at all resolutions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction

import torch

from ..tokens import TokenLayout


def reference_coordinates(layout: TokenLayout, grids: Sequence[Sequence[int]]) -> torch.Tensor:
    """Rows and columns of all slots on the reference grid whose aspect ratio is nearest, `(length, 2)` int64.

    Args:
        layout: grids that share one aspect ratio, more or less.
        grids: sizes `(height, width)`, one per aspect ratio.
    """
    ratio = layout.final[0] / layout.final[1]
    grid = min(grids, key=lambda one: abs(math.log(one[0] / one[1] / ratio)))
    levels = []
    for level in layout.levels:
        # Exact halves go to the even neighbour.
        axes = [
            torch.tensor([round(Fraction(index * whole, side)) for index in range(side)])
            for side, whole in zip(level, grid, strict=True)
        ]
        levels.append(torch.stack(torch.meshgrid(*axes, indexing="ij"), -1).flatten(0, -2))
    return torch.cat(levels)
