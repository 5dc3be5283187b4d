"""Large pictures piece by piece: overlapping tiles that are blended where they meet.

What runs on tiles sees nothing outside of its tile. That is exact for convolutions as soon as the overlap beyond the
blend reaches as far as they do. What looks at the whole map needs more: attention runs untiled (in the convolutional
tokenizers it stands at the lowest resolution, where the whole map is small), and group norms take their mean and variance
from the tile alone, as in diffusers, or, where `exact` is asked for, from a run over all tiles for every norm.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from ..errors import ConfigError


@dataclass(frozen=True)
class Tiling:
    """How a picture is cut.

    Args:
        size: side of a tile in pixels.
        overlap: pixels that neighbouring tiles share at least.
        blend: pixels in the middle of the overlap over which one tile fades into the next; what is left of the overlap
            on both sides only shields the blend from the tiles' edges.
        exact: collect the statistics of every group norm over the whole picture first. The k-th norm needs a run over all
            tiles down to itself, so that this takes about half as many runs as there are norms.

    Raises:
        ConfigError: tiles that do not overlap, or overlap by more than half.
    """

    size: int = 512
    overlap: int = 128
    blend: int = 64
    exact: bool = False

    def __post_init__(self) -> None:
        if not all(isinstance(number, int) for number in (self.size, self.overlap, self.blend)):
            raise ConfigError(f"a tile's size, overlap and blend are whole pixels, given {self}")
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


@dataclass(frozen=True)
class Tile:
    """One tile along one side of a picture, in pixels.

    Args:
        start: its first pixel.
        stop: one past its last pixel.
        owned_start: first pixel that is nearer to this tile's middle than to its neighbours'.
        owned_stop: one past the last such pixel.
    """

    start: int
    stop: int
    owned_start: int
    owned_stop: int

    def span(self, stride: int) -> slice:
        """The tile on a map with `stride` pixels per position."""
        return slice(self.start // stride, self.stop // stride)

    def owned(self, num_positions: int) -> slice:
        """What it owns, inside of a map of the tile alone with that many positions."""
        size = self.stop - self.start
        inside = (self.owned_start - self.start, self.owned_stop - self.start)
        return slice(*(pixel * num_positions // size for pixel in inside))


class TileGroupNorm(nn.GroupNorm):
    """A group norm that can collect its statistics over tiles, and use those instead of its input's own."""

    def __init__(self, num_groups: int, num_channels: int, eps: float = 1e-5):
        super().__init__(num_groups, num_channels, eps=eps)
        self.owned: tuple[Tile, Tile] | None = None
        self.sums: torch.Tensor | None = None
        self.statistics: torch.Tensor | None = None

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Normalises `(batch, channels, h, w)`."""
        if self.owned is not None:
            self._collect(input)
            raise _Collected
        if self.statistics is None:
            return super().forward(input)
        mean, variance = self.statistics
        scale = (variance + self.eps).rsqrt().repeat_interleave(self.num_channels // self.num_groups, dim=1)
        shift = -mean.repeat_interleave(self.num_channels // self.num_groups, dim=1) * scale
        scale = scale * self.weight
        shift = shift * self.weight + self.bias
        return torch.addcmul(shift[..., None, None], input, scale[..., None, None]).to(input.dtype)

    def finish(self) -> None:
        """Turns what was collected into the statistics of the following runs."""
        assert self.sums is not None
        count, mean, square = self.sums
        self.statistics = torch.stack([mean / count, square / count - (mean / count).square()]).float()
        self.sums = self.owned = None

    def reset(self) -> None:
        """Forgets all statistics: the norm is an ordinary one again."""
        self.owned = self.sums = self.statistics = None

    def _collect(self, features: torch.Tensor) -> None:
        assert self.owned is not None
        height, width = features.shape[-2:]
        rows, columns = (tile.owned(side) for tile, side in zip(self.owned, (height, width), strict=True))
        part = features[..., rows, columns].float().flatten(2).unflatten(1, (self.num_groups, -1)).flatten(2)
        variance, mean = torch.var_mean(part, dim=-1, correction=0)
        mean, count = mean.double(), part.shape[-1]
        sums = torch.stack([torch.full_like(mean, count), count * mean, count * (variance.double() + mean.square())])
        self.sums = sums if self.sums is None else self.sums + sums


class _Collected(Exception):
    """Ends a run over a tile at the norm whose statistics it was for."""


def tile_norms(*modules: nn.Module) -> list[TileGroupNorm]:
    """All norms of some modules that can collect their statistics over tiles, in the order in which they run."""
    return [found for module in modules for found in module.modules() if isinstance(found, TileGroupNorm)]


def run_tiled(
    stage: Callable[[torch.Tensor], torch.Tensor],
    features: torch.Tensor,
    tiling: Tiling,
    *,
    input_stride: int,
    output_stride: int,
    norms: Sequence[TileGroupNorm] = (),
) -> torch.Tensor:
    """`stage(features)`, computed on tiles where the map is larger than one.

    Args:
        stage: a map `(batch, channels, h, w)` to another, of sides in a fixed ratio.
        features: the whole map.
        tiling: in pixels of the picture.
        input_stride: pixels of the picture per side of a position of `features`.
        output_stride: the same for the result.
        norms: the stage's norms in the order in which they run, for exact tiling.

    Returns:
        `(batch, channels, height, width)` in the dtype of the stage's result.
    """
    height, width = (side * input_stride for side in features.shape[-2:])
    if max(height, width) <= tiling.size:
        return stage(features)
    tiles = list(itertools.product(tiles_of(height, tiling), tiles_of(width, tiling)))

    def run(row: Tile, column: Tile) -> torch.Tensor:
        return stage(features[..., row.span(input_stride), column.span(input_stride)])

    try:
        for norm in norms if tiling.exact else ():
            for norm.owned in tiles:
                with contextlib.suppress(_Collected):
                    run(*norm.owned)
            norm.finish()
        rows, columns = (
            dict(zip(tiles_of(side, tiling), tile_weights(side, tiling, output_stride, features.device), strict=True))
            for side in (height, width)
        )
        result: torch.Tensor | None = None
        for row, column in tiles:
            part = run(row, column)
            if result is None:
                result = part.new_zeros(*part.shape[:2], height // output_stride, width // output_stride)
            weight = (rows[row][:, None] * columns[column]).to(part.dtype)
            result[..., row.span(output_stride), column.span(output_stride)] += part * weight
    finally:
        for norm in norms:
            norm.reset()
    assert result is not None
    return result


def tiles_of(side: int, tiling: Tiling) -> list[Tile]:
    """The tiles along a side of so many pixels: as few as cover it, the last one moved back to end with it."""
    if side <= tiling.size:
        return [Tile(0, side, 0, side)]
    starts = [*range(0, side - tiling.size, tiling.size - tiling.overlap), side - tiling.size]
    seams = [(start + following + tiling.size) // 2 for start, following in itertools.pairwise(starts)]
    return [
        Tile(start, start + tiling.size, *owned)
        for start, owned in zip(starts, itertools.pairwise([0, *seams, side]), strict=True)
    ]


def tile_weights(side: int, tiling: Tiling, stride: int, device: torch.device) -> list[torch.Tensor]:
    """The share that each tile has in the result along a side; shares add up to one everywhere.

    Between two tiles a ramp of `blend` pixels, around where the one's own part ends, goes from one to the other.

    Args:
        side: of the picture, in pixels.
        tiling: the tiles' size and blend.
        stride: pixels per position of the result.
        device: of the result.
    """
    tiles = tiles_of(side, tiling)
    centres = (torch.arange(side // stride, device=device) + 0.5) * stride
    # Share of all tiles from a given one on.
    from_here = [torch.ones_like(centres)]
    from_here += [((centres - tile.owned_start) / tiling.blend + 0.5).clamp(0, 1) for tile in tiles[1:]]
    from_here.append(torch.zeros_like(centres))
    shares = [here - beyond for here, beyond in itertools.pairwise(from_here)]
    return [share[tile.span(stride)] for tile, share in zip(tiles, shares, strict=True)]


def run_sliced(function: Callable[[torch.Tensor], torch.Tensor], batch: torch.Tensor) -> torch.Tensor:
    """`function(batch)`, one sample at a time."""
    return torch.cat([function(sample) for sample in batch.split(1)])
