"""The bitwise multi-scale tokenizer: a pyramid of tokens that are bits, with no codebook.

https://huggingface.co/papers/2412.04431. A token of d bits has 2^d values, and neither encoding nor decoding ever lists
them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from ..checks import require_ids
from ..errors import ConfigError, LayoutError
from ..tokens import TokenKind, TokenLayout, VisualTokens
from .autoencoder import ConvolutionalTokenizerConfig
from .base import TokenizerOutput, sum_losses
from .binary import BinaryPyramidQuantizer, bit_entropies, bits_of
from .codebook import QuantizerOutput
from .multiscale_vq import PyramidTokenizer, pyramid_of
from .quantizers import ResizeMode

if TYPE_CHECKING:
    from ..generation.randomness import Randomness


class BitwisePyramidTokenizerConfig(ConvolutionalTokenizerConfig):
    """A convolutional autoencoder with a residual pyramid of bits; the defaults are Infinity's with 32 bits.

    Args:
        levels: the pyramid of tokens from coarse to fine, sides of squares or `(height, width)`.
        patch_side: a token holds the bits of so many vectors along each side; 1 for one vector per token.
        upsample_mode: how a level's codes come to the finest size.
        downsample_mode: how what is left comes to a level's size when it is quantized.
        canvas_mode: how the running sum comes to the size of the level that starts from it.
        commitment_weight: weight of `mean((u - sg(code))^2)` over unit vectors.
        entropy_weight: weight of the entropy penalty, see `binary.bit_entropies`; 0 leaves it out.
        entropy_sharpness: inverse temperature of its probabilities.

    Raises:
        ConfigError: a pyramid that does not grow, or values out of range.
    """

    model_type = "unimm_bitwise_pyramid_tokenizer"
    channel_multipliers: list[int] | tuple[int, ...] = (1, 2, 4, 4, 4)
    encoder_channels: int = 32
    code_channels: int = 32
    quantization_kernel_size: int = 0
    attention: bool = False
    levels: list[Any] | tuple[Any, ...] = (1, 2, 4, 6, 8, 12, 16)
    patch_side: int = 1
    upsample_mode: ResizeMode = "bilinear"
    downsample_mode: ResizeMode = "area"
    canvas_mode: ResizeMode = "bilinear"
    commitment_weight: float | int = 0.25
    entropy_weight: float | int = 0.1
    entropy_sharpness: float | int = 100.0

    def __post_init__(self, **kwargs: object) -> None:
        super().__post_init__(**kwargs)
        pyramid_of(self.levels)
        if self.patch_side < 1 or self.entropy_sharpness <= 0:
            raise ConfigError(
                "patch_side must be at least 1 and entropy_sharpness above 0, given "
                f"{self.patch_side} and {self.entropy_sharpness}"
            )

    @property
    def abilities(self) -> tuple[str, ...]:
        """What a plan may need of a tokenizer; `self_correction`: bits can be flipped before later levels are quantized."""
        return ("self_correction",)

    @property
    def layout(self) -> TokenLayout:
        """The pyramid of a picture of the usual size."""
        return TokenLayout.pyramid(self.levels)

    @property
    def stride(self) -> int:
        """Pixels per token along each side."""
        return super().stride * self.patch_side


class BitwisePyramidTokenizer(PyramidTokenizer):
    """Pictures to a pyramid of bits and back; the first levels alone decode to a coarse picture."""

    config: BitwisePyramidTokenizerConfig
    config_class = BitwisePyramidTokenizerConfig
    quantizer: BinaryPyramidQuantizer

    def __init__(self, config: BitwisePyramidTokenizerConfig):
        super().__init__(config)
        self.quantizer = BinaryPyramidQuantizer(config)
        self.post_init()

    @property
    def codebook_size(self) -> int:
        return 2

    @property
    def latent_channels(self) -> int:
        """Bits of a token, which are also the entries of its code."""
        return self.config.code_channels * self.config.patch_side**2

    @property
    def token_kind(self) -> TokenKind:
        return TokenKind(self.latent_channels, 2, self.latent_channels)

    def embed(self, ids: torch.Tensor) -> torch.Tensor:
        """Codes of bits: `(…, bits)` to entries of the same shape, fp32; every vector of a token has unit length.

        Raises:
            LayoutError: no tensor of integers, or another number of bits.
        """
        ids = require_ids(ids, "bits", f"(…, {self.latent_channels})")
        if ids.dim() == 0 or ids.shape[-1] != self.latent_channels:
            raise LayoutError(f"a token has {self.latent_channels} bits, given a tensor of shape {tuple(ids.shape)}")
        return self.quantizer.lookup(ids)

    def quantize(self, features: torch.Tensor, layout: TokenLayout | None = None) -> QuantizerOutput:
        """The sum of all levels, bits and loss terms of `encode_features`' result.

        Args:
            features: `(batch, code_channels, h, w)`.
            layout: a pyramid that ends there; None for the config's.

        Raises:
            LayoutError: the pyramid does not end at the map's size.
        """
        return self.quantizer(features, self.config.layout if layout is None else layout)

    def forward(self, pixel_values: torch.Tensor) -> TokenizerOutput:
        """Reconstruction and loss terms: `reconstruction`, `commitment`, and `entropy` where its weight is not 0.

        Args:
            pixel_values: `(batch, channels, height, width)` in [-1, 1].
        """
        layout = self.layout_for(*pixel_values.shape[-2:])
        quantized = self.quantize(self.encode_features(pixel_values), layout)
        reconstruction = self.decode_features(quantized.quantized)
        losses = {"reconstruction": self.reconstruction_loss(reconstruction, pixel_values), **quantized.losses}
        return TokenizerOutput(
            loss=sum_losses(losses),
            reconstruction=reconstruction,
            losses=losses,
            codebook_usage=quantized.codebook_usage,
            tokens=VisualTokens(layout, ids=quantized.ids),
        )

    def entropies(self, vectors: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Entropy of the bits of unit vectors `(number, channels)`: see `binary.bit_entropies`."""
        return bit_entropies(vectors, float(self.config.entropy_sharpness))

    @torch.no_grad()
    def self_corrected(
        self,
        features: torch.Tensor,
        layout: TokenLayout,
        randomness: Randomness,
        *,
        strength: float,
        num_levels: int | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Bits to predict and what to predict them from, where earlier levels hold mistakes to repair.

        Level by level: the bits of what is left are the target; some of them are flipped before their code joins the sum,
        so that later targets speak of the corrupted sum (bitwise self-correction,
        https://huggingface.co/papers/2412.04431, section 3.3). A level's probability of a flip is drawn from whole
        percents `0 … 100 strength`, for every sample.

        Args:
            features: `(batch, code_channels, h, w)`, what `encode_features` gives.
            layout: a pyramid that ends there.
            randomness: draws `flip_strength` `(batch,)` and `flip` `(batch, rows, columns, channels)` per level.
            strength: the largest probability of a flip.
            num_levels: only the first so many levels are corrupted; None for all.

        Returns:
            Bits `(batch, length, bits)`, and the running sum resized to every level but the first,
            `(batch, length - first level, bits)`.

        Raises:
            LayoutError: the pyramid does not end at the map's size.
        """
        quantizer, side = self.quantizer, self.config.patch_side
        quantizer.check(features, layout)
        canvas = quantizer.initial_canvas(len(features), layout, features.device)
        targets, inputs = [], []
        for level, size in enumerate(layout.levels):
            if level:
                inputs.append(quantizer.resize_canvas(canvas, size))
            bits = bits_of(quantizer.rest(features, canvas, level, layout))
            targets.append(bits)
            if num_levels is None or level < num_levels:
                percent = randomness.uniform((len(bits),), "flip_strength", bits.device) * (round(100 * strength) + 1)
                shape = (len(bits), *quantizer.grid_size(size), self.config.code_channels)
                uniform = randomness.uniform(shape, "flip", bits.device).permute(0, 3, 1, 2)
                uniform = torch.nn.functional.pixel_unshuffle(uniform, side).flatten(2).transpose(1, 2)
                bits = bits ^ (uniform < (percent.floor() / 100)[:, None, None]).long()
            canvas = quantizer.accumulate(canvas, quantizer.lookup(bits), level, layout)
        empty = features.new_zeros(len(features), 0, self.latent_channels, dtype=torch.float32)
        return torch.cat(targets, dim=1), torch.cat([empty, *inputs], dim=1)

    def _checked_ids(self, tokens: VisualTokens) -> torch.Tensor:
        assert tokens.ids is not None
        self.token_kind.check(tokens.ids, "the bits of tokens")
        return tokens.ids
