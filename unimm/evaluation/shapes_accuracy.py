"""How right the judge of Shapes is: true and damaged pictures, captions false in one attribute, noise."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from PIL import Image
from scipy import ndimage

from ..data.shapes.alterations import alter_claims
from ..data.shapes.sampler import ShapesSampler
from ..data.shapes.splits import Draws
from .shapes import ShapesJudge, wilson_interval

Damage = Callable[[np.ndarray, np.random.Generator], np.ndarray]

#: Stream of the random decisions about false captions.
_ALTERATION_STREAM = 101


def compress(image: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """JPEG at quality 75 with halved colour resolution."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "JPEG", quality=75)
    return np.asarray(Image.open(buffer))


def blur(image: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Gaussian blur, of radius 0.5 pixels at 32 pixels a side and 0.7 at 64."""
    radius = 0.5 * (image.shape[0] / 32) ** 0.5
    blurred = ndimage.gaussian_filter(image.astype(np.float64), (radius, radius, 0), mode="nearest")
    return np.clip(np.rint(blurred), 0, 255).astype(np.uint8)


def imitate_tokenizer(image: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Half the resolution and back (bicubic), 16 levels per channel, and noise of deviation 4 of 255."""
    side = image.shape[0]
    small = Image.fromarray(image).resize((side // 2, side // 2), Image.Resampling.BICUBIC)
    levels = np.rint(np.asarray(small) / 17.0) * 17
    large = Image.fromarray(levels.astype(np.uint8)).resize((side, side), Image.Resampling.BICUBIC)
    noisy = np.asarray(large) + generator.normal(0.0, 4.0, image.shape)
    return np.clip(np.rint(noisy), 0, 255).astype(np.uint8)


#: Damage after which the judge should still be right.
DAMAGES: dict[str, Damage] = {"jpeg 75": compress, "blur": blur, "imitated tokenizer": imitate_tokenizer}


def noise_picture(kind: str, side: int, generator: np.random.Generator) -> np.ndarray:
    """A picture without a scene: `uniform` or `gaussian` noise, smooth `clouds`, or one `flat` colour."""
    if kind == "flat":
        return np.broadcast_to(generator.integers(0, 256, 3, dtype=np.uint8), (side, side, 3)).copy()
    if kind == "uniform":
        return generator.integers(0, 256, (side, side, 3), dtype=np.uint8)
    values = generator.normal(0.0, 1.0, (side, side, 3))
    if kind == "clouds":
        values = ndimage.gaussian_filter(values, (side / 10, side / 10, 0), mode="wrap")
        values /= values.std()
    return np.clip(128 + 50 * values, 0, 255).astype(np.uint8)


NOISES = ("uniform", "gaussian", "clouds", "flat")


def measure_judge(
    num_pictures: int,
    resolution: int,
    *,
    seed: int = 0,
    damages: Mapping[str, Damage] = DAMAGES,
    judge: ShapesJudge | None = None,
    **options: Any,
) -> dict[str, dict[str, Any]]:
    """Measures the judge on the test split.

    Args:
        num_pictures: pictures per row.
        resolution: side of the pictures in pixels.
        seed: seed of the pictures, the false captions and the noise.
        damages: name to a function that spoils a uint8 picture `(side, side, 3)`, given a generator.
        judge: the judge that is measured.
        **options: of `ShapesSampler`: kinds, attributes, textures, …

    Returns:
        Row to `n`, `right` (share of pictures judged right) and `interval` (95 %). The rows are `truth`, one
        per damage, `altered` (captions with exactly one attribute changed), `noise: KIND`, and
        `altered: ATTRIBUTE`.
    """
    judge = judge or ShapesJudge()
    sampler = ShapesSampler("test", seed=seed, resolution=resolution, num_questions=0, **options)
    generator = np.random.default_rng(seed)
    outcomes: dict[str, list[bool]] = {}

    def judged(row: str, image: np.ndarray, claims: Any) -> bool:
        right = judge.judge(image, claims).right
        outcomes.setdefault(row, []).append(right)
        return right

    by_attribute: dict[str, list[bool]] = {}
    for index in range(num_pictures):
        sample = sampler.sample(index)
        judged("truth", sample.image, sample.claims)
        for name, damage in damages.items():
            judged(name, damage(sample.image, generator), sample.claims)
        assert sample.claims is not None
        draws = Draws(seed, "test", index, _ALTERATION_STREAM)
        false_claims, attribute = alter_claims(sample.claims, sample.scene, draws)
        right = judged("altered", sample.image, false_claims)
        by_attribute.setdefault(f"altered: {attribute}", []).append(right)
        for kind in NOISES:
            judged(f"noise: {kind}", noise_picture(kind, resolution, generator), sample.claims)
    return {
        name: {
            "n": len(rights),
            "right": sum(rights) / len(rights),
            "interval": list(wilson_interval(sum(rights), len(rights))),
        }
        for name, rights in {**outcomes, **dict(sorted(by_attribute.items()))}.items()
    }
