"""Adversarial losses and the adaptive weight."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from unimm.errors import ConfigError
from unimm.tokenizers.losses import (
    adaptive_weight,
    adversarial_discriminator_loss,
    adversarial_generator_loss,
)


@pytest.fixture
def logits() -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(2, 1, 3, 4) * 2, torch.randn(2, 1, 3, 4) * 2


def test_losses_are_their_formulas(logits: tuple[torch.Tensor, torch.Tensor]) -> None:
    real, fake = logits
    hinge = 0.5 * ((1 - real).clamp(min=0).mean() + (1 + fake).clamp(min=0).mean())
    entropy = -0.5 * (real.sigmoid().log().mean() + (1 - fake.sigmoid()).log().mean())
    assert torch.allclose(adversarial_discriminator_loss(real, fake, "hinge"), hinge)
    for kind in ("vanilla", "non_saturating"):
        assert torch.allclose(adversarial_discriminator_loss(real, fake, kind), entropy, atol=1e-6)
    assert torch.allclose(adversarial_generator_loss(fake, "hinge"), -fake.mean())
    assert torch.allclose(adversarial_generator_loss(fake, "vanilla"), (1 - fake.sigmoid()).log().mean(), atol=1e-6)
    assert torch.allclose(adversarial_generator_loss(fake, "non_saturating"), -fake.sigmoid().log().mean(), atol=1e-6)


@pytest.mark.parametrize("kind", ["hinge", "vanilla", "non_saturating"])
def test_both_sides_pull_in_opposite_directions(kind: str) -> None:
    fake = torch.zeros(4, requires_grad=True)
    (discriminator,) = torch.autograd.grad(adversarial_discriminator_loss(torch.zeros(4), fake, kind), fake)
    (generator,) = torch.autograd.grad(adversarial_generator_loss(fake, kind), fake)
    assert (discriminator > 0).all()
    assert (generator < 0).all()


def test_swapped_arguments_score_constants_against_the_logits(
    logits: tuple[torch.Tensor, torch.Tensor],
) -> None:
    real, fake = logits
    one = math.log(1 + math.exp(-1))
    discriminator = adversarial_discriminator_loss(real, fake, "non_saturating", logits_as_targets=True)
    assert discriminator.item() == pytest.approx(0.5 * (1 - real.mean().item() + one + math.log(2)), abs=1e-6)
    generator = adversarial_generator_loss(fake, "non_saturating", logits_as_targets=True)
    assert generator.item() == pytest.approx(1 - fake.mean().item() + one, abs=1e-6)


def test_unknown_kinds_and_senseless_flags_are_refused(logits: tuple[torch.Tensor, torch.Tensor]) -> None:
    real, fake = logits
    with pytest.raises(ConfigError, match="did you mean 'hinge'"):
        adversarial_discriminator_loss(real, fake, "hing")
    with pytest.raises(ConfigError, match="did you mean 'vanilla'"):
        adversarial_generator_loss(fake, "vanila")
    for loss in (
        lambda: adversarial_discriminator_loss(real, fake, "hinge", logits_as_targets=True),
        lambda: adversarial_generator_loss(fake, "vanilla", logits_as_targets=True),
    ):
        with pytest.raises(ConfigError, match="'non_saturating' only"):
            loss()


def test_the_adaptive_weight_balances_the_gradients_at_the_last_layer() -> None:
    layer, features = torch.nn.Conv2d(4, 3, 3), torch.randn(2, 4, 6, 6)
    output = layer(features)
    reconstruction, adversarial = output.square().mean(), -7 * output.mean()
    weight = adaptive_weight(reconstruction, adversarial, layer.weight)
    assert not weight.requires_grad
    first, second = (
        torch.autograd.grad(loss, layer.weight, retain_graph=True)[0] for loss in (reconstruction, adversarial)
    )
    assert torch.allclose(weight, first.norm() / (second.norm() + 1e-4))
    assert torch.allclose((weight * second).norm(), first.norm(), rtol=1e-2)


def test_the_adaptive_weight_is_clamped() -> None:
    layer = torch.nn.Linear(3, 1)
    output = layer(torch.ones(2, 3))
    assert adaptive_weight(output.sum(), 0.0 * output.sum(), layer.weight) == 1e4
    assert adaptive_weight(0.0 * output.sum(), output.sum(), layer.weight, minimum=0.015) == pytest.approx(0.015)
    assert adaptive_weight(output.sum(), output.sum(), layer.weight, maximum=F.relu(torch.tensor(0.5)).item()) == 0.5
