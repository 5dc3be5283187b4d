"""Latent maps as sequences of patches, channels first inside of a token."""

from __future__ import annotations

import torch


def patchify(latents: torch.Tensor, patch_size: int) -> torch.Tensor:
    """`(batch, channels, height, width)` to `(batch, tokens, channels * patch_size ** 2)`, tokens in reading order.

    A token lists its channels, of each the rows of the patch, of each the columns.
    """
    batch, channels, height, width = latents.shape
    rows, columns = height // patch_size, width // patch_size
    parts = latents.reshape(batch, channels, rows, patch_size, columns, patch_size)
    return parts.permute(0, 2, 4, 1, 3, 5).reshape(batch, rows * columns, channels * patch_size**2)


def unpatchify(tokens: torch.Tensor, patch_size: int, grid: tuple[int, int]) -> torch.Tensor:
    """The inverse of `patchify` for a grid of `(rows, columns)` tokens."""
    batch, _, width = tokens.shape
    rows, columns = grid
    parts = tokens.reshape(batch, rows, columns, width // patch_size**2, patch_size, patch_size)
    return parts.permute(0, 3, 1, 4, 2, 5).reshape(batch, -1, rows * patch_size, columns * patch_size)
