"""Spoiled versions of pictures, for restoration."""

from __future__ import annotations

import io
from collections.abc import Callable

import numpy as np
from PIL import Image

from ...errors import ConfigError, nearest
from .splits import Draws


def _noise(image: np.ndarray, draws: Draws) -> np.ndarray:
    deviation = draws.uniform(15, 45)
    return image + draws.generator.normal(0.0, deviation, image.shape)


def _blur(image: np.ndarray, draws: Draws) -> np.ndarray:
    from scipy import ndimage

    radius = draws.uniform(0.02, 0.05) * image.shape[0]
    return ndimage.gaussian_filter(image.astype(np.float64), (radius, radius, 0), mode="nearest")


def _blocks(image: np.ndarray, draws: Draws) -> np.ndarray:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "JPEG", quality=5 + draws.integer(16))
    return np.asarray(Image.open(buffer))


def _pixels(image: np.ndarray, draws: Draws) -> np.ndarray:
    side = image.shape[0]
    small = max(4, side // (2 + 2 * draws.integer(2)))
    picture = Image.fromarray(image).resize((small, small), Image.Resampling.BOX)
    return np.asarray(picture.resize((side, side), Image.Resampling.NEAREST))


def _hole(image: np.ndarray, draws: Draws) -> np.ndarray:
    side = image.shape[0]
    height, width = (round(draws.uniform(0.2, 0.4) * side) for _ in range(2))
    top, left = draws.integer(side - height + 1), draws.integer(side - width + 1)
    spoiled = image.copy()
    spoiled[top : top + height, left : left + width] = 128
    return spoiled


#: Kind of damage to the instruction that asks to repair it.
REPAIRS = {
    "noise": "remove the noise",
    "blur": "sharpen the picture",
    "blocks": "remove the blocks",
    "pixels": "refine the pixels",
    "hole": "fill the hole",
}
_DAMAGES: dict[str, Callable[[np.ndarray, Draws], np.ndarray]] = {
    "noise": _noise,
    "blur": _blur,
    "blocks": _blocks,
    "pixels": _pixels,
    "hole": _hole,
}


def degrade(image: np.ndarray, kind: str, draws: Draws) -> np.ndarray:
    """A spoiled version of a picture.

    Args:
        image: uint8 `(side, side, 3)`.
        kind: one of `REPAIRS`: Gaussian noise (deviation 15-45 of 255), blur (radius 2-5 % of the side),
            JPEG at quality 5-20, two- or fourfold coarser pixels, or a grey rectangle.
        draws: random decisions about the strength and the place.

    Returns:
        uint8 `(side, side, 3)`.

    Raises:
        ConfigError: the kind does not exist.
    """
    if kind not in _DAMAGES:
        raise ConfigError(f"pictures cannot be spoiled by {kind!r}{nearest(kind, _DAMAGES)}")
    spoiled = np.asarray(_DAMAGES[kind](image, draws), dtype=np.float64)
    return np.clip(np.rint(spoiled), 0, 255).astype(np.uint8)
