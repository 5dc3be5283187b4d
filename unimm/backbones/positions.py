"""Rotary position encoding over grid coordinates."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class EncodedPositions:
    """Positions in the form that a backbone's attention uses, computed once for a whole sequence.

    Args:
        rotary: cosines and sines, each `(slots, head_dim / 2)` fp32, or None.
        position_ids: `(batch or 1, slots)` int64.
    """

    rotary: tuple[torch.Tensor, torch.Tensor] | None
    position_ids: torch.Tensor

    def first_rows(self, number: int) -> EncodedPositions:
        """The positions of the first `number` rows of the batch."""
        if self.position_ids.shape[0] == 1:
            return self
        return EncodedPositions(self.rotary, self.position_ids[:number])

    def __getitem__(self, slots: slice) -> EncodedPositions:
        rotary = None if self.rotary is None else (self.rotary[0][slots], self.rotary[1][slots])
        return EncodedPositions(rotary, self.position_ids[:, slots])


def axial_rotary(
    coordinates: torch.Tensor, is_prefix: torch.Tensor, head_dim: int, theta: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Rotation angles with an equal share of the channels per grid axis, row axis first.

    Channel pair `j` of axis `a` turns by `coordinate_a * theta^(-2j / (head_dim / axes))`. Prefix slots get rows of
    zeros (cosine and sine), which makes their queries and keys zero vectors
    (https://huggingface.co/papers/2406.06525).

    Args:
        coordinates: `(slots, axes)`.
        is_prefix: `(slots,)` bool.
        head_dim: channels of one attention head, a multiple of `2 * axes`.
        theta: base of the frequencies.

    Returns:
        Cosines and sines, each `(slots, head_dim / 2)` fp32.
    """
    num_axes = coordinates.shape[1]
    channels = head_dim // num_axes
    exponents = torch.arange(0, channels, 2, dtype=torch.float32, device=coordinates.device) / channels
    frequencies = 1.0 / (theta**exponents)
    angles = (coordinates[:, :, None].float() * frequencies).flatten(1)
    keep = (~is_prefix)[:, None].float()
    return angles.cos() * keep, angles.sin() * keep


def rotate_adjacent_pairs(states: torch.Tensor, rotary: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    """Turns channel pairs `(2m, 2m + 1)` by the m-th angle of their slot.

    Args:
        states: `(batch, slots, heads, head_dim)`.
        rotary: cosines and sines, each `(slots, head_dim / 2)`.
    """
    cosine, sine = (table[:, None, :] for table in rotary)
    even, odd = states.float().unflatten(-1, (-1, 2)).unbind(-1)
    turned = torch.stack([even * cosine - odd * sine, odd * cosine + even * sine], dim=-1)
    return turned.flatten(-2).to(states.dtype)
