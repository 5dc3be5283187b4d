"""Crops of the real photographs that come with scikit-learn and scikit-image, none of them downloaded."""

from __future__ import annotations

import functools
import math
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from ..checks import require_count
from ..dependencies import needed_for
from ..errors import ConfigError, nearest
from .rows import image_row, row_features
from .transforms import encode_png

if TYPE_CHECKING:
    from datasets import Dataset, IterableDataset

#: Photographs of each split, whole ones, so that no held-out crop was seen in training.
SPLITS = {
    "train": (
        "china",
        "astronaut",
        "rocket",
        "hubble_deep_field",
        "immunohistochemistry",
        "retina",
        "stereo_motorcycle",
        "camera",
        "moon",
        "clock",
        "brick",
        "grass",
    ),
    "validation": ("coffee", "coins"),
    "test": ("flower", "chelsea", "gravel"),
}
_SCIKIT_LEARN = ("china", "flower")


@functools.cache
def load_photograph(name: str) -> Image.Image:
    """A whole photograph, as RGB.

    Raises:
        ConfigError: no such photograph.
    """
    known = [one for names in SPLITS.values() for one in names]
    if name not in known:
        raise ConfigError(f"there is no photograph {name!r}{nearest(name, known)}")
    if name in _SCIKIT_LEARN:
        from sklearn.datasets import load_sample_image

        pixels = load_sample_image(f"{name}.jpg")
    else:
        import skimage.data

        pixels = getattr(skimage.data, name)()
        pixels = pixels[0] if isinstance(pixels, tuple) else pixels
    return Image.fromarray(np.asarray(pixels)).convert("RGB")


def photographs_dataset(
    split: str = "train",
    num_rows: int = 1000,
    resolution: int = 64,
    seed: int = 0,
    *,
    streaming: bool = False,
) -> Dataset | IterableDataset:
    """Square crops of photographs; row `i` depends on split, seed, resolution and `i` alone.

    The photographs take turns. A crop's side is drawn log-uniformly from `resolution` to the photograph's shorter side,
    so that none is enlarged, and its place uniformly. The column `photograph` has the photograph's name.

    Args:
        split: one of `train`, `validation`, `test`.
        num_rows: number of crops.
        resolution: side of the pictures in pixels, at most 300.
        seed: of the crops.
        streaming: an `IterableDataset` over the same rows.

    Raises:
        ConfigError: an unknown split, no rows, or a resolution above the smallest photograph's shorter side.
    """
    with needed_for("data sets"):
        from datasets import Dataset, Features, Value

    if split not in SPLITS:
        raise ConfigError(f"the photographs have no split {split!r}{nearest(split, SPLITS)}")
    require_count(num_rows, "num_rows")
    if not isinstance(resolution, int) or not 1 <= resolution <= 300:
        raise ConfigError(
            f"resolution must lie in 1 to 300, the smallest photograph's shorter side; given {resolution!r}"
        )
    rows = []
    for index in range(num_rows):
        name = SPLITS[split][index % len(SPLITS[split])]
        picture = _crop(load_photograph(name), resolution, np.random.default_rng((seed, index)))
        image = {"bytes": encode_png(picture, compress_level=1), "path": None}
        row = image_row(image, row_id=f"photographs-{split}-{seed}-{index}", source="photographs")
        rows.append({**row, "photograph": name})
    features = Features({**row_features(), "photograph": Value("string")})
    dataset = Dataset.from_list(rows, features=features)
    return dataset.to_iterable_dataset() if streaming else dataset


def _crop(photograph: Image.Image, resolution: int, draws: np.random.Generator) -> Image.Image:
    longest = min(photograph.size)
    side = math.exp(draws.uniform(math.log(resolution), math.log(longest)))
    left = draws.uniform(0, photograph.width - side)
    top = draws.uniform(0, photograph.height - side)
    box = (left, top, left + side, top + side)
    return photograph.resize((resolution, resolution), Image.Resampling.LANCZOS, box=box)
