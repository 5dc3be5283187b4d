"""The contract of a visual tokenizer: pixels in, visual tokens out, and back."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedModel
from transformers.utils import ModelOutput

from ..errors import ConfigError, LayoutError
from ..hub.mixins import HubModelMixin
from ..tokens import TokenKind, TokenLayout, VisualTokens


@dataclass
class TokenizerOutput(ModelOutput):
    """What a training step of a tokenizer needs.

    Args:
        loss: sum of `losses`.
        reconstruction: `(batch, channels, height, width)`, not clamped.
        losses: the terms by name, each already multiplied by its weight in the config.
        codebook_usage: share of the codebook in use, in [0, 1]; None for continuous latents.
        tokens: the tokens of the pictures, without gradient.
    """

    loss: torch.Tensor | None = None
    reconstruction: torch.Tensor | None = None
    losses: dict[str, torch.Tensor] | None = None
    codebook_usage: torch.Tensor | None = None
    tokens: VisualTokens | None = None


class VisualTokenizer(HubModelMixin, PreTrainedModel):
    """Turns pictures into visual tokens and tokens into pictures."""

    base_model_prefix = ""
    main_input_name = "pixel_values"
    input_modalities = ("image",)
    supports_gradient_checkpointing = True
    # Attention inside of a tokenizer runs over the pixels of its feature maps and always through torch's
    # fused kernel: declared so that a model around it may choose any implementation for its own layers.
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True

    @property
    @abstractmethod
    def codebook_size(self) -> int | None:
        """Number of ids; None for continuous latents."""

    @property
    @abstractmethod
    def latent_channels(self) -> int:
        """Channels of a token's latent vector."""

    @property
    def token_kind(self) -> TokenKind:
        """What one token is."""
        return TokenKind(self.latent_channels, self.codebook_size)

    @property
    @abstractmethod
    def stride(self) -> int:
        """Pixels per token along each side of the finest grid."""

    @abstractmethod
    def encode(self, pixel_values: torch.Tensor) -> VisualTokens:
        """Tokens of pictures.

        Args:
            pixel_values: `(batch, channels, height, width)` in [-1, 1].

        Raises:
            LayoutError: height or width is no multiple of the stride.
        """

    @abstractmethod
    def decode(
        self,
        tokens: VisualTokens,
        *,
        size: tuple[int, int] | None = None,
        clamp: bool = True,
        generator: torch.Generator | None = None,
    ) -> torch.Tensor:
        """Pictures of tokens, `(batch, channels, height, width)`, nominally in [-1, 1].

        Args:
            tokens: tokens of one layout.
            size: `(height, width)` in pixels, for tokenizers whose layout leaves it open; others check it.
            clamp: clip to [-1, 1].
            generator: for decoders that draw; a deterministic decoder leaves it untouched.

        Raises:
            LayoutError: a layout that this tokenizer cannot decode, or a size that is not the layout's.
            CodebookError: ids outside of the codebook.
        """

    def embed(self, ids: torch.Tensor) -> torch.Tensor:
        """Latent vectors of ids: `(…)` int64 to `(…, latent_channels)`.

        Raises:
            ConfigError: this tokenizer has no codebook.
        """
        raise ConfigError(f"{type(self).__name__} has continuous latents and no codebook to look ids up in")

    def layout_for(self, height: int, width: int) -> TokenLayout:
        """The layout of a picture's tokens.

        Args:
            height: pixels.
            width: pixels.

        Raises:
            LayoutError: a side is no positive multiple of the stride.
        """
        return TokenLayout.grid(*self.latent_size(height, width))

    def latent_size(self, height: int, width: int) -> tuple[int, int]:
        """Rows and columns of the finest grid of a `height x width` picture.

        Raises:
            LayoutError: a side is no positive multiple of the stride.
        """
        if height < 1 or width < 1 or height % self.stride or width % self.stride:
            raise LayoutError(
                f"a picture's sides must be positive multiples of the tokenizer's stride of {self.stride}, "
                f"given {height}x{width}: resize or crop it"
            )
        return height // self.stride, width // self.stride

    def check_pixels(self, pixel_values: torch.Tensor, channels: int = 3) -> None:
        """Refuses anything but `(batch, channels, height, width)`.

        Raises:
            LayoutError: another shape, or sides that are no multiples of the stride.
        """
        if pixel_values.dim() != 4 or pixel_values.shape[1] != channels or not pixel_values.is_floating_point():
            raise LayoutError(
                f"pixel_values must be floating point of shape (batch, {channels}, height, width), given "
                f"{pixel_values.dtype} of shape {tuple(pixel_values.shape)}"
            )
        self.latent_size(*pixel_values.shape[-2:])

    def enable_slicing(self) -> None:
        """Encodes and decodes the pictures of a batch one after the other: the memory of one picture for any batch.

        Raises:
            ConfigError: this tokenizer cannot.
        """
        raise ConfigError(f"{type(self).__name__} cannot encode and decode a batch in slices")

    def disable_slicing(self) -> None:
        """Encodes and decodes batches at once, as from the start."""

    def enable_tiling(self, size: int = 512, overlap: int = 128) -> None:
        """Encodes and decodes pictures larger than a tile piece by piece; see `unimm.tokenizers.tiling`.

        The result is near that of the whole picture, not equal to it.

        Args:
            size: side of a tile in pixels.
            overlap: pixels that neighbouring tiles share.

        Raises:
            ConfigError: tiles that do not fit the stride or each other, or a tokenizer that cannot.
        """
        raise ConfigError(f"{type(self).__name__} cannot encode and decode a picture in tiles")

    def disable_tiling(self) -> None:
        """Encodes and decodes pictures whole, as from the start."""

    def _check_size(self, size: tuple[int, int] | None, latent_size: tuple[int, ...]) -> None:
        own = tuple(side * self.stride for side in latent_size)
        if size is not None and tuple(size) != own:
            raise LayoutError(f"these tokens decode to {own[0]}x{own[1]} pixels, asked for {size[0]}x{size[1]}")


def sum_losses(losses: dict[str, torch.Tensor]) -> torch.Tensor:
    """The sum of named scalar terms."""
    return torch.stack([term.float() for term in losses.values()]).sum()


def grid_of(tokens: VisualTokens, tokenizer: Any) -> tuple[int, int]:
    """Rows and columns of tokens on a single grid.

    Raises:
        LayoutError: several levels, or another number of dimensions.
    """
    if tokens.layout.num_levels != 1 or tokens.layout.num_dimensions != 2:
        raise LayoutError(
            f"{type(tokenizer).__name__} decodes one grid (rows and columns), given tokens of {tokens.layout}"
        )
    height, width = tokens.layout.final
    return height, width
