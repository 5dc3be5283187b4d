"""Discriminators: shapes, borders, and what they are sensitive to."""

from __future__ import annotations

import pytest
import torch

from unimm.errors import ConfigError, LayoutError
from unimm.tokenizers.losses import (
    PatchDiscriminator,
    PatchDiscriminatorConfig,
    StyleDiscriminator,
    StyleDiscriminatorConfig,
)
from unimm.tokenizers.losses.discriminators import batch_spread, blur


@pytest.mark.parametrize(
    ("num_layers", "size", "expected"),
    [(3, (32, 48), (2, 4)), (2, (32, 32), (6, 6)), (1, (16, 16), (6, 6)), (4, (64, 64), (2, 2))],
)
def test_a_patch_discriminator_gives_one_logit_per_patch(
    num_layers: int, size: tuple[int, int], expected: tuple[int, int]
) -> None:
    model = PatchDiscriminator(PatchDiscriminatorConfig(base_channels=4, num_layers=num_layers))
    assert model(torch.randn(2, 3, *size)).shape == (2, 1, *expected)


def test_a_patch_logit_depends_on_its_patch_only() -> None:
    model = PatchDiscriminator(PatchDiscriminatorConfig(base_channels=4, num_layers=2)).eval()
    pixels = torch.randn(1, 3, 64, 64, requires_grad=True)
    (gradient,) = torch.autograd.grad(model(pixels)[0, 0, 7, 7], pixels)
    touched = gradient.abs().sum((0, 1)).nonzero()
    assert (touched.max(0).values - touched.min(0).values + 1).tolist() == [34, 34]


def test_widths_double_up_to_eightfold() -> None:
    model = PatchDiscriminator(PatchDiscriminatorConfig(base_channels=4, num_layers=5))
    assert [layer.out_channels for layer in model.convolutions] == [4, 8, 16, 32, 32, 32, 1]


def test_a_picture_below_the_patch_size_is_refused() -> None:
    model = PatchDiscriminator(PatchDiscriminatorConfig(base_channels=4))
    assert model(torch.randn(2, 3, 24, 24)).shape == (2, 1, 1, 1)
    with pytest.raises(LayoutError, match="at least 24x24"):
        model(torch.randn(2, 3, 23, 24))


@pytest.mark.parametrize(
    "model",
    [
        PatchDiscriminator(PatchDiscriminatorConfig(base_channels=4)),
        StyleDiscriminator(StyleDiscriminatorConfig(base_channels=4, num_levels=2)),
    ],
    ids=["patch", "style"],
)
def test_saving_and_loading_changes_nothing(model: torch.nn.Module, tmp_path) -> None:
    pixels = torch.randn(4, 3, 32, 32)
    model.train()(pixels)
    model.save_pretrained(tmp_path)
    loaded = type(model).from_pretrained(tmp_path)
    before, after = model.state_dict(), loaded.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert torch.equal(model.eval()(pixels), loaded(pixels))


@pytest.mark.parametrize("size", [(32, 32), (64, 48)])
def test_a_style_discriminator_gives_one_logit_per_picture_of_any_size(size: tuple[int, int]) -> None:
    model = StyleDiscriminator(StyleDiscriminatorConfig(base_channels=4, num_levels=3, group_size=2))
    assert model(torch.randn(4, 3, *size)).shape == (4, 1)


def test_a_style_discriminator_sees_the_spread_of_its_group() -> None:
    model = StyleDiscriminator(StyleDiscriminatorConfig(base_channels=4, num_levels=2, group_size=2)).eval()
    pixels = torch.randn(2, 3, 16, 16)
    alike = pixels[:1].expand(2, -1, -1, -1)
    assert not torch.allclose(model(pixels)[0], model(alike)[0])
    alone = StyleDiscriminator(StyleDiscriminatorConfig(base_channels=4, num_levels=2, group_size=1)).eval()
    assert torch.allclose(alone(pixels)[0], alone(alike)[0], atol=1e-6)


def test_the_spread_of_equal_pictures_is_zero_and_of_two_is_half_their_distance() -> None:
    features = torch.zeros(4, 2, 3, 3)
    features[3] = 5.0
    spread = batch_spread(features, 2)
    assert spread.shape == (4, 1, 3, 3)
    assert torch.allclose(spread[:2], torch.full((2, 1, 3, 3), 1e-4))
    assert torch.allclose(spread[2:], torch.full((2, 1, 3, 3), 2.5))
    with pytest.raises(LayoutError, match="no multiple of the discriminator's group_size 3"):
        batch_spread(features, 3)


def test_the_blur_keeps_constants_and_spreads_a_point_binomially() -> None:
    assert torch.allclose(blur(torch.full((1, 2, 5, 5), 3.0)), torch.full((1, 2, 5, 5), 3.0))
    point = torch.zeros(1, 1, 5, 5)
    point[0, 0, 2, 2] = 16.0
    assert blur(point)[0, 0, 1:4, 1:4].tolist() == [[1, 2, 1], [2, 4, 2], [1, 2, 1]]


def test_impossible_sizes_are_refused() -> None:
    with pytest.raises(ConfigError, match="at least one layer"):
        PatchDiscriminatorConfig(num_layers=0)
    with pytest.raises(ConfigError, match="must all be positive"):
        StyleDiscriminatorConfig(group_size=0)
