"""Discriminators for adversarial tokenizer training."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import nn
from transformers import PreTrainedModel
from transformers import initialization as init

from ...configuration import UniMMConfig
from ...errors import ConfigError, LayoutError
from ...hub.mixins import HubModelMixin


class PatchDiscriminatorConfig(UniMMConfig):
    """A convolutional discriminator that judges overlapping patches
    (https://huggingface.co/papers/1611.07004).

    Args:
        image_channels: channels of a picture.
        base_channels: width of the first convolution; it doubles up to eightfold.
        num_layers: convolutions of stride 2; one of stride 1 and the one to the logits follow.

    Raises:
        ConfigError: no layer.
    """

    model_type = "unimm_patch_discriminator"
    image_channels: int = 3
    base_channels: int = 64
    num_layers: int = 3

    def __post_init__(self, **kwargs: object) -> None:
        super().__post_init__(**kwargs)
        if self.num_layers < 1:
            raise ConfigError(f"a patch discriminator needs at least one layer, given num_layers={self.num_layers}")


class PatchDiscriminator(HubModelMixin, PreTrainedModel):
    """One logit per patch: convolutions of side 4, leaky rectifiers, batch norm inside."""

    config: PatchDiscriminatorConfig
    config_class = PatchDiscriminatorConfig
    base_model_prefix = ""
    main_input_name = "pixel_values"

    def __init__(self, config: PatchDiscriminatorConfig):
        super().__init__(config)
        widths = [config.base_channels * min(2**layer, 8) for layer in range(config.num_layers + 1)]
        self.convolutions = nn.ModuleList([nn.Conv2d(config.image_channels, widths[0], 4, stride=2, padding=1)])
        self.norms = nn.ModuleList()
        for layer in range(1, config.num_layers + 1):
            stride = 2 if layer < config.num_layers else 1
            self.convolutions.append(
                nn.Conv2d(widths[layer - 1], widths[layer], 4, stride=stride, padding=1, bias=False)
            )
            self.norms.append(nn.BatchNorm2d(widths[layer]))
        self.convolutions.append(nn.Conv2d(widths[-1], 1, 4, padding=1))
        self.post_init()

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """`(batch, channels, height, width)` in [-1, 1] to logits `(batch, 1, rows, columns)`.

        Raises:
            LayoutError: a picture smaller than one patch.
        """
        smallest = 3 * 2**self.config.num_layers
        if min(pixel_values.shape[-2:]) < smallest:
            raise LayoutError(
                f"a patch discriminator with {self.config.num_layers} layers needs pictures of at least "
                f"{smallest}x{smallest} pixels, given {tuple(pixel_values.shape[-2:])}: use fewer layers"
            )
        hidden = F.leaky_relu(self.convolutions[0](pixel_values), 0.2)
        for convolution, norm in zip(list(self.convolutions)[1:-1], self.norms, strict=True):
            hidden = F.leaky_relu(norm(convolution(hidden)), 0.2)
        return self.convolutions[-1](hidden)

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, nn.Conv2d):
            init.normal_(module.weight, std=0.02)
            if module.bias is not None:
                init.zeros_(module.bias)
        elif isinstance(module, nn.BatchNorm2d):
            init.normal_(module.weight, mean=1.0, std=0.02)
            init.zeros_(module.bias)
            init.zeros_(module.running_mean)
            init.ones_(module.running_var)
            init.zeros_(module.num_batches_tracked)


class StyleDiscriminatorConfig(UniMMConfig):
    """A residual discriminator in the manner of StyleGAN2 (https://huggingface.co/papers/1912.04958).

    Args:
        image_channels: channels of a picture.
        base_channels: width at full resolution; it doubles per level.
        max_channels: largest width.
        num_levels: residual levels, each of which halves the sides.
        group_size: pictures whose spread is measured together; 1 leaves the measure out. The batch must be a
            multiple.

    Raises:
        ConfigError: a number below one.
    """

    model_type = "unimm_style_discriminator"
    image_channels: int = 3
    base_channels: int = 64
    max_channels: int = 512
    num_levels: int = 4
    group_size: int = 4

    def __post_init__(self, **kwargs: object) -> None:
        super().__post_init__(**kwargs)
        if min(self.num_levels, self.group_size, self.base_channels, self.max_channels) < 1:
            raise ConfigError("base_channels, max_channels, num_levels and group_size must all be positive")


class StyleDiscriminator(HubModelMixin, PreTrainedModel):
    """One logit per picture: residual levels with blurred downsampling, the batch's spread as a feature."""

    config: StyleDiscriminatorConfig
    config_class = StyleDiscriminatorConfig
    base_model_prefix = ""
    main_input_name = "pixel_values"
    _no_split_modules = ["BlurredResidualLevel"]

    def __init__(self, config: StyleDiscriminatorConfig):
        super().__init__(config)
        widths = [min(config.base_channels * 2**level, config.max_channels) for level in range(config.num_levels + 1)]
        self.conv_in = nn.Conv2d(config.image_channels, widths[0], 3, padding=1)
        self.levels = nn.ModuleList(
            BlurredResidualLevel(widths[level], widths[level + 1]) for level in range(config.num_levels)
        )
        self.conv_out = nn.Conv2d(widths[-1] + (config.group_size > 1), widths[-1], 3, padding=1)
        self.hidden = nn.Linear(16 * widths[-1], widths[-1])
        self.logit = nn.Linear(widths[-1], 1)
        self.post_init()

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """`(batch, channels, height, width)` in [-1, 1] to logits `(batch, 1)`.

        Raises:
            LayoutError: the batch is no multiple of the group size.
        """
        hidden = F.leaky_relu(self.conv_in(pixel_values), 0.2)
        for level in self.levels:
            hidden = level(hidden)
        if self.config.group_size > 1:
            hidden = torch.cat([hidden, batch_spread(hidden, self.config.group_size)], dim=1)
        hidden = F.adaptive_avg_pool2d(F.leaky_relu(self.conv_out(hidden), 0.2), 4)
        return self.logit(F.leaky_relu(self.hidden(hidden.flatten(1)), 0.2))

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, nn.Conv2d | nn.Linear):
            init.kaiming_normal_(module.weight, a=0.2)
            if module.bias is not None:
                init.zeros_(module.bias)


class BlurredResidualLevel(nn.Module):
    """`(conv(blur, stride 2)(conv(x)) + conv1x1(blur(x), stride 2)) / sqrt(2)`."""

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, in_channels, 3, padding=1)
        self.conv2 = nn.Conv2d(in_channels, out_channels, 3, stride=2, padding=1)
        self.shortcut = nn.Conv2d(in_channels, out_channels, 1, stride=2, bias=False)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        hidden = F.leaky_relu(self.conv1(features), 0.2)
        hidden = F.leaky_relu(self.conv2(blur(hidden)), 0.2)
        return (hidden + self.shortcut(blur(features))) / math.sqrt(2)


def blur(features: torch.Tensor) -> torch.Tensor:
    """Convolves each channel with the binomial filter (1, 2, 1)/4 along both sides; borders are mirrored.

    Args:
        features: `(batch, channels, h, w)` with sides of at least 2.
    """
    taps = features.new_tensor([0.25, 0.5, 0.25])
    kernel = torch.outer(taps, taps).expand(features.shape[1], 1, 3, 3)
    return F.conv2d(F.pad(features, (1, 1, 1, 1), mode="reflect"), kernel, groups=features.shape[1])


def batch_spread(features: torch.Tensor, group_size: int) -> torch.Tensor:
    """Standard deviation over a group of pictures, averaged over channels and positions
    (https://huggingface.co/papers/1710.10196).

    Args:
        features: `(batch, channels, h, w)`.
        group_size: pictures per group.

    Returns:
        `(batch, 1, h, w)`, constant over a group.

    Raises:
        LayoutError: the batch is no multiple of the group size.
    """
    batch, _, height, width = features.shape
    if batch % group_size:
        raise LayoutError(
            f"the batch of {batch} pictures is no multiple of the discriminator's group_size {group_size}"
        )
    groups = features.float().unflatten(0, (-1, group_size))
    deviation = (groups.var(dim=1, unbiased=False) + 1e-8).sqrt().mean(dim=(1, 2, 3))
    spread = deviation.repeat_interleave(group_size).to(features.dtype)
    return spread[:, None, None, None].expand(batch, 1, height, width)
