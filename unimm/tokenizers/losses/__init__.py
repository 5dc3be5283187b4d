"""Loss terms of tokenizer training beyond those that a tokenizer's own forward gives."""

from .adversarial import adaptive_weight, adversarial_discriminator_loss, adversarial_generator_loss
from .discriminators import (
    PatchDiscriminator,
    PatchDiscriminatorConfig,
    StyleDiscriminator,
    StyleDiscriminatorConfig,
)
from .perceptual import LPIPS

__all__ = [
    "LPIPS",
    "PatchDiscriminator",
    "PatchDiscriminatorConfig",
    "StyleDiscriminator",
    "StyleDiscriminatorConfig",
    "adaptive_weight",
    "adversarial_discriminator_loss",
    "adversarial_generator_loss",
]
