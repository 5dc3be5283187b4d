"""Binary spherical quantization: a token is the signs of a unit vector, and no table of codes exists.

https://huggingface.co/papers/2406.07548 (one grid) and https://huggingface.co/papers/2412.04431 (a residual pyramid).
Everything here runs in fp32 whatever the precision around it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import nn
from transformers.utils.generic import maybe_autocast

from ..errors import LayoutError
from ..tokens import TokenLayout
from .codebook import QuantizerOutput, straight_through
from .quantizers import ResizeMode, resize

#: Inside of the logarithms of the entropy term.
_ENTROPY_EPSILON = 1e-8


def bits_of(vectors: torch.Tensor) -> torch.Tensor:
    """Signs as bits, `(…)` to int64 of the same shape: 1 where an entry is positive."""
    return (vectors > 0).long()


def codes_of(bits: torch.Tensor, num_bits: int) -> torch.Tensor:
    """Entries `(2 bit - 1) / sqrt(num_bits)`, fp32: `num_bits` of them are a vector of unit length."""
    return (2 * bits - 1).float() / math.sqrt(num_bits)


def bit_entropies(vectors: torch.Tensor, sharpness: float) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """How sure the bits are, and how evenly they are used.

    With `p = sigmoid(-4 sharpness u / sqrt(d))`, the probability of a zero: `mean_n sum_i H(p_ni)`,
    `sum_i H(mean_n p_ni)`, and the mean probabilities `(d, 2)` of zero and one.

    Args:
        vectors: `(number, d)` of unit length.
        sharpness: inverse temperature.
    """
    zero = torch.sigmoid(-4 * sharpness * vectors.float() / math.sqrt(vectors.shape[-1]))
    probabilities = torch.stack([zero, 1 - zero], dim=-1)

    def entropy(values: torch.Tensor) -> torch.Tensor:
        return -(values * (values + _ENTROPY_EPSILON).log()).sum((-1, -2))

    mean = probabilities.mean(0)
    return entropy(probabilities).mean(), entropy(mean), mean


class BinaryPyramidConfig(Protocol):
    """What the quantizer reads of its tokenizer's config."""

    code_channels: int
    patch_side: int
    upsample_mode: ResizeMode
    downsample_mode: ResizeMode
    canvas_mode: ResizeMode
    commitment_weight: float
    entropy_weight: float
    entropy_sharpness: float


class BinaryPyramidQuantizer(nn.Module):
    """Levels of bits, each the signs of what the coarser ones left over.

    `rest_1 = f`; `c_k = signs(down(rest_k, p_k)) / sqrt(d)`; `h_k = up(c_k, p_K)`; `rest_{k+1} = rest_k - h_k`, and
    `sum_k h_k` is what comes out. With a `patch_side` of n a token holds the bits of n x n neighbours, channel by channel,
    and every grid here is n times the layout's level.
    """

    def __init__(self, config: BinaryPyramidConfig):
        super().__init__()
        self.config = config

    def initial_canvas(self, batch_size: int, layout: TokenLayout, device: torch.device | str) -> torch.Tensor:
        """An empty canvas, `(batch, channels, h, w)` fp32 at the full size."""
        return torch.zeros(batch_size, self.config.code_channels, *self.grid_size(layout.final), device=device)

    def grid_size(self, level: Sequence[int]) -> tuple[int, ...]:
        """Rows and columns of vectors of a level."""
        return tuple(side * self.config.patch_side for side in level)

    def lookup(self, bits: torch.Tensor) -> torch.Tensor:
        """Codes of bits, of the same shape, fp32."""
        return codes_of(bits, self.config.code_channels)

    def contribution(self, codes: torch.Tensor, level: int, layout: TokenLayout) -> torch.Tensor:
        """What a level's codes `(batch, tokens, entries)` add to the canvas, `(batch, channels, h, w)`."""
        grid = codes.float().transpose(1, 2).unflatten(-1, layout.levels[level])
        grid = F.pixel_shuffle(grid, self.config.patch_side)
        return resize(grid, self.grid_size(layout.final), self.config.upsample_mode)

    def accumulate(self, canvas: torch.Tensor, codes: torch.Tensor, level: int, layout: TokenLayout) -> torch.Tensor:
        """The canvas `(batch, channels, h, w)` after a level's codes `(batch, tokens, entries)`."""
        return canvas + self.contribution(codes, level, layout)

    def resize_canvas(self, canvas: torch.Tensor, size: Sequence[int], mode: ResizeMode | None = None) -> torch.Tensor:
        """The canvas at a level's size `(h, w)`: `(batch, h * w, entries)`; `mode` is the config's for slots."""
        resized = resize(canvas.float(), self.grid_size(size), self.config.canvas_mode if mode is None else mode)
        return F.pixel_unshuffle(resized, self.config.patch_side).flatten(2).transpose(1, 2)

    def running(self, bits: torch.Tensor, layout: TokenLayout, num_levels: int | None = None) -> Iterator[torch.Tensor]:
        """The canvas after every level: `num_levels` maps `(batch, channels, h, w)`.

        Args:
            bits: `(batch, length, entries)` of the first `num_levels` levels at least.
            layout: the whole pyramid.
            num_levels: how many levels to place; None for all.
        """
        canvas = self.initial_canvas(bits.shape[0], layout, bits.device)
        for level in range(layout.num_levels if num_levels is None else num_levels):
            canvas = self.accumulate(canvas, self.lookup(bits[:, layout.level_slice(level)]), level, layout)
            yield canvas

    def rest(self, features: torch.Tensor, canvas: torch.Tensor, level: int, layout: TokenLayout) -> torch.Tensor:
        """What a level has to quantize, `(batch, tokens, entries)` fp32, not of unit length."""
        return self.resize_canvas(features.float() - canvas, layout.levels[level], self.config.downsample_mode)

    @torch.no_grad()
    def encode(self, features: torch.Tensor, layout: TokenLayout) -> torch.Tensor:
        """Bits of a feature map: `(batch, channels, h, w)` to `(batch, length, entries)`.

        Raises:
            LayoutError: the pyramid does not end at the map's size.
        """
        self.check(features, layout)
        canvas, found = self.initial_canvas(len(features), layout, features.device), []
        for level in range(layout.num_levels):
            found.append(bits_of(self.rest(features, canvas, level, layout)))
            canvas = self.accumulate(canvas, self.lookup(found[-1]), level, layout)
        return torch.cat(found, dim=1)

    def check(self, features: torch.Tensor, layout: TokenLayout) -> None:
        """Refuses a pyramid that does not end at the map's size.

        Raises:
            LayoutError: with both sizes.
        """
        if self.grid_size(layout.final) != tuple(features.shape[-2:]):
            raise LayoutError(
                f"the pyramid {layout} ends at {self.grid_size(layout.final)} vectors, the feature map has "
                f"{tuple(features.shape[-2:])}"
            )

    def forward(self, features: torch.Tensor, layout: TokenLayout) -> QuantizerOutput:
        """`(batch, channels, h, w)` to the sum of all levels, bits, and loss terms over the vectors of all levels.

        The gradient of every level's code goes straight to the unit vector that it stands for.

        Raises:
            LayoutError: the pyramid does not end at the map's size.
        """
        config = self.config
        self.check(features, layout)
        with maybe_autocast(features.device.type, enabled=False):
            features = features.float()
            canvas = self.initial_canvas(len(features), layout, features.device)
            found, units, commitment = [], [], []
            for level in range(layout.num_levels):
                rest = self.rest(features, canvas.detach(), level, layout)
                bits = bits_of(rest)
                unit = self._unit(rest)
                code = self.lookup(bits)
                commitment.append((unit - code).square().mean())
                canvas = self.accumulate(canvas, straight_through(code, unit), level, layout)
                found.append(bits)
                units.append(self._vectors(unit))
            losses = {"commitment": config.commitment_weight * torch.stack(commitment).mean()}
            if config.entropy_weight:
                each, overall, _ = bit_entropies(torch.cat(units), config.entropy_sharpness)
                losses["entropy"] = config.entropy_weight * (each - overall) / config.entropy_sharpness
            bits = torch.cat(found, dim=1)
            used = torch.stack([(bits == value).flatten(0, 1).any(0) for value in (0, 1)])
        return QuantizerOutput(canvas, bits, losses, used.float().mean())

    def _vectors(self, tokens: torch.Tensor) -> torch.Tensor:
        """`(batch, tokens, entries)` to `(number, channels)`: tokens taken apart into their vectors."""
        return tokens.unflatten(-1, (self.config.code_channels, -1)).transpose(-1, -2).flatten(0, 2)

    def _unit(self, tokens: torch.Tensor) -> torch.Tensor:
        """Every vector of the tokens divided by its length, in the tokens' own shape."""
        return F.normalize(tokens.unflatten(-1, (self.config.code_channels, -1)), dim=-2).flatten(-2)
