"""Large pictures piece by piece: overlapping tiles that are blended where they meet.

What runs on tiles sees nothing outside of its tile. For convolutions that is exact as soon as the overlap beyond the
blend reaches as far as they do. It is not for what looks at the whole map: attention, which the convolutional tokenizers
therefore run untiled (it stands at the lowest resolution, where the whole map is small), and group norms, whose mean and
variance become those of the tile.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass

import torch

from ..errors import ConfigError


@dataclass(frozen=True)
class Tiling:
    """How a picture is cut.

    Args:
        size: side of a tile in pixels.
        overlap: pixels that neighbouring tiles share at least.
        blend: pixels in the middle of the overlap over which one tile fades into the next; what is left of the overlap
            on both sides only shields the blend from the tiles' edges.

    Raises:
        ConfigError: tiles that do not overlap, or overlap by more than half.
    """

    size: int = 512
    overlap: int = 128
    blend: int = 64

    def __post_init__(self) -> None:
        if not 0 < self.blend <= self.overlap <= self.size // 2:
            raise ConfigError(
                "tiles need 0 < blend <= overlap <= size / 2 (pixels), given "
                f"size={self.size}, overlap={self.overlap} and blend={self.blend}"
            )

    def check(self, stride: int) -> None:
        """Refuses tiles that do not start and end between tokens.

        Raises:
            ConfigError: a size or overlap that is no multiple of the stride.
        """
        if self.size % stride or self.overlap % stride:
            raise ConfigError(
                f"a tile's size and overlap must be multiples of the tokenizer's stride of {stride} pixels, given "
                f"{self.size} and {self.overlap}"
            )


def run_tiled(
    stage: Callable[[torch.Tensor], torch.Tensor],
    features: torch.Tensor,
    tiling: Tiling,
    *,
    input_stride: int,
    output_stride: int,
) -> torch.Tensor:
    """`stage(features)`, computed on tiles where the map is larger than one.

    Args:
        stage: a map `(batch, channels, h, w)` to another, of sides in a fixed ratio.
        features: the whole map.
        tiling: in pixels of the picture.
        input_stride: pixels of the picture per side of a position of `features`.
        output_stride: the same for the result.

    Returns:
        `(batch, channels, height, width)` in the dtype of the stage's result.
    """
    height, width = (side * input_stride for side in features.shape[-2:])
    if max(height, width) <= tiling.size:
        return stage(features)
    rows, columns = tile_starts(height, tiling), tile_starts(width, tiling)
    row_weights, column_weights = (
        tile_weights(starts, side, tiling, output_stride, features.device)
        for starts, side in ((rows, height), (columns, width))
    )
    result: torch.Tensor | None = None
    for top, row_weight in zip(rows, row_weights, strict=True):
        for left, column_weight in zip(columns, column_weights, strict=True):
            tile = stage(
                features[..., _span(top, height, tiling, input_stride), _span(left, width, tiling, input_stride)]
            )
            if result is None:
                result = tile.new_zeros(*tile.shape[:2], height // output_stride, width // output_stride)
            weight = row_weight[:, None] * column_weight
            where = _span(top, height, tiling, output_stride), _span(left, width, tiling, output_stride)
            result[(..., *where)] += tile * weight.to(tile.dtype)
    assert result is not None
    return result


def tile_starts(side: int, tiling: Tiling) -> list[int]:
    """Where tiles begin along a side, in pixels: as few as cover it, the last one at its end.

    Starts are multiples of the overlap-free step, so they stay between tokens; only the last one is moved back.
    """
    if side <= tiling.size:
        return [0]
    step = tiling.size - tiling.overlap
    return [*range(0, side - tiling.size, step), side - tiling.size]


def tile_weights(starts: list[int], side: int, tiling: Tiling, stride: int, device: torch.device) -> list[torch.Tensor]:
    """The share that each tile has in the result along a side; shares add up to one everywhere.

    Between two tiles a ramp of `blend` pixels, in the middle of what they share, goes from one to the other.

    Args:
        starts: of the tiles, in pixels.
        side: of the picture, in pixels.
        tiling: the tiles' size and blend.
        stride: pixels per position of the result.
        device: of the result.
    """
    size = min(tiling.size, side)
    centres = (torch.arange(side // stride, device=device) + 0.5) * stride
    # Share of all tiles from a given one on: a ramp up at the seam before it.
    from_here = [torch.ones_like(centres)]
    for start, following in itertools.pairwise(starts):
        seam = (following + start + size) / 2
        from_here.append(((centres - seam) / tiling.blend + 0.5).clamp(0, 1))
    from_here.append(torch.zeros_like(centres))
    return [
        (here - beyond)[start // stride : (start + size) // stride]
        for start, here, beyond in zip(starts, from_here, from_here[1:], strict=False)
    ]


def _span(start: int, side: int, tiling: Tiling, stride: int) -> slice:
    return slice(start // stride, (start + min(tiling.size, side)) // stride)


def run_sliced(function: Callable[[torch.Tensor], torch.Tensor], batch: torch.Tensor) -> torch.Tensor:
    """`function(batch)`, one sample at a time."""
    return torch.cat([function(sample) for sample in batch.split(1)])
