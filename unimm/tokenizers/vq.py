"""The VQ tokenizer: a convolutional autoencoder around one codebook (VQGAN, LlamaGen, and their many
relatives).

https://huggingface.co/papers/2012.09841 and, with codes of unit length,
https://huggingface.co/papers/2406.06525.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from ..checks import described, require_ids
from ..errors import ConfigError, LayoutError
from ..tokens import TokenLayout, VisualTokens, check_ids
from .autoencoder import ConvolutionalTokenizer
from .base import TokenizerOutput, check_tokens, sum_losses
from .codebook import Codebook, CodebookTokenizerConfig, QuantizerOutput
from .quantizers import ResidualPyramidQuantizer, ResizeMode, VectorQuantizer, resize


class CodebookTokenizer(ConvolutionalTokenizer):
    """A convolutional autoencoder around a quantizer with one codebook; subclasses add the quantizer."""

    config: CodebookTokenizerConfig
    quantizer: VectorQuantizer | ResidualPyramidQuantizer

    @property
    def codebook_size(self) -> int:
        return self.config.codebook_size

    @property
    def codebook(self) -> torch.Tensor:
        """All codes, `(codebook_size, latent_channels)` fp32."""
        return self.quantizer.codebook.rows()

    def embed(self, ids: torch.Tensor) -> torch.Tensor:
        """Codes of ids: `(…)` integers to `(…, latent_channels)` fp32.

        On an accelerator the range is not checked, because this runs at every step of a drawing: `check_ids` does it.

        Raises:
            LayoutError: no tensor of integers.
            CodebookError: ids outside of the codebook.
        """
        ids = require_ids(ids, "ids", "(…)")
        try:
            return self.quantizer.codebook.lookup(ids)
        except IndexError:
            check_ids(ids, self.codebook_size)
            raise

    def one_id_per_token(self, tokens: VisualTokens) -> torch.Tensor:
        """The ids `(batch, length)` of tokens, once they have been checked against the codebook.

        Raises:
            LayoutError: several ids per token.
            CodebookError: ids outside of the codebook.
        """
        assert tokens.ids is not None
        if tokens.ids.dim() != 2:
            raise LayoutError(
                f"{type(self).__name__} has one codebook and one id per token, given ids of shape {tuple(tokens.ids.shape)}"
            )
        check_ids(tokens.ids, self.codebook_size)
        return tokens.ids

    @abstractmethod
    def quantize(self, features: torch.Tensor) -> QuantizerOutput:
        """Codes, ids and loss terms of `encode_features`' result; in training mode the statistics move."""

    def quantized_layout(self, height: int, width: int) -> TokenLayout:
        """The layout of the ids that `quantize` gives for a `height x width` picture."""
        return self.layout_for(height, width)

    def forward(self, pixel_values: torch.Tensor) -> TokenizerOutput:
        """Reconstruction and loss terms.

        Terms, weighted as the config says: `reconstruction`, `commitment`, `codebook` (not where moving
        averages leave it without a gradient), and `entropy` where its weight is not 0.

        Args:
            pixel_values: `(batch, channels, height, width)` in [-1, 1].
        """
        quantized = self.quantize(self.encode_features(pixel_values))
        reconstruction = self.decode_features(quantized.quantized)
        losses = {
            "reconstruction": self.reconstruction_loss(reconstruction, pixel_values),
            **quantized.losses,
        }
        return TokenizerOutput(
            loss=sum_losses(losses),
            reconstruction=reconstruction,
            losses=losses,
            codebook_usage=quantized.codebook_usage,
            tokens=VisualTokens(self.quantized_layout(*pixel_values.shape[-2:]), ids=quantized.ids),
        )

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, Codebook):
            module.init_own_weights()


class VQTokenizerConfig(CodebookTokenizerConfig):
    """A convolutional autoencoder with one code per latent position; the defaults are LlamaGen's VQ-16.

    Args:
        levels: a pyramid from coarse to fine, sides of squares or `(height, width)`, ending at the latent size. Every
            level holds the codes of the whole picture at its own size, not what coarser levels left over, and decodes
            on its own (https://huggingface.co/papers/2502.20313). None for one grid at the latent size.
        upsample_mode: how a level's codes come to the size of the next level, whose slots start from them.
        downsample_mode: how the latents come to a level's size; `area` is average pooling.

    Raises:
        ConfigError: levels that are no grids.
    """

    model_type = "unimm_vq_tokenizer"
    levels: list[Any] | tuple[Any, ...] | None = None
    upsample_mode: ResizeMode = "bicubic"
    downsample_mode: ResizeMode = "area"

    def __post_init__(self, **kwargs: object) -> None:
        super().__post_init__(**kwargs)
        if self.levels is None:
            return
        try:
            layout = TokenLayout.pyramid(self.levels)
        except LayoutError as error:
            raise ConfigError(f"levels must be sides or (height, width) pairs: {error}") from None
        if layout.num_dimensions != 2:
            raise ConfigError(f"levels must be grids of rows and columns, given {layout}")

    @property
    def abilities(self) -> tuple[str, ...]:
        """What a plan may need of a tokenizer; `whole_levels`: a level does not depend on which others there are."""
        return () if self.levels is None else ("whole_levels",)


class VQTokenizer(CodebookTokenizer):
    """Pictures to one grid of ids, or to one grid per level, and back. The last level of given tokens is decoded."""

    config: VQTokenizerConfig
    config_class = VQTokenizerConfig
    quantizer: VectorQuantizer
    takes_levels = True

    def __init__(self, config: VQTokenizerConfig):
        super().__init__(config)
        self.quantizer = VectorQuantizer(config)
        self.post_init()

    def layout_for(self, height: int, width: int, levels: Sequence[int | tuple[int, int]] | None = None) -> TokenLayout:
        """The layout of a picture's tokens.

        Args:
            height: pixels.
            width: pixels.
            levels: sides or `(height, width)` from coarse to fine, of any size; None for the config's, or for one grid at
                the latent size.

        Raises:
            LayoutError: a side is no multiple of the stride, the config's levels do not end at the latent size, or levels
                that are no grids.
        """
        size = self.latent_size(height, width)
        if levels is None and self.config.levels is None:
            return TokenLayout.grid(*size)
        layout = TokenLayout.pyramid(self.config.levels if levels is None else levels)  # type: ignore[arg-type]
        if layout.num_dimensions != 2:
            raise LayoutError(f"levels must be grids of rows and columns, given {layout}")
        if levels is None and layout.final != size:
            raise LayoutError(
                f"the tokenizer's levels {layout} do not end at {size[0]}x{size[1]}, the latent size of {height}x{width} "
                "pixels: give levels for this picture"
            )
        return layout

    def quantized_layout(self, height: int, width: int) -> TokenLayout:
        """Training quantizes the picture at the latent size alone."""
        return TokenLayout.grid(*self.latent_size(height, width))

    @torch.no_grad()
    def encode(
        self, pixel_values: torch.Tensor, *, levels: Sequence[int | tuple[int, int]] | None = None
    ) -> VisualTokens:
        """Tokens of pictures.

        Args:
            pixel_values: `(batch, channels, height, width)` in [-1, 1].
            levels: as in `layout_for`; every level is the latents resized to its size, and quantized.

        Raises:
            LayoutError: as in `layout_for`.
        """
        features = self.encode_features(pixel_values)
        height, width = pixel_values.shape[-2:]
        layout = self.layout_for(height, width, levels)
        maps = [resize(features.float(), size, self.config.downsample_mode) for size in layout.levels]
        return VisualTokens(layout, ids=torch.cat([self.quantizer.encode(one) for one in maps], dim=1))

    def quantize(self, features: torch.Tensor) -> QuantizerOutput:
        return self.quantizer(features)

    def decode(
        self,
        tokens: VisualTokens,
        *,
        size: tuple[int, int] | None = None,
        clamp: bool = True,
        generator: torch.Generator | None = None,
    ) -> torch.Tensor:
        """As `VisualTokenizer.decode`; of several levels the last one is decoded, `stride` pixels per token of its sides."""
        check_tokens(tokens, self)
        if tokens.layout.num_dimensions != 2:
            raise LayoutError(
                f"{type(self).__name__} decodes grids (rows and columns), given tokens of {tokens.layout}"
            )
        if tokens.layout.num_levels > 1 and self.config.levels is None:
            raise LayoutError(
                f"this {type(self).__name__} decodes one grid (rows and columns), given tokens of {tokens.layout}"
            )
        height, width = tokens.layout.final
        self._check_size(size, (height, width))
        if tokens.ids is None:
            codes = tokens.level(tokens.layout.num_levels - 1)
            if codes.shape[-1] != self.latent_channels:
                raise LayoutError(
                    f"this tokenizer's latents have {self.latent_channels} channels, given {described(codes)}"
                )
        else:
            ids = self.one_id_per_token(tokens)
            codes = self.embed(ids[:, tokens.layout.level_slice(tokens.layout.num_levels - 1)])
        return self.decode_features(codes.transpose(1, 2).unflatten(-1, (height, width)), clamp=clamp)

    def teacher_inputs(self, tokens: VisualTokens) -> torch.Tensor:
        """What the slots of all levels but the first start from, `(batch, length - first level, channels)`.

        The codes of the level before, resized to each level.

        Args:
            tokens: ids of several levels.

        Raises:
            LayoutError: no tokens, latents, or several ids per token.
            CodebookError: ids outside of the codebook (`embed` says where that is checked).
        """
        check_tokens(tokens, self)
        if tokens.ids is None:
            raise LayoutError("the slots of a pyramid start from ids, given latents")
        layout, canvas = tokens.layout, None
        starts = [self.codebook.new_zeros(tokens.batch_size, 0, self.latent_channels)]
        for level in range(layout.num_levels - 1):
            canvas = self.accumulate(canvas, self.embed(tokens.level(level)), level, layout)
            starts.append(self.resize_canvas(canvas, layout.levels[level + 1]))
        return torch.cat(starts, dim=1)

    def initial_canvas(
        self, batch_size: int, layout: TokenLayout, device: torch.device | str, dtype: torch.dtype = torch.float32
    ) -> torch.Tensor:
        """An empty canvas, `(batch, channels, h, w)` at the size of the first level."""
        return torch.zeros(batch_size, self.latent_channels, *layout.levels[0], device=device, dtype=dtype)

    def accumulate(
        self, canvas: torch.Tensor | None, codes: torch.Tensor, level: int, layout: TokenLayout
    ) -> torch.Tensor:
        """The canvas after a level's codes are placed: these codes alone, as every level holds the whole picture.

        Args:
            canvas: what it was before, `(batch, channels, h, w)` at the size of any level.
            codes: `(batch, tokens of the level, channels)`.
            level: index of the level.
            layout: the whole pyramid.

        Returns:
            `(batch, channels, h, w)` at the size of the level.
        """
        return codes.float().transpose(1, 2).unflatten(-1, layout.levels[level])

    def contribution(self, codes: torch.Tensor, level: int, layout: TokenLayout) -> torch.Tensor:
        """What a level's codes `(batch, tokens, channels)` make of the canvas, `(batch, channels, h, w)`."""
        return self.accumulate(None, codes, level, layout)

    def resize_canvas(self, canvas: torch.Tensor, size: Sequence[int]) -> torch.Tensor:
        """The canvas `(batch, channels, H, W)` at a level's size `(h, w)`: `(batch, h * w, channels)`."""
        return resize(canvas.float(), size, self.config.upsample_mode).flatten(2).transpose(1, 2)

    def decode_canvas(self, canvas: torch.Tensor, clamp: bool = True) -> torch.Tensor:
        """Pictures of a canvas `(batch, channels, h, w)`, `stride` times its size."""
        return self.decode_features(canvas, clamp=clamp)
