"""What flows between all the rooms of the package: where a sample's visual tokens lie, and the tokens themselves."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from operator import index

import torch

from .checks import check_range, described, require_ids, require_tensor
from .errors import LayoutError


@dataclass(frozen=True)
class TokenLayout:
    """How one sample's tokens are arranged: an ordered list of grids, each read in raster order.

    `((16, 16),)` is a grid, `((1, 1), (2, 2), (4, 4))` a pyramid, `((128,),)` a sequence, `((8, 16, 16),)` a video.

    Args:
        levels: the shape of every level, coarse to fine; each shape has 1 to 3 positive sides, the same number in all.

    Raises:
        LayoutError: no level, a side below 1 or that is no integer, or levels of different dimensionality.
    """

    levels: tuple[tuple[int, ...], ...]

    def __post_init__(self) -> None:
        try:
            levels = tuple(tuple(index(side) for side in level) for level in self.levels)
        except TypeError as error:
            raise LayoutError(
                f"a layout is a list of levels, each a list of whole numbers such as ((16, 16),), given {self.levels!r}"
            ) from error
        object.__setattr__(self, "levels", levels)
        if not levels:
            raise LayoutError("a layout needs at least one level, none was given")
        if any(not 1 <= len(level) <= 3 or min(level) < 1 for level in levels):
            raise LayoutError(f"every level needs 1 to 3 sides of at least 1 token, given {levels}")
        if len({len(level) for level in levels}) > 1:
            raise LayoutError(f"all levels need the same number of sides, given {levels}")

    @classmethod
    def grid(cls, height: int, width: int | None = None) -> TokenLayout:
        """One `height x width` grid (square when no width is given)."""
        return cls(((height, height if width is None else width),))

    @classmethod
    def pyramid(cls, sides: Sequence[int | tuple[int, int]]) -> TokenLayout:
        """Grids from coarse to fine; an integer stands for a square.

        Raises:
            LayoutError: something else than a list of sides or `(height, width)`.
        """
        try:
            return cls(tuple((side, side) if isinstance(side, int) else tuple(side) for side in sides))
        except TypeError as error:
            raise LayoutError(
                f"a pyramid is a list of sides or (height, width) pairs from coarse to fine, given {sides!r}"
            ) from error

    @classmethod
    def sequence(cls, length: int) -> TokenLayout:
        """A one-dimensional run of tokens."""
        return cls(((length,),))

    @classmethod
    def video(cls, frames: int, height: int, width: int) -> TokenLayout:
        """One `frames x height x width` block."""
        return cls(((frames, height, width),))

    @cached_property
    def level_lengths(self) -> tuple[int, ...]:
        """Number of tokens of every level."""
        return tuple(math.prod(level) for level in self.levels)

    @cached_property
    def offsets(self) -> tuple[int, ...]:
        """Index of every level's first token, and the total length at the end."""
        total, offsets = 0, [0]
        for length in self.level_lengths:
            total += length
            offsets.append(total)
        return tuple(offsets)

    @property
    def length(self) -> int:
        """Number of tokens of one sample."""
        return self.offsets[-1]

    @property
    def num_levels(self) -> int:
        return len(self.levels)

    @property
    def num_dimensions(self) -> int:
        """1 for sequences, 2 for pictures, 3 for videos."""
        return len(self.levels[0])

    @property
    def final(self) -> tuple[int, ...]:
        """The shape of the last (finest) level."""
        return self.levels[-1]

    def level_slice(self, level: int) -> slice:
        """Where the tokens of `level` lie in the sequence.

        Raises:
            LayoutError: there is no such level.
        """
        if not 0 <= level < self.num_levels:
            raise LayoutError(f"the layout {self} has levels 0 to {self.num_levels - 1}, asked for {level}")
        return slice(self.offsets[level], self.offsets[level + 1])

    def level_ids(self, device: torch.device | str | None = None) -> torch.Tensor:
        """Level of every token, `(length,)` int64."""
        lengths = torch.tensor(self.level_lengths)
        return torch.repeat_interleave(torch.arange(self.num_levels), lengths).to(device)

    def coordinates(self, device: torch.device | str | None = None) -> torch.Tensor:
        """Grid coordinates of every token inside its level, `(length, num_dimensions)` int64, row before column."""
        grids = [
            torch.stack(torch.meshgrid(*[torch.arange(side) for side in level], indexing="ij"), -1).flatten(0, -2)
            for level in self.levels
        ]
        return torch.cat(grids).to(device)

    def first_levels(self, number: int) -> TokenLayout:
        """The layout of the first `number` levels alone."""
        if not isinstance(number, int) or not 1 <= number <= self.num_levels:
            raise LayoutError(f"asked for the first {number!r} levels of a layout with {self.num_levels}")
        return TokenLayout(self.levels[:number])

    def __str__(self) -> str:
        return " + ".join("x".join(str(side) for side in level) for level in self.levels)


@dataclass(frozen=True)
class TokenKind:
    """What one visual token is: an id, several ids, or a latent vector.

    Args:
        channels: channels of a token's latent vector, or of the code that its ids stand for; 0 where nobody knows.
        codebook_size: number of ids, 2 for bits; None for continuous latents.
        num_codes: ids per token.

    Raises:
        LayoutError: latents without channels, or fewer than one id.
    """

    channels: int = 0
    codebook_size: int | None = None
    num_codes: int = 1

    def __post_init__(self) -> None:
        if self.num_codes < 1 or (self.codebook_size is not None and self.codebook_size < 1):
            raise LayoutError(f"a token has at least one id of a codebook with at least one code, given {self}")
        if self.codebook_size is None and self.channels < 1:
            raise LayoutError(f"latents need at least one channel, given {self.channels}")

    @property
    def is_discrete(self) -> bool:
        return self.codebook_size is not None

    def check(self, values: torch.Tensor, name: str = "tokens") -> None:
        """Refuses tokens of another kind. Waits for the device: for the border of the package.

        Args:
            values: what was given.
            name: what the message calls it.

        Raises:
            LayoutError: latents for ids or the other way round, or another number of channels or codes.
            CodebookError: ids outside of the codebook.
        """
        if self.codebook_size is not None:
            shape = "(batch, tokens)" if self.num_codes == 1 else f"(batch, tokens, {self.num_codes})"
            ids = require_ids(values, name, shape, 2 if self.num_codes == 1 else 3)
            if self.num_codes > 1 and ids.shape[2] != self.num_codes:
                raise LayoutError(f"{name} must have {self.num_codes} codes per token, given {described(values)}")
            check_range(ids, self.codebook_size, name, "were they made with another tokenizer?")
            return
        require_tensor(values, name, f"(batch, tokens, {self.channels})", 3)
        if not values.is_floating_point() or values.shape[2] != self.channels:
            raise LayoutError(
                f"{name} must be floating point latents of {self.channels} channels per token, given {described(values)}"
            )

    def blank(self, batch_size: int, length: int, device: torch.device | str | None = None) -> torch.Tensor:
        """Zeros in the form of tokens: `(batch, length[, codes])` int64 ids or `(batch, length, channels)` fp32 latents."""
        if not self.is_discrete:
            return torch.zeros(batch_size, length, self.channels, device=device)
        codes = () if self.num_codes == 1 else (self.num_codes,)
        return torch.zeros(batch_size, length, *codes, dtype=torch.long, device=device)

    def __str__(self) -> str:
        if not self.is_discrete:
            return f"continuous latents of {self.channels} channels"
        each = "an id" if self.num_codes == 1 else f"{self.num_codes} ids"
        return f"{each} of {self.codebook_size} per token"


@dataclass(frozen=True)
class VisualTokens:
    """The tokens of a batch of samples that share one layout: discrete ids or continuous latents, never both.

    Args:
        layout: the arrangement.
        ids: `(batch, length)` or `(batch, length, codes)`, kept as int64.
        latents: `(batch, length, channels)` floating point.

    Raises:
        LayoutError: neither or both are given, they are no tensors of that kind, or the number of tokens is not the
            layout's.
    """

    layout: TokenLayout
    ids: torch.Tensor | None = None
    latents: torch.Tensor | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.layout, TokenLayout):
            raise LayoutError(f"visual tokens need a TokenLayout, given {self.layout!r}")
        if (self.ids is None) == (self.latents is None):
            raise LayoutError("visual tokens are either ids or latents: give exactly one of them")
        if self.ids is not None:
            ids = require_ids(self.ids, "ids", "(batch, length) or (batch, length, codes)", (2, 3))
            object.__setattr__(self, "ids", ids)
        else:
            latents = require_tensor(self.latents, "latents", "(batch, length, channels)", 3)
            if not latents.is_floating_point():
                raise LayoutError(f"latents must be floating point, given {described(latents)}")
        if self.values.shape[1] != self.layout.length:
            raise LayoutError(
                f"the layout {self.layout} has {self.layout.length} tokens, given {self.values.shape[1]} "
                f"(shape {tuple(self.values.shape)})"
            )

    @classmethod
    def of(cls, layout: TokenLayout, values: torch.Tensor) -> VisualTokens:
        """Tokens of ids or latents, whichever the dtype says."""
        return cls(layout, latents=values) if values.is_floating_point() else cls(layout, ids=values)

    @property
    def values(self) -> torch.Tensor:
        """The ids or the latents, whichever there are."""
        values = self.ids if self.ids is not None else self.latents
        assert values is not None
        return values

    @property
    def batch_size(self) -> int:
        return self.values.shape[0]

    @property
    def device(self) -> torch.device:
        return self.values.device

    def level(self, index: int) -> torch.Tensor:
        """The values of one level, `(batch, level length, …)`."""
        return self.values[:, self.layout.level_slice(index)]

    def first_levels(self, number: int) -> VisualTokens:
        """The tokens of the first `number` levels."""
        layout = self.layout.first_levels(number)
        return VisualTokens.of(layout, self.values[:, : layout.length])

    def to(self, device: torch.device | str) -> VisualTokens:
        """The same tokens on another device."""
        if self.ids is not None:
            return replace(self, ids=self.ids.to(device))
        return replace(self, latents=self.values.to(device))


#: Some tokens of a layout: a range, `(number,)` places, or `(batch, number)` places that differ from sample to sample.
TokenPlaces = slice | torch.Tensor


def take_tokens(values: torch.Tensor, places: TokenPlaces) -> torch.Tensor:
    """The tokens at some places: `(batch, length, …)` to `(batch, number, …)`."""
    if isinstance(places, slice) or places.dim() == 1:
        return values[:, places]
    return values[torch.arange(len(values), device=values.device)[:, None], places]


def put_tokens(values: torch.Tensor, places: TokenPlaces, tokens: torch.Tensor) -> None:
    """Writes `(batch, number, …)` tokens to some places of `(batch, length, …)` values."""
    if isinstance(places, slice) or places.dim() == 1:
        values[:, places] = tokens
    else:
        values[torch.arange(len(values), device=values.device)[:, None], places] = tokens


def check_ids(ids: torch.Tensor, codebook_size: int) -> None:
    """Refuses ids outside of `[0, codebook_size)`. Waits for the device: for the border of the package.

    Raises:
        LayoutError: no tensor of integers.
        CodebookError: with the range that was found.
    """
    ids = require_ids(ids, "token ids", "(batch, length)")
    check_range(ids, codebook_size, "token ids", "were they made with another tokenizer?")
