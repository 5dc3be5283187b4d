"""The convolutional encoder and decoder of the latent-diffusion family
(https://huggingface.co/papers/2112.10752).

Both keep their levels in the order in which they run: the encoder's from the picture's resolution down, the
decoder's from the lowest resolution up.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import nn
from transformers import initialization as init
from transformers.modeling_layers import GradientCheckpointingLayer

from ..configuration import UniMMConfig
from ..errors import ConfigError
from .base import VisualTokenizer
from .tiling import TileGroupNorm, Tiling, run_sliced, run_tiled, tile_norms


class ConvolutionalTokenizerConfig(UniMMConfig):
    """What all tokenizers with a convolutional encoder and decoder share.

    Args:
        image_channels: channels of a picture.
        base_channels: width of the first convolution; a level has `base_channels * multiplier` channels.
        channel_multipliers: one per resolution level of the encoder, from the picture's resolution down.
            Every level but the last halves the sides, so the stride is `2 ** (levels - 1)`.
        decoder_channel_multipliers: the same for the decoder, also from the picture's resolution down; None
            repeats the encoder's.
        num_residual_blocks: per encoder level.
        num_decoder_residual_blocks: per decoder level; None for one more than in the encoder.
        encoder_channels: width of the encoder's output and of the decoder's input.
        code_channels: width of a token's latent vector.
        patches: disjoint squares of `stride` pixels in place of the levels, on both sides, so that a token depends on its
            own square alone and its code is a small picture; the decoder then mends the seams by residual blocks at
            `base_channels`. The same thing gives the same tokens whatever surrounds it, which makes them easy to predict.
        quantization_kernel_size: side of the convolutions between `encoder_channels` and `code_channels`; 0
            leaves them out, where both are equal.
        num_norm_groups: groups of every group norm; it must divide the channels of every level.
        norm_eps: epsilon of every group norm.
        dropout: in the residual blocks.
        attention: single-head attention after each residual block of the lowest resolution, and in the
            middle.
        fused_attention_projection: one convolution for queries, keys and values instead of three.
        squared_error_weight: weight of the mean squared reconstruction error.
        absolute_error_weight: weight of the mean absolute reconstruction error.

    Raises:
        ConfigError: parts that do not fit.
    """

    image_channels: int = 3
    base_channels: int = 128
    channel_multipliers: list[int] | tuple[int, ...] = (1, 1, 2, 2, 4)
    decoder_channel_multipliers: list[int] | tuple[int, ...] | None = None
    num_residual_blocks: int = 2
    num_decoder_residual_blocks: int | None = None
    encoder_channels: int = 256
    code_channels: int = 8
    patches: bool = False
    quantization_kernel_size: int = 1
    num_norm_groups: int = 32
    norm_eps: float = 1e-6
    dropout: float | int = 0.0
    attention: bool = True
    fused_attention_projection: bool = False
    squared_error_weight: float | int = 1.0
    absolute_error_weight: float | int = 0.0

    def __post_init__(self, **kwargs: object) -> None:
        super().__post_init__(**kwargs)
        for name in ("image_channels", "base_channels", "encoder_channels", "code_channels", "num_norm_groups"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be at least 1, given {getattr(self, name)}")
        multipliers = self.channel_multipliers, self.decoding_multipliers
        if not multipliers[0] or len(multipliers[0]) != len(multipliers[1]):
            raise ConfigError(
                "encoder and decoder need the same positive number of levels, given multipliers "
                f"{multipliers[0]} and {multipliers[1]}"
            )
        widths = [self.base_channels * multiplier for multiplier in sorted({1, *multipliers[0], *multipliers[1]})]
        if any(width < 1 or width % self.num_norm_groups for width in widths):
            raise ConfigError(
                f"num_norm_groups={self.num_norm_groups} does not divide all widths {widths}: choose a "
                f"divisor of {math.gcd(*widths)}"
            )
        if self.num_residual_blocks < 1 or (self.num_decoder_residual_blocks or 1) < 1:
            raise ConfigError(
                "num_residual_blocks and num_decoder_residual_blocks must be positive, given "
                f"{self.num_residual_blocks} and {self.num_decoder_residual_blocks}"
            )
        if self.patches and (self.quantization_kernel_size != 1 or len(set(self.decoding_multipliers)) > 1):
            raise ConfigError(
                "patches have one width and see nothing of their neighbours: set quantization_kernel_size to 1 and all "
                f"channel_multipliers to the same number, given {self.quantization_kernel_size} and {multipliers}"
            )
        if self.quantization_kernel_size == 0:
            if self.encoder_channels != self.code_channels:
                raise ConfigError(
                    "without convolutions around the quantizer encoder_channels and code_channels must be equal, given "
                    f"{self.encoder_channels} and {self.code_channels}"
                )
        elif self.quantization_kernel_size % 2 == 0:
            raise ConfigError(f"quantization_kernel_size must be odd or 0, given {self.quantization_kernel_size}")

    @property
    def decoding_multipliers(self) -> list[int] | tuple[int, ...]:
        """The decoder's multipliers, from the picture's resolution down."""
        own = self.decoder_channel_multipliers
        return self.channel_multipliers if own is None else own

    @property
    def stride(self) -> int:
        """Pixels per token along each side."""
        return 2 ** (len(self.channel_multipliers) - 1)


class ConvolutionalTokenizer(VisualTokenizer):
    """Encoder, decoder and the two convolutions around a quantizer, which subclasses add as `quantizer`."""

    config: ConvolutionalTokenizerConfig
    _no_split_modules = ["ResidualBlock", "SpatialAttention"]
    # Ids must not depend on the precision that the convolutions happen to run in.
    _keep_in_fp32_modules_strict = ["quantizer"]

    def __init__(self, config: ConvolutionalTokenizerConfig):
        super().__init__(config)
        self.is_sliced = False
        self.tiling: Tiling | None = None
        outer, inner, kernel = config.encoder_channels, config.code_channels, config.quantization_kernel_size
        self.encoder = PatchEncoder(config) if config.patches else ConvolutionalEncoder(config)
        convolution = IdentityConv2d if config.patches else nn.Conv2d
        self.quant_conv = convolution(outer, inner, kernel, padding=kernel // 2) if kernel else nn.Identity()
        self.post_quant_conv = convolution(inner, outer, kernel, padding=kernel // 2) if kernel else nn.Identity()
        self.decoder = PatchDecoder(config) if config.patches else ConvolutionalDecoder(config)

    @property
    def latent_channels(self) -> int:
        return self.config.code_channels

    @property
    def stride(self) -> int:
        return self.config.stride

    def encode_features(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """What the quantizer gets: pixels `(batch, channels, height, width)` to `(batch, code_channels, h,
        w)`.

        Raises:
            LayoutError: a side is no multiple of the stride.
        """
        self.check_pixels(pixel_values, self.config.image_channels)
        pixel_values = pixel_values.to(next(self.encoder.parameters()).dtype)
        return self._run(lambda pixels: self.quant_conv(self.encoder(pixels, self.tiling)), pixel_values)

    def decode_features(self, features: torch.Tensor, *, clamp: bool = False) -> torch.Tensor:
        """Pixels of quantized features `(batch, code_channels, h, w)`."""
        features = features.to(next(self.decoder.parameters()).dtype)
        pixels = self._run(lambda latents: self.decoder(self.post_quant_conv(latents), self.tiling), features)
        return pixels.clamp(-1, 1) if clamp else pixels

    def enable_slicing(self) -> None:
        self.is_sliced = True

    def disable_slicing(self) -> None:
        self.is_sliced = False

    def enable_tiling(self, size: int = 512, overlap: int = 128, exact: bool = False) -> None:
        """Tiles for all but the lowest resolution, which is small and has the attention: that runs whole.

        Args:
            size: side of a tile in pixels.
            overlap: pixels that neighbouring tiles share.
            exact: give the group norms the statistics of the whole picture, which takes many times as long.
        """
        tiling = Tiling(size, overlap, blend=overlap // 2 if isinstance(overlap, int) else overlap, exact=exact)
        tiling.check(self.stride)
        self.tiling = tiling

    def disable_tiling(self) -> None:
        self.tiling = None

    def _run(self, function: Callable[[torch.Tensor], torch.Tensor], batch: torch.Tensor) -> torch.Tensor:
        return run_sliced(function, batch) if self.is_sliced else function(batch)

    def reconstruction_loss(self, reconstruction: torch.Tensor, pixel_values: torch.Tensor) -> torch.Tensor:
        """Error of a reconstruction, weighted as the config says; see `reconstruction_loss`."""
        config = self.config
        return reconstruction_loss(
            reconstruction, pixel_values, config.squared_error_weight, config.absolute_error_weight
        )

    @property
    def last_weight(self) -> torch.Tensor:
        """Weight of the decoder's last convolution, where adversarial and other losses are balanced."""
        return self.decoder.conv_out.weight

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, IdentityConv2d | IdentityConvTranspose2d | _ZeroConv2d):
            module.init_own_weights()
        else:
            init_convolutional_weights(module)


def reconstruction_loss(
    reconstruction: torch.Tensor, pixel_values: torch.Tensor, squared_weight: float, absolute_weight: float
) -> torch.Tensor:
    """`squared_weight * mean((x' - x)^2) + absolute_weight * mean(|x' - x|)`, in fp32.

    Args:
        reconstruction: `(batch, channels, height, width)`.
        pixel_values: the same shape.
        squared_weight: weight of the mean squared error.
        absolute_weight: weight of the mean absolute error.
    """
    difference = reconstruction.float() - pixel_values.float()
    return squared_weight * difference.square().mean() + absolute_weight * difference.abs().mean()


def init_convolutional_weights(module: nn.Module) -> None:
    """torch's own defaults for convolutions and norms, through helpers that leave loaded tensors alone."""
    if isinstance(module, nn.Conv2d | nn.Linear):
        init.kaiming_uniform_(module.weight, a=math.sqrt(5))
        if module.bias is not None:
            bound = 1 / math.sqrt(module.weight[0].numel())
            init.uniform_(module.bias, -bound, bound)
    elif isinstance(module, nn.GroupNorm | nn.BatchNorm2d) and module.affine:
        init.ones_(module.weight)
        init.zeros_(module.bias)
    if isinstance(module, nn.BatchNorm2d) and module.track_running_stats:
        init.zeros_(module.running_mean)
        init.ones_(module.running_var)
        init.zeros_(module.num_batches_tracked)


def group_norm(channels: int, config: ConvolutionalTokenizerConfig) -> TileGroupNorm:
    return TileGroupNorm(config.num_norm_groups, channels, eps=config.norm_eps)


class ResidualBlock(GradientCheckpointingLayer):
    """`shortcut(x) + conv(dropout(silu(norm(conv(silu(norm(x)))))))`."""

    def __init__(self, in_channels: int, out_channels: int, config: ConvolutionalTokenizerConfig):
        super().__init__()
        self.norm1 = group_norm(in_channels, config)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.norm2 = group_norm(out_channels, config)
        self.dropout = nn.Dropout(config.dropout)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        self.shortcut = nn.Identity() if in_channels == out_channels else nn.Conv2d(in_channels, out_channels, 1)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        hidden = self.conv1(F.silu(self.norm1(features)))
        hidden = self.conv2(self.dropout(F.silu(self.norm2(hidden))))
        return self.shortcut(features) + hidden


class SpatialAttention(GradientCheckpointingLayer):
    """`x + proj(softmax(q k^T / sqrt(channels)) v)` with one head over all positions of a feature map."""

    def __init__(self, channels: int, config: ConvolutionalTokenizerConfig):
        super().__init__()
        self.norm = group_norm(channels, config)
        self.is_fused = config.fused_attention_projection
        if self.is_fused:
            self.qkv = nn.Conv2d(channels, 3 * channels, 1)
        else:
            self.query = nn.Conv2d(channels, channels, 1)
            self.key = nn.Conv2d(channels, channels, 1)
            self.value = nn.Conv2d(channels, channels, 1)
        self.proj = nn.Conv2d(channels, channels, 1)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        normed = self.norm(features)
        if self.is_fused:
            query, key, value = self.qkv(normed).chunk(3, dim=1)
        else:
            query, key, value = self.query(normed), self.key(normed), self.value(normed)
        query, key, value = (part.flatten(2).transpose(1, 2)[:, None] for part in (query, key, value))
        mixed = F.scaled_dot_product_attention(query, key, value)[:, 0]
        return features + self.proj(mixed.transpose(1, 2).unflatten(-1, features.shape[-2:]))


class Downsample(nn.Module):
    """Halves both sides: a row and a column of zeros below and right, then a convolution of stride 2."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return self.conv(F.pad(features, (0, 1, 0, 1)))


class Upsample(nn.Module):
    """Doubles both sides by repeating pixels, then convolves."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return self.conv(F.interpolate(features, scale_factor=2.0, mode="nearest"))


class ResolutionLevel(nn.Module):
    """Residual blocks of one resolution, attention after each if there is any, then the next resolution."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        num_blocks: int,
        attends: bool,
        resample: nn.Module,
        config: ConvolutionalTokenizerConfig,
    ):
        super().__init__()
        self.blocks = nn.ModuleList(
            ResidualBlock(out_channels if index else in_channels, out_channels, config) for index in range(num_blocks)
        )
        self.attentions = nn.ModuleList(
            SpatialAttention(out_channels, config) for _ in range(num_blocks if attends else 0)
        )
        self.resample = resample

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        for index, block in enumerate(self.blocks):
            features = block(features)
            if self.attentions:
                features = self.attentions[index](features)
        return self.resample(features)


def middle_blocks(channels: int, config: ConvolutionalTokenizerConfig) -> nn.Sequential:
    attention = SpatialAttention(channels, config) if config.attention else nn.Identity()
    return nn.Sequential(
        ResidualBlock(channels, channels, config), attention, ResidualBlock(channels, channels, config)
    )


class ConvolutionalEncoder(nn.Module):
    """Pixels `(batch, channels, stride * h, stride * w)` to features `(batch, encoder_channels, h, w)`."""

    def __init__(self, config: ConvolutionalTokenizerConfig):
        super().__init__()
        channels = config.base_channels
        self.conv_in = nn.Conv2d(config.image_channels, channels, 3, padding=1)
        self.levels = nn.ModuleList()
        for index, multiplier in enumerate(config.channel_multipliers):
            is_last = index == len(config.channel_multipliers) - 1
            width = config.base_channels * multiplier
            resample = nn.Identity() if is_last else Downsample(width)
            attends = config.attention and is_last
            self.levels.append(ResolutionLevel(channels, width, config.num_residual_blocks, attends, resample, config))
            channels = width
        self.middle = middle_blocks(channels, config)
        self.norm_out = group_norm(channels, config)
        self.conv_out = nn.Conv2d(channels, config.encoder_channels, 3, padding=1)

    def forward(self, pixel_values: torch.Tensor, tiling: Tiling | None = None) -> torch.Tensor:
        """Runs the levels before the lowest resolution, which have no attention, on tiles where they are given."""
        if tiling is None:
            features = self._before_lowest(pixel_values)
        else:
            stride = 2 ** (len(self.levels) - 1)
            norms = tile_norms(self.levels[:-1])
            features = run_tiled(
                self._before_lowest, pixel_values, tiling, input_stride=1, output_stride=stride, norms=norms
            )
        return self.conv_out(F.silu(self.norm_out(self.middle(self.levels[-1](features)))))

    def _before_lowest(self, pixel_values: torch.Tensor) -> torch.Tensor:
        features = self.conv_in(pixel_values)
        for level in self.levels[:-1]:
            features = level(features)
        return features


class _StartsAsIdentity:
    """Output number n starts as input number n, of the flattened window where the layer has one; further ones as 0."""

    weight: torch.Tensor
    bias: torch.Tensor | None

    def init_own_weights(self) -> None:
        init.copy_(self.weight, torch.eye(len(self.weight), self.weight[0].numel()).view_as(self.weight))
        if self.bias is not None:
            init.zeros_(self.bias)


class IdentityConv2d(_StartsAsIdentity, nn.Conv2d):
    """A convolution that starts as the identity."""


class IdentityConvTranspose2d(_StartsAsIdentity, nn.ConvTranspose2d):
    """A transposed convolution that starts as the identity."""


class _ZeroConv2d(nn.Conv2d):
    """A convolution that starts with zeros."""

    def init_own_weights(self) -> None:
        init.zeros_(self.weight)
        if self.bias is not None:
            init.zeros_(self.bias)


class PatchEncoder(nn.Module):
    """Pixels `(batch, channels, stride * h, stride * w)` to features `(batch, encoder_channels, h, w)`, each from its own
    square of `stride` pixels; at the start they are the square's pixels, as many as there are features."""

    def __init__(self, config: ConvolutionalTokenizerConfig):
        super().__init__()
        self.proj = IdentityConv2d(config.image_channels, config.encoder_channels, config.stride, stride=config.stride)

    def forward(self, pixel_values: torch.Tensor, tiling: Tiling | None = None) -> torch.Tensor:
        """Tiles would change nothing: squares are independent as they are."""
        return self.proj(pixel_values)


class PatchDecoder(nn.Module):
    """Features `(batch, encoder_channels, h, w)` to squares of pixels, plus what residual blocks add to mend them."""

    def __init__(self, config: ConvolutionalTokenizerConfig):
        super().__init__()
        width, stride = config.base_channels, config.stride
        self.proj = IdentityConvTranspose2d(config.encoder_channels, config.image_channels, stride, stride=stride)
        self.conv_in = nn.Conv2d(config.image_channels, width, 3, padding=1)
        num_blocks = config.num_decoder_residual_blocks or config.num_residual_blocks + 1
        self.blocks = nn.ModuleList(ResidualBlock(width, width, config) for _ in range(num_blocks))
        self.norm_out = group_norm(width, config)
        self.conv_out = _ZeroConv2d(width, config.image_channels, 3, padding=1)

    def forward(self, features: torch.Tensor, tiling: Tiling | None = None) -> torch.Tensor:
        """Runs the residual blocks on tiles where they are given."""
        squares = self.proj(features)
        if tiling is None:
            return squares + self._mend(squares)
        norms = tile_norms(self.blocks, self.norm_out)
        return squares + run_tiled(self._mend, squares, tiling, input_stride=1, output_stride=1, norms=norms)

    def _mend(self, squares: torch.Tensor) -> torch.Tensor:
        hidden = self.conv_in(squares)
        for block in self.blocks:
            hidden = block(hidden)
        return self.conv_out(F.silu(self.norm_out(hidden)))


class ConvolutionalDecoder(nn.Module):
    """Features `(batch, encoder_channels, h, w)` to pixels `(batch, channels, stride * h, stride * w)`."""

    def __init__(self, config: ConvolutionalTokenizerConfig):
        super().__init__()
        multipliers = tuple(reversed(config.decoding_multipliers))
        num_blocks = config.num_decoder_residual_blocks
        if num_blocks is None:
            num_blocks = config.num_residual_blocks + 1
        channels = config.base_channels * multipliers[0]
        self.conv_in = nn.Conv2d(config.encoder_channels, channels, 3, padding=1)
        self.middle = middle_blocks(channels, config)
        self.levels = nn.ModuleList()
        for index, multiplier in enumerate(multipliers):
            width = config.base_channels * multiplier
            resample = nn.Identity() if index == len(multipliers) - 1 else Upsample(width)
            attends = config.attention and index == 0
            self.levels.append(ResolutionLevel(channels, width, num_blocks, attends, resample, config))
            channels = width
        self.norm_out = group_norm(channels, config)
        self.conv_out = nn.Conv2d(channels, config.image_channels, 3, padding=1)

    def forward(self, features: torch.Tensor, tiling: Tiling | None = None) -> torch.Tensor:
        """Runs the levels after the lowest resolution, which have no attention, on tiles where they are given."""
        features = self.levels[0](self.middle(self.conv_in(features)))
        if tiling is None:
            return self._after_lowest(features)
        # The lowest level has already doubled the sides, where it is not the only one.
        stride = 2 ** max(0, len(self.levels) - 2)
        norms = tile_norms(self.levels[1:], self.norm_out)
        return run_tiled(self._after_lowest, features, tiling, input_stride=stride, output_stride=1, norms=norms)

    def _after_lowest(self, features: torch.Tensor) -> torch.Tensor:
        for level in self.levels[1:]:
            features = level(features)
        return self.conv_out(F.silu(self.norm_out(features)))
