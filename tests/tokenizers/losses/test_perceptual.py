"""LPIPS: its formula, its frozen weights, and its loader."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from unimm.errors import CheckpointError
from unimm.tokenizers.losses import LPIPS

# Positions of VGG16's convolutions, rectifiers and poolings in torchvision's `features`.
VGG16 = [64, 64, "pool", 128, 128, "pool", 256, 256, 256, "pool", 512, 512, 512, "pool", 512, 512, 512]
TAPS = {3: 64, 8: 128, 15: 256, 22: 512, 29: 512}


def torchvision_like() -> nn.Sequential:
    layers, channels = nn.Sequential(), 3
    for entry in VGG16:
        if entry == "pool":
            layers.append(nn.MaxPool2d(2))
        else:
            layers.append(nn.Conv2d(channels, entry, 3, padding=1))
            layers.append(nn.ReLU())
            channels = entry
    return layers


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, nn.Sequential, list[torch.Tensor]]:
    """Both files with random weights under the released names, and what is in them."""
    torch.manual_seed(0)
    folder, features = tmp_path_factory.mktemp("lpips"), torchvision_like()
    state = {f"features.{name}": value for name, value in features.state_dict().items()}
    torch.save(state | {"classifier.0.weight": torch.zeros(3)}, folder / "vgg16.pth")
    linear = [torch.rand(1, width, 1, 1) for width in TAPS.values()]
    torch.save({f"lin{depth}.model.1.weight": weight for depth, weight in enumerate(linear)}, folder / "vgg.pth")
    return folder / "vgg16.pth", folder / "vgg.pth", features, linear


@pytest.fixture(scope="module")
def lpips(files: tuple[Path, Path, nn.Sequential, list[torch.Tensor]]) -> LPIPS:
    return LPIPS.from_files(files[0], files[1])


def test_the_distance_is_its_formula_with_the_released_names(
    lpips: LPIPS, files: tuple[Path, Path, nn.Sequential, list[torch.Tensor]]
) -> None:
    first, second = torch.rand(2, 2, 3, 32, 32) * 2 - 1
    _, _, features, linear = files
    shift, scale = torch.tensor([-0.030, -0.088, -0.188]), torch.tensor([0.458, 0.448, 0.450])
    hidden = (torch.cat([first, second]) - shift[:, None, None]) / scale[:, None, None]
    expected, taps = torch.zeros(2), iter(linear)
    with torch.no_grad():
        for index, layer in enumerate(features):
            hidden = layer(hidden)
            if index in TAPS:
                unit = hidden / (hidden.square().sum(1, keepdim=True).sqrt() + 1e-10)
                one, other = unit.chunk(2)
                expected += ((one - other).square() * next(taps)).sum(1).mean((1, 2))
    assert torch.allclose(lpips(first, second), expected, rtol=1e-4, atol=1e-6)


def test_the_distance_is_zero_for_equals_symmetric_and_positive(lpips: LPIPS) -> None:
    first, second = torch.rand(2, 1, 3, 32, 32) * 2 - 1
    assert lpips(first, first).item() == 0
    assert lpips(first, second).item() > 0
    assert torch.allclose(lpips(first, second), lpips(second, first))


def test_gradients_reach_the_picture_and_are_finite_where_nothing_is_active(lpips: LPIPS) -> None:
    first = torch.rand(1, 3, 32, 32, requires_grad=True)
    lpips(first, torch.rand(1, 3, 32, 32)).sum().backward()
    assert first.grad.abs().sum() > 0
    dead = LPIPS()
    for parameter in dead.stages.parameters():
        parameter.data.zero_()
    dead(first, torch.rand(1, 3, 32, 32)).sum().backward()
    assert first.grad.isfinite().all()


def test_the_network_is_frozen_and_stays_in_evaluation_mode(lpips: LPIPS) -> None:
    assert not any(parameter.requires_grad for parameter in lpips.parameters())
    assert not lpips.train().training


@pytest.mark.parametrize("missing", ["features", "linear"])
def test_without_a_file_the_message_says_which_and_with_what_keys(
    missing: str, files: tuple[Path, Path, nn.Sequential, list[torch.Tensor]]
) -> None:
    given = {"features": files[0], "linear": files[1], missing: None}
    key = "features.0.weight" if missing == "features" else "lin0.model.1.weight"
    with pytest.raises(CheckpointError, match=rf"needs the .*{key}.*give its path"):
        LPIPS.from_files(**given)
    with pytest.raises(CheckpointError, match="does not exist"):
        LPIPS.from_files(**{**given, missing: "nowhere.pth"})


def test_a_file_with_other_keys_shapes_or_signs_is_refused(
    tmp_path: Path, files: tuple[Path, Path, nn.Sequential, list[torch.Tensor]]
) -> None:
    features, linear, _, weights = files
    with pytest.raises(CheckpointError, match=r"no key 'features\.0\.weight'"):
        LPIPS.from_files(linear, linear)
    state = {f"lin{depth}.model.1.weight": weight for depth, weight in enumerate(weights)}
    for change, message in ((weights[1].clone(), "expected"), (-weights[0], "negative")):
        path = tmp_path / f"{message}.safetensors"
        save_file(state | {"lin0.model.1.weight": change}, path)
        with pytest.raises(CheckpointError, match=message):
            LPIPS.from_files(features, path)
