"""LPIPS, the learned perceptual distance (https://huggingface.co/papers/1801.03924), with its own VGG16."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

from ...errors import CheckpointError

_STAGES = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))
_FEATURES_HELP = (
    "the VGG16 features (a .pth or .safetensors state dict, keys features.0.weight … features.28.bias, "
    "as in torchvision's vgg16-397923af.pth)"
)
_LINEAR_HELP = (
    "the LPIPS linear weights (a state dict with the keys lin0.model.1.weight … lin4.model.1.weight, as in "
    "the vgg.pth of the LPIPS release, version 0.1)"
)


class LPIPS(nn.Module):
    """`sum_l mean_hw sum_c w_lc (n_l(x) - n_l(y))^2` over five depths of a frozen VGG16.

    `n_l` are the activations after the last rectifier of a stage, divided by their length over the channels;
    the weights `w` are not negative. Without `from_files` all weights are random, and the distance is only
    good for tests.
    """

    shift: torch.Tensor
    scale: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        stages, channels = [], 3
        for widths in _STAGES:
            convolutions = nn.ModuleList()
            for width in widths:
                convolutions.append(nn.Conv2d(channels, width, 3, padding=1))
                channels = width
            stages.append(convolutions)
        self.stages = nn.ModuleList(stages)
        self.weights = nn.ParameterList(torch.rand(widths[-1]) for widths in _STAGES)
        self.register_buffer("shift", torch.tensor([-0.030, -0.088, -0.188])[:, None, None])
        self.register_buffer("scale", torch.tensor([0.458, 0.448, 0.450])[:, None, None])
        self.requires_grad_(False).eval()

    @classmethod
    def from_files(cls, features: str | Path | None, linear: str | Path | None) -> LPIPS:
        """LPIPS with released weights.

        Args:
            features: file of VGG16's weights under torchvision's names; its classifier is left aside.
            linear: file of the linear weights under the LPIPS release's names.

        Raises:
            CheckpointError: a file is not given, does not exist, or lacks weights; the message says what is
                expected.
        """
        from ...conversion.checkpoints import read_checkpoint

        for given, help_text in ((features, _FEATURES_HELP), (linear, _LINEAR_HELP)):
            if given is None:
                raise CheckpointError(
                    f"the perceptual loss needs {help_text}: give its path, or set the perceptual weight to 0"
                )
            if not Path(given).is_file():
                raise CheckpointError(f"'{given}' does not exist; the perceptual loss needs {help_text}")
        assert features is not None
        assert linear is not None
        model = cls()
        vgg, weights = read_checkpoint(features), read_checkpoint(linear)
        for name, parameter in model._released_features().items():
            parameter.copy_(_tensor(vgg, name, parameter.shape, features, _FEATURES_HELP))
        for depth, parameter in enumerate(model.weights):
            name = f"lin{depth}.model.1.weight"
            parameter.copy_(_tensor(weights, name, (1, len(parameter), 1, 1), linear, _LINEAR_HELP).flatten())
            if parameter.min() < 0:
                raise CheckpointError(
                    f"'{linear}': {name} has negative entries; the LPIPS linear weights are not negative"
                )
        return model

    def train(self, mode: bool = True) -> LPIPS:
        """Stays in evaluation mode: the network is frozen."""
        return super().train(False)

    def activations(self, pixel_values: torch.Tensor) -> list[torch.Tensor]:
        """Activations after the last rectifier of each stage, `(batch, channels, h, w)`.

        Args:
            pixel_values: `(batch, 3, height, width)` in [-1, 1].
        """
        hidden, found = (pixel_values - self.shift) / self.scale, []
        for depth, stage in enumerate(self.stages):
            if depth:
                hidden = F.max_pool2d(hidden, 2)
            for convolution in _convolutions(stage):
                hidden = F.relu(convolution(hidden))
            found.append(hidden)
        return found

    def forward(self, first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
        """Distance of every pair of pictures, `(batch,)`, at least 0.

        Args:
            first: `(batch, 3, height, width)` in [-1, 1].
            second: the same shape.
        """
        distance = first.new_zeros(first.shape[0], dtype=torch.float32)
        pairs = zip(self.activations(first), self.activations(second), strict=True)
        for (one, other), weight in zip(pairs, self.weights, strict=True):
            squares = (_unit_length(one) - _unit_length(other)).square()
            distance = distance + torch.einsum("bchw,c->bhw", squares, weight.float()).mean(dim=(1, 2))
        return distance

    def _released_features(self) -> dict[str, torch.Tensor]:
        """VGG16's parameters by torchvision's names, which count convolutions, rectifiers and poolings."""
        names: dict[str, torch.Tensor] = {}
        index = 0
        for stage in self.stages:
            for convolution in _convolutions(stage):
                for kind, parameter in convolution.named_parameters():
                    names[f"features.{index}.{kind}"] = parameter
                index += 2
            index += 1
        return names


def _unit_length(activations: torch.Tensor) -> torch.Tensor:
    # Unlike `x / (|x| + eps)`, this has a gradient where all activations are zero.
    return F.normalize(activations.float(), dim=1, eps=1e-10)


def _convolutions(stage: nn.Module) -> list[nn.Conv2d]:
    return [layer for layer in stage.children() if isinstance(layer, nn.Conv2d)]


def _tensor(
    state: Mapping[str, torch.Tensor], name: str, shape: tuple[int, ...], path: str | Path, help_text: str
) -> torch.Tensor:
    if name not in state:
        raise CheckpointError(f"'{path}' has no key '{name}' (it starts with {list(state)[:3]}); expected {help_text}")
    if tuple(state[name].shape) != tuple(shape):
        raise CheckpointError(f"'{path}': {name} is {tuple(state[name].shape)}, expected {tuple(shape)}")
    return state[name]
