"""Quantizers of feature maps: one code per position, and a residual pyramid of codes.

Everything here runs in fp32 whatever the precision around it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import nn
from transformers.utils.generic import maybe_autocast

from ..errors import LayoutError
from ..tokens import TokenLayout
from .codebook import Codebook, CodebookTokenizerConfig, QuantizerOutput, straight_through

ResizeMode = Literal["area", "bilinear", "bicubic", "nearest"]


class VectorQuantizer(nn.Module):
    """Every position of a feature map becomes its nearest code (https://huggingface.co/papers/1711.00937)."""

    def __init__(self, config: CodebookTokenizerConfig):
        super().__init__()
        self.config = config
        self.codebook = Codebook(config)

    @torch.no_grad()
    def encode(self, features: torch.Tensor) -> torch.Tensor:
        """Ids of a feature map: `(batch, channels, h, w)` to `(batch, h * w)`."""
        return self.codebook.nearest(self._vectors(features)).view(len(features), -1)

    def forward(self, features: torch.Tensor) -> QuantizerOutput:
        """`(batch, channels, h, w)` to codes, ids in raster order, and loss terms.

        In training mode the codebook's statistics are updated.
        """
        config, batch, (height, width) = self.config, features.shape[0], features.shape[-2:]
        with maybe_autocast(features.device.type, enabled=False):
            vectors = self._vectors(features)
            ids = self.codebook.nearest(vectors)
            if self.training:
                self.codebook.observe(vectors, ids)
            codes = self.codebook.lookup(ids)
            losses = {"commitment": config.commitment_weight * F.mse_loss(vectors, codes.detach())}
            if config.ema_decay is None:
                losses["codebook"] = config.codebook_weight * F.mse_loss(codes, vectors.detach())
            if config.entropy_weight:
                losses["entropy"] = config.entropy_weight * self.codebook.entropy_loss(vectors)
            quantized = straight_through(codes, vectors).view(batch, height, width, -1).permute(0, 3, 1, 2)
        return QuantizerOutput(quantized, ids.view(batch, -1), losses, self.codebook.usage(ids))

    def _vectors(self, features: torch.Tensor) -> torch.Tensor:
        vectors = as_vectors(features.float())
        return F.normalize(vectors, dim=-1) if self.config.unit_codes else vectors


def as_vectors(features: torch.Tensor) -> torch.Tensor:
    """`(batch, channels, h, w)` to `(batch * h * w, channels)`, raster order."""
    return features.permute(0, 2, 3, 1).flatten(0, 2)


def resize(features: torch.Tensor, size: Sequence[int], mode: ResizeMode) -> torch.Tensor:
    """`(batch, channels, h, w)` to another size, without antialiasing; `area` is adaptive average pooling."""
    if tuple(features.shape[-2:]) == tuple(size):
        return features
    corners = {"align_corners": False} if mode in ("bilinear", "bicubic") else {}
    return F.interpolate(features, size=tuple(size), mode=mode, **corners)


class ResidualPyramidQuantizer(nn.Module):
    """Levels of codes, each quantizing what the coarser ones left over
    (https://huggingface.co/papers/2404.02905, algorithm 1).

    `rest_1 = f`; `r_k = nearest(down(rest_k, p_k))`; `h_k = refine_k(up(e[r_k], p_K))`; `rest_{k+1} = rest_k
    - h_k`, and `sum_k h_k` is what comes out. `refine(h) = (1 - ratio) h + ratio conv(h)`.

    Args:
        num_refinements: convolutions that the levels share; 0 leaves the refinement out.
        refinement_kernel_size: side of these convolutions.
        refinement_ratio: share of the convolution in the refined map.
        upsample_mode: how a level's codes come to the finest size.
        downsample_mode: how a map comes to a level's size.
    """

    def __init__(
        self,
        config: CodebookTokenizerConfig,
        *,
        num_refinements: int,
        refinement_kernel_size: int,
        refinement_ratio: float,
        upsample_mode: ResizeMode,
        downsample_mode: ResizeMode,
    ):
        super().__init__()
        self.config = config
        self.codebook = Codebook(config)
        channels, padding = config.code_channels, refinement_kernel_size // 2
        self.refinements = nn.ModuleList(
            nn.Conv2d(channels, channels, refinement_kernel_size, padding=padding) for _ in range(num_refinements)
        )
        self.refinement_ratio = refinement_ratio
        self.upsample_mode, self.downsample_mode = upsample_mode, downsample_mode

    def initial_canvas(self, batch_size: int, layout: TokenLayout, device: torch.device | str) -> torch.Tensor:
        """An empty canvas, `(batch, channels, h, w)` fp32 at the size of the last level."""
        return torch.zeros(batch_size, self.config.code_channels, *layout.final, device=device)

    def refinement_index(self, level: int, num_levels: int) -> int:
        """Which convolution serves a level: the one whose tick is nearest to `level / (num_levels - 1)`.

        Ticks are spread evenly over [1 / 2n, 1 - 1 / 2n], for 4 convolutions over [1/12, 11/12]; the first
        one wins ties.
        """
        number = len(self.refinements)
        if number == 1 or num_levels == 1:
            return 0
        first = 1 / 12 if number == 4 else 1 / (2 * number)
        step = (1 - first - first) / (number - 1)
        # In double precision: two of ten levels lie halfway between two of four ticks, and rounding decides.
        return min(range(number), key=lambda tick: abs(first + tick * step - level / (num_levels - 1)))

    def contribution(self, codes: torch.Tensor, level: int, layout: TokenLayout) -> torch.Tensor:
        """What a level adds to the canvas.

        Args:
            codes: `(batch, tokens of the level, channels)`.
            level: index of the level.
            layout: the whole pyramid.

        Returns:
            `(batch, channels, h, w)` fp32 at the size of the last level.
        """
        with maybe_autocast(codes.device.type, enabled=False):
            grid = codes.float().transpose(1, 2).unflatten(-1, layout.levels[level])
            grid = resize(grid, layout.final, self.upsample_mode)
            if not self.refinements:
                return grid
            refine = self.refinements[self.refinement_index(level, layout.num_levels)]
            assert isinstance(refine, nn.Conv2d)
            return grid.lerp(refine(grid.to(refine.weight.dtype)).float(), self.refinement_ratio)

    def accumulate(self, canvas: torch.Tensor, codes: torch.Tensor, level: int, layout: TokenLayout) -> torch.Tensor:
        """The canvas `(batch, channels, h, w)` after a level's codes `(batch, tokens, channels)`."""
        return canvas + self.contribution(codes, level, layout)

    def resize_canvas(self, canvas: torch.Tensor, size: Sequence[int]) -> torch.Tensor:
        """The canvas `(batch, channels, H, W)` at a level's size, `(batch, h * w, channels)`."""
        return resize(canvas.float(), size, self.downsample_mode).flatten(2).transpose(1, 2)

    def running(self, ids: torch.Tensor, layout: TokenLayout, num_levels: int | None = None) -> Iterator[torch.Tensor]:
        """The canvas after every level: `num_levels` maps `(batch, channels, h, w)`.

        Args:
            ids: `(batch, length)` of the first `num_levels` levels at least.
            layout: the whole pyramid.
            num_levels: how many levels to place; None for all.
        """
        canvas = self.initial_canvas(ids.shape[0], layout, ids.device)
        for level in range(layout.num_levels if num_levels is None else num_levels):
            codes = self.codebook.lookup(ids[:, layout.level_slice(level)])
            canvas = self.accumulate(canvas, codes, level, layout)
            yield canvas

    @torch.no_grad()
    def encode(self, features: torch.Tensor, layout: TokenLayout) -> torch.Tensor:
        """Ids of a feature map: `(batch, channels, h, w)` to `(batch, length)`.

        Raises:
            LayoutError: the pyramid does not end at the map's size.
        """
        return self._search(features, layout)[0]

    def _search(self, features: torch.Tensor, layout: TokenLayout) -> tuple[torch.Tensor, torch.Tensor]:
        """Ids `(batch, length)`, and the vectors `(batch, length, channels)` that were quantized."""
        if layout.final != tuple(features.shape[-2:]):
            raise LayoutError(
                f"the pyramid {layout} does not end at the feature map's size {tuple(features.shape[-2:])}"
            )
        rest, ids, vectors = features.detach().float(), [], []
        for level, size in enumerate(layout.levels):
            resized = self.resize_canvas(rest, size)
            found = self.codebook.nearest(resized.flatten(0, 1)).view(resized.shape[:2])
            rest = rest - self.contribution(self.codebook.lookup(found), level, layout)
            ids.append(found)
            vectors.append(resized)
        return torch.cat(ids, dim=1), torch.cat(vectors, dim=1)

    def forward(self, features: torch.Tensor, layout: TokenLayout) -> QuantizerOutput:
        """`(batch, channels, h, w)` to the sum of all levels, ids, and loss terms, each a mean over the
        levels.

        In training mode the codebook's statistics are updated.

        Raises:
            LayoutError: the pyramid does not end at the map's size.
        """
        config = self.config
        with maybe_autocast(features.device.type, enabled=False):
            features = features.float()
            with torch.no_grad():
                ids, vectors = self._search(features, layout)
                if self.training:
                    self.codebook.observe(vectors.flatten(0, 1), ids.flatten())
            canvas, codebook, commitment, quantized = torch.zeros_like(features), [], [], []
            for level, running in enumerate(self.running(ids, layout)):
                if config.entropy_weight:
                    quantized.append(self.resize_canvas(features - canvas.detach(), layout.levels[level]).flatten(0, 1))
                canvas = running
                codebook.append(F.mse_loss(canvas, features.detach()))
                commitment.append(F.mse_loss(canvas.detach(), features))
            losses = {"commitment": config.commitment_weight * torch.stack(commitment).mean()}
            # With moving averages the codes have no gradient, the refinements still do.
            losses["codebook"] = config.codebook_weight * torch.stack(codebook).mean()
            if config.entropy_weight:
                losses["entropy"] = config.entropy_weight * self.codebook.entropy_loss(torch.cat(quantized))
        return QuantizerOutput(straight_through(canvas, features), ids, losses, self.codebook.usage(ids))
