"""Adversarial losses on logits, and the weight that balances them against the reconstruction."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F

from ...errors import ConfigError, nearest


def adversarial_discriminator_loss(
    real_logits: torch.Tensor,
    fake_logits: torch.Tensor,
    kind: Literal["hinge", "vanilla", "non_saturating"] = "hinge",
    *,
    logits_as_targets: bool = False,
) -> torch.Tensor:
    """What a discriminator minimises.

    `hinge`: `(mean relu(1 - real) + mean relu(1 + fake)) / 2`. `vanilla` and `non_saturating`:
    `(mean softplus(-real) + mean softplus(fake)) / 2`, the cross-entropy of the two classes
    (https://huggingface.co/papers/1406.2661); the two kinds differ in the generator's loss.

    Args:
        real_logits: logits of pictures, any shape.
        fake_logits: logits of reconstructions, any shape.
        kind: which loss.
        logits_as_targets: swaps the arguments of the cross-entropy, so that constants are scored against the
            logits: `(1 - mean real + log(1 + 1/e) + log 2) / 2`, which is linear in the real logits and blind
            to the fake ones. Some released tokenizers were trained with it. Only with `non_saturating`.

    Raises:
        ConfigError: an unknown kind, or swapped arguments of another loss than `non_saturating`.
    """
    real_logits, fake_logits = real_logits.float(), fake_logits.float()
    _check_swap(kind, logits_as_targets)
    if kind == "hinge":
        return 0.5 * (F.relu(1 - real_logits).mean() + F.relu(1 + fake_logits).mean())
    if kind not in ("vanilla", "non_saturating"):
        raise ConfigError(f"no discriminator loss '{kind}'{nearest(kind, ('hinge', 'vanilla', 'non_saturating'))}")
    if logits_as_targets:
        real = F.binary_cross_entropy_with_logits(torch.ones_like(real_logits), real_logits)
        return 0.5 * (real + F.binary_cross_entropy_with_logits(torch.zeros_like(fake_logits), fake_logits))
    return 0.5 * (F.softplus(-real_logits).mean() + F.softplus(fake_logits).mean())


def adversarial_generator_loss(
    fake_logits: torch.Tensor,
    kind: Literal["hinge", "vanilla", "non_saturating"] = "hinge",
    *,
    logits_as_targets: bool = False,
) -> torch.Tensor:
    """What a tokenizer minimises to make its reconstructions pass for pictures.

    `hinge`: `-mean fake`. `non_saturating`: `mean softplus(-fake)`. `vanilla`: `-mean softplus(fake)`, which
    saturates where the discriminator is sure.

    Args:
        fake_logits: logits of reconstructions, any shape.
        kind: which loss.
        logits_as_targets: see `adversarial_discriminator_loss`; gives `1 - mean fake + log(1 + 1/e)`.

    Raises:
        ConfigError: as `adversarial_discriminator_loss`.
    """
    fake_logits = fake_logits.float()
    _check_swap(kind, logits_as_targets)
    if kind == "hinge":
        return -fake_logits.mean()
    if kind == "vanilla":
        return -F.softplus(fake_logits).mean()
    if kind != "non_saturating":
        raise ConfigError(f"no generator loss '{kind}'{nearest(kind, ('hinge', 'vanilla', 'non_saturating'))}")
    if logits_as_targets:
        return F.binary_cross_entropy_with_logits(torch.ones_like(fake_logits), fake_logits)
    return F.softplus(-fake_logits).mean()


def adaptive_weight(
    reconstruction_loss: torch.Tensor,
    adversarial_loss: torch.Tensor,
    last_weight: torch.Tensor,
    *,
    minimum: float = 0.0,
    maximum: float = 1e4,
) -> torch.Tensor:
    """The weight at which both losses pull equally at the decoder's last layer, without gradient.

    `|d reconstruction / d w| / (|d adversarial / d w| + 1e-4)`, clamped
    (https://huggingface.co/papers/2012.09841, equation 7).

    Args:
        reconstruction_loss: scalar; its graph is kept.
        adversarial_loss: scalar; its graph is kept.
        last_weight: weight of the decoder's last layer, such as `tokenizer.last_weight`.
        minimum: smallest weight.
        maximum: largest weight.
    """
    (reconstruction,) = torch.autograd.grad(reconstruction_loss, last_weight, retain_graph=True)
    (adversarial,) = torch.autograd.grad(adversarial_loss, last_weight, retain_graph=True)
    return (reconstruction.norm() / (adversarial.norm() + 1e-4)).clamp(minimum, maximum).detach()


def _check_swap(kind: str, logits_as_targets: bool) -> None:
    if logits_as_targets and kind != "non_saturating":
        raise ConfigError(f"logits_as_targets exists for the loss 'non_saturating' only, given '{kind}'")
