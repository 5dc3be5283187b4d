"""The multi-scale VQ tokenizer: a pyramid of codes, each level quantizing what the coarser ones left over.

https://huggingface.co/papers/2404.02905. Its accumulator (codes of a level, brought to the finest size,
refined, added to a canvas; the canvas resized to the next level) is what next-scale generators start their
slots from.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

import torch

from ..checks import described
from ..errors import ConfigError, LayoutError
from ..tokens import TokenLayout, VisualTokens
from .autoencoder import ConvolutionalTokenizer
from .base import as_size, check_tokens
from .codebook import CodebookTokenizerConfig, QuantizerOutput
from .quantizers import ResidualPyramidQuantizer, ResizeMode
from .vq import CodebookTokenizer


def pyramid_of(levels: Sequence[Any]) -> TokenLayout:
    """The pyramid that a config's levels speak of.

    Raises:
        ConfigError: no levels, or levels that do not grow.
    """
    try:
        layout = TokenLayout.pyramid(levels)
    except (LayoutError, TypeError) as error:
        raise ConfigError(f"levels must be sides or (height, width) pairs: {error}") from None
    if layout.num_dimensions != 2 or any(
        later < earlier
        for coarse, fine in zip(layout.levels, layout.levels[1:], strict=False)
        for earlier, later in zip(coarse, fine, strict=True)
    ):
        raise ConfigError(f"levels must be grids that grow from coarse to fine, given {layout}")
    return layout


class MultiScaleVQTokenizerConfig(CodebookTokenizerConfig):
    """A convolutional autoencoder with a residual pyramid of codes; the defaults are VAR's.

    Args:
        levels: the pyramid from coarse to fine, sides of squares or `(height, width)`, ending at the latent
            size.
        num_refinements: convolutions that refine the upsampled codes, shared by the levels; None for one per
            level, 0 for no refinement.
        refinement_kernel_size: side of these convolutions.
        refinement_ratio: share of the convolution in the refined map.
        upsample_mode: how a level's codes come to the finest size.
        downsample_mode: how a map comes to a level's size; `area` is average pooling.

    Raises:
        ConfigError: a pyramid that does not grow, or options that do not fit.
    """

    model_type = "unimm_multiscale_vq_tokenizer"
    base_channels: int = 160
    encoder_channels: int = 32
    code_channels: int = 32
    quantization_kernel_size: int = 3
    fused_attention_projection: bool = True
    codebook_size: int = 4096
    unit_codes: bool = False
    usage_window: int = 0
    levels: list[Any] | tuple[Any, ...] = (1, 2, 3, 4, 5, 6, 8, 10, 13, 16)
    num_refinements: int | None = 4
    refinement_kernel_size: int = 3
    refinement_ratio: float | int = 0.5
    upsample_mode: ResizeMode = "bicubic"
    downsample_mode: ResizeMode = "area"

    def __post_init__(self, **kwargs: object) -> None:
        super().__post_init__(**kwargs)
        if self.unit_codes:
            raise ConfigError("residuals have no fixed length: unit_codes does not fit a multi-scale tokenizer")
        if self.refinement_kernel_size % 2 == 0 or (self.num_refinements or 0) < 0:
            raise ConfigError(
                "refinement_kernel_size must be odd and num_refinements at least 0, given "
                f"{self.refinement_kernel_size} and {self.num_refinements}"
            )
        pyramid_of(self.levels)

    @property
    def layout(self) -> TokenLayout:
        """The pyramid of a picture of the usual size."""
        return TokenLayout.pyramid(self.levels)


class PyramidTokenizer(ConvolutionalTokenizer):
    """The part of a multi-scale tokenizer that does not ask what one token is; subclasses add the `quantizer`."""

    config: Any
    quantizer: Any
    takes_levels = True

    def layout_for(self, height: int, width: int, levels: Sequence[int | tuple[int, int]] | None = None) -> TokenLayout:
        """The pyramid of a picture's tokens.

        Args:
            height: pixels.
            width: pixels.
            levels: from coarse to fine, ending at the picture's latent size; None for the config's.

        Raises:
            LayoutError: a side is no multiple of the stride, or the pyramid does not end at the latent size.
        """
        final = self.latent_size(height, width)
        layout = self.config.layout if levels is None else TokenLayout.pyramid(levels)
        if layout.final != final:
            own = "the tokenizer's levels" if levels is None else "the given levels"
            raise LayoutError(
                f"{own} {layout} do not end at {final[0]}x{final[1]}, the latent size of {height}x{width} "
                "pixels: give levels that do"
            )
        return layout

    @torch.no_grad()
    def encode(
        self, pixel_values: torch.Tensor, *, levels: Sequence[int | tuple[int, int]] | None = None
    ) -> VisualTokens:
        """Tokens of pictures.

        Args:
            pixel_values: `(batch, channels, height, width)` in [-1, 1].
            levels: as in `layout_for`.

        Raises:
            LayoutError: as in `layout_for`.
        """
        self.check_pixels(pixel_values, self.config.image_channels)
        height, width = pixel_values.shape[-2:]
        layout = self.layout_for(height, width, levels)
        return self.quantized_tokens(self.encode_features(pixel_values), layout)

    @torch.no_grad()
    def quantized_tokens(self, features: torch.Tensor, layout: TokenLayout) -> VisualTokens:
        """Tokens of `encode_features`' result.

        Raises:
            LayoutError: the pyramid does not end at the map's size.
        """
        return VisualTokens(layout, ids=self.quantizer.encode(features, layout))

    def decode(
        self,
        tokens: VisualTokens,
        *,
        size: tuple[int, int] | None = None,
        clamp: bool = True,
        generator: torch.Generator | None = None,
        layout: TokenLayout | None = None,
    ) -> torch.Tensor:
        """Pictures of all levels or of the first ones, `(batch, channels, height, width)`, nominally in [-1,
        1].

        Args:
            tokens: ids of a whole pyramid or of its first levels.
            size: `(height, width)` in pixels.
            clamp: clip to [-1, 1].
            generator: not drawn from.
            layout: the whole pyramid, where the tokens are the first levels of another one than the config's.

        Raises:
            LayoutError: the tokens are no first levels of the pyramid, or the size is not the pyramid's.
            CodebookError: ids outside of the codebook.
        """
        return self.decode_canvas(self.running_reconstruction(tokens, size=size, layout=layout), clamp=clamp)

    def running_reconstruction(
        self, tokens: VisualTokens, *, size: tuple[int, int] | None = None, layout: TokenLayout | None = None
    ) -> torch.Tensor:
        """The canvas `(batch, channels, h, w)` after the tokens' levels.

        Args:
            tokens: ids of a whole pyramid or of its first levels.
            size: as in `decode`.
            layout: as in `decode`.

        Raises:
            LayoutError: as in `decode`.
            CodebookError: ids outside of the codebook.
        """
        check_tokens(tokens, self)
        if tokens.layout.num_dimensions != 2:
            raise LayoutError(f"a multi-scale tokenizer decodes grids (rows and columns), given {tokens.layout}")
        if tokens.ids is None:
            raise LayoutError(
                "a multi-scale tokenizer decodes ids, given latents: decode_canvas takes a finished canvas"
            )
        ids = self._checked_ids(tokens)
        layout = self._whole_layout(tokens, size, layout)
        *_, canvas = self.quantizer.running(ids, layout, tokens.layout.num_levels)
        return canvas

    def teacher_inputs(self, tokens: VisualTokens) -> torch.Tensor:
        """What the slots of all levels but the first start from, `(batch, length - first level, channels)`.

        The canvas after the levels before, resized to each level.

        Args:
            tokens: ids of a whole pyramid.

        Raises:
            LayoutError: no tokens, or latents.
            CodebookError: ids outside of the codebook (`embed` says where that is checked).
        """
        check_tokens(tokens, self)
        if tokens.ids is None:
            raise LayoutError("the slots of a pyramid start from ids, given latents")
        layout = tokens.layout
        try:
            canvases = self.quantizer.running(tokens.ids, layout, layout.num_levels - 1)
            resized = [self.resize_canvas(canvas, layout.levels[level + 1]) for level, canvas in enumerate(canvases)]
        except IndexError:
            self._checked_ids(tokens)
            raise
        return (
            torch.cat(resized, dim=1)
            if resized
            else torch.zeros(tokens.batch_size, 0, self.latent_channels, device=tokens.device)
        )

    def initial_canvas(
        self,
        batch_size: int,
        layout: TokenLayout,
        device: torch.device | str,
        dtype: torch.dtype = torch.float32,
    ) -> torch.Tensor:
        """An empty canvas, `(batch, channels, h, w)` at the size of the last level."""
        return self.quantizer.initial_canvas(batch_size, layout, device).to(dtype)

    def accumulate(self, canvas: torch.Tensor, codes: torch.Tensor, level: int, layout: TokenLayout) -> torch.Tensor:
        """The canvas after a level's codes are placed.

        Args:
            canvas: `(batch, channels, h, w)`.
            codes: `(batch, tokens of the level, channels)`.
            level: index of the level.
            layout: the whole pyramid.
        """
        return self.quantizer.accumulate(canvas, codes, level, layout)

    def contribution(self, codes: torch.Tensor, level: int, layout: TokenLayout) -> torch.Tensor:
        """What a level's codes `(batch, tokens, channels)` add to the canvas, `(batch, channels, h, w)`."""
        return self.quantizer.contribution(codes, level, layout)

    def resize_canvas(self, canvas: torch.Tensor, size: Sequence[int]) -> torch.Tensor:
        """The canvas `(batch, channels, H, W)` at a level's size `(h, w)`: `(batch, h * w, channels)`."""
        return self.quantizer.resize_canvas(canvas, size)

    def decode_canvas(self, canvas: torch.Tensor, clamp: bool = True) -> torch.Tensor:
        """Pictures of a canvas `(batch, channels, h, w)`.

        Raises:
            LayoutError: another shape.
        """
        channels = self.config.code_channels
        if not isinstance(canvas, torch.Tensor) or canvas.dim() != 4 or canvas.shape[1] != channels:
            raise LayoutError(f"a canvas must be (batch, {channels}, rows, columns), given {described(canvas)}")
        return self.decode_features(canvas, clamp=clamp)

    @abstractmethod
    def _checked_ids(self, tokens: VisualTokens) -> torch.Tensor:
        """The tokens' ids, once they have been checked against what the quantizer knows."""

    def _whole_layout(
        self, tokens: VisualTokens, size: tuple[int, int] | None, layout: TokenLayout | None
    ) -> TokenLayout:
        """The pyramid that the tokens are the first levels of: the given one, the config's, or their own."""
        given, own = tokens.layout, self.config.layout
        size = None if size is None else as_size(size)
        if not isinstance(layout, TokenLayout | None):
            raise LayoutError(f"layout must be a TokenLayout, given {layout!r}")
        if layout is None:
            layout = own if own.levels[: given.num_levels] == given.levels else given
            if size is not None and given.final == self.latent_size(*size):
                layout = given
        if layout.levels[: given.num_levels] != given.levels:
            raise LayoutError(f"tokens of {given} are no first levels of the pyramid {layout}")
        if size is not None and layout.final != self.latent_size(*size):
            raise LayoutError(
                f"the pyramid {layout} does not end at the latent size of {size[0]}x{size[1]} pixels: give "
                "the whole pyramid as layout"
            )
        return layout


class MultiScaleVQTokenizer(PyramidTokenizer, CodebookTokenizer):
    """Pictures to a pyramid of ids and back; the first levels alone decode to a coarse picture."""

    config: MultiScaleVQTokenizerConfig
    config_class = MultiScaleVQTokenizerConfig
    quantizer: ResidualPyramidQuantizer

    def __init__(self, config: MultiScaleVQTokenizerConfig):
        super().__init__(config)
        number = config.num_refinements
        self.quantizer = ResidualPyramidQuantizer(
            config,
            num_refinements=len(config.levels) if number is None else number,
            refinement_kernel_size=config.refinement_kernel_size,
            refinement_ratio=float(config.refinement_ratio),
            upsample_mode=config.upsample_mode,
            downsample_mode=config.downsample_mode,
        )
        self.post_init()

    def quantize(self, features: torch.Tensor, layout: TokenLayout | None = None) -> QuantizerOutput:
        """The sum of all levels, ids and loss terms of `encode_features`' result.

        Updates the codebook's statistics in training mode.

        Args:
            features: `(batch, code_channels, h, w)`.
            layout: a pyramid that ends at `h x w`; None for the config's.

        Raises:
            LayoutError: the pyramid does not end at the map's size.
        """
        return self.quantizer(features, self.config.layout if layout is None else layout)

    def _checked_ids(self, tokens: VisualTokens) -> torch.Tensor:
        return self.one_id_per_token(tokens)
