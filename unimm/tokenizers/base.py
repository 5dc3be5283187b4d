"""The contract of a visual tokenizer: pixels in, visual tokens out, and back."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from numbers import Integral
from typing import Any

import torch
from transformers import PreTrainedModel
from transformers.utils import ModelOutput

from ..checks import described
from ..errors import ConfigError, ImageError, LayoutError
from ..hub.mixins import HubModelMixin
from ..tokens import TokenKind, TokenLayout, VisualTokens

#: Resampling and noise leave [-1, 1] by a little, pixels that were never scaled by a lot.
_FARTHEST_PIXEL = 16.0


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
    #: Whether `encode` and `layout_for` take another list of levels than the config's, as `levels`.
    takes_levels = False

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
            LayoutError: no pictures of that shape, or a height or width that is no multiple of the stride.
            ImageError: values that are not finite, or far from [-1, 1].
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
        if not isinstance(height, Integral | torch.SymInt) or not isinstance(width, Integral | torch.SymInt):
            raise LayoutError(f"height and width are whole numbers of pixels, given {height!r} and {width!r}")
        if height < 1 or width < 1 or height % self.stride or width % self.stride:
            raise LayoutError(
                f"a picture's sides must be positive multiples of the tokenizer's stride of {self.stride}, "
                f"given {height}x{width}: resize or crop it"
            )
        return height // self.stride, width // self.stride

    def check_pixels(self, pixel_values: torch.Tensor, channels: int = 3) -> None:
        """Refuses anything but `(batch, channels, height, width)` with at least one picture.

        The range is looked at where that waits for no device: on the CPU.

        Raises:
            LayoutError: another kind or shape, or sides that are no multiples of the stride.
            ImageError: values that are not finite, or far from [-1, 1].
        """
        if (
            not isinstance(pixel_values, torch.Tensor)
            or pixel_values.dim() != 4
            or pixel_values.shape[1] != channels
            or not pixel_values.is_floating_point()
        ):
            raise LayoutError(
                f"pixel_values must be floating point of shape (batch, {channels}, height, width), given "
                f"{described(pixel_values)}"
            )
        self.latent_size(*pixel_values.shape[-2:])
        if len(pixel_values) == 0:
            raise LayoutError(f"pixel_values hold no picture: their shape is {tuple(pixel_values.shape)}")
        if pixel_values.device.type == "cpu" and not torch.compiler.is_compiling():
            low, high = (float(value) for value in torch.aminmax(pixel_values.detach()))
            if not -_FARTHEST_PIXEL <= low <= high <= _FARTHEST_PIXEL:
                raise ImageError(
                    f"pixel_values lie in [-1, 1], found values from {low:g} to {high:g}: scale 8-bit pixels with "
                    "pixels / 127.5 - 1, and leave out pictures that are not finite"
                )

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
        if size is None:
            return
        height, width = as_size(size)
        own = tuple(side * self.stride for side in latent_size)
        if (height, width) != own:
            raise LayoutError(f"these tokens decode to {own[0]}x{own[1]} pixels, asked for {height}x{width}")


def as_size(size: Any) -> tuple[int, int]:
    """Height and width in pixels.

    Raises:
        LayoutError: something else than two whole numbers.
    """
    if not isinstance(size, list | tuple) or len(size) != 2 or not all(isinstance(side, Integral) for side in size):
        raise LayoutError(f"a size is (height, width) in whole pixels, given {size!r}")
    height, width = size
    return height, width


def check_tokens(tokens: Any, tokenizer: Any) -> None:
    """Refuses everything but `VisualTokens`.

    Raises:
        LayoutError: with what was given.
    """
    if not isinstance(tokens, VisualTokens):
        raise LayoutError(
            f"{type(tokenizer).__name__} decodes VisualTokens, given {described(tokens)}: ids become tokens with "
            "VisualTokens(tokenizer.layout_for(height, width), ids=ids)"
        )


def sum_losses(losses: dict[str, torch.Tensor]) -> torch.Tensor:
    """The sum of named scalar terms."""
    return torch.stack([term.float() for term in losses.values()]).sum()


def grid_of(tokens: VisualTokens, tokenizer: Any) -> tuple[int, int]:
    """Rows and columns of tokens on a single grid.

    Raises:
        LayoutError: no visual tokens, several levels, or another number of dimensions.
    """
    check_tokens(tokens, tokenizer)
    if tokens.layout.num_levels != 1 or tokens.layout.num_dimensions != 2:
        raise LayoutError(
            f"{type(tokenizer).__name__} decodes one grid (rows and columns), given tokens of {tokens.layout}"
        )
    height, width = tokens.layout.final
    return height, width
