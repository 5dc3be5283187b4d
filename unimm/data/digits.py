"""scikit-learn's 1,797 real handwritten digits as rows: classes, captions and questions."""

from __future__ import annotations

import functools
import hashlib
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from ..checks import require_count
from ..dependencies import needed_for
from ..errors import ConfigError, nearest
from .rows import Row, caption_row, class_row, question_row, row_features
from .transforms import encode_png

if TYPE_CHECKING:
    from datasets import Dataset, IterableDataset

DIGIT_NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
QUESTION = "which digit is this?"
TASKS = ("class", "caption", "question")

#: Share of each class's digits in each split.
SPLIT_SHARES = {"train": 0.7, "validation": 0.1, "test": 0.2}


def digit_caption(label: int) -> str:
    """`a handwritten three`, the caption of a digit."""
    return f"a handwritten {DIGIT_NAMES[label]}"


@functools.cache
def _digits() -> tuple[np.ndarray, np.ndarray]:
    from sklearn.datasets import load_digits

    digits = load_digits()
    return digits.images.astype(np.float32) / 16, digits.target.astype(np.int64)


@functools.cache
def split_indices(split: str) -> tuple[int, ...]:
    """Numbers of a split's digits in scikit-learn's order.

    The digits of each class are ordered by a hash of their number and cut into 70 % training, 10 % validation and 20 %
    test: 1,258, 180 and 359 digits.

    Raises:
        ConfigError: no such split.
    """
    if split not in SPLIT_SHARES:
        raise ConfigError(f"the digits have no split {split!r}{nearest(split, SPLIT_SHARES)}")
    _, labels = _digits()
    chosen: list[int] = []
    for label in range(len(DIGIT_NAMES)):
        numbers = sorted(np.flatnonzero(labels == label).tolist(), key=_order)
        start = 0.0
        for name, share in SPLIT_SHARES.items():
            if name == split:
                chosen += numbers[round(start * len(numbers)) : round((start + share) * len(numbers))]
            start += share
    return tuple(sorted(chosen))


def digit_images(split: str, resolution: int = 32) -> tuple[np.ndarray, np.ndarray]:
    """All digits of a split, white on black, enlarged (bicubic) from 8 x 8 pixels and a margin of one such pixel.

    Args:
        split: one of `train`, `validation`, `test`.
        resolution: side of the pictures in pixels.

    Returns:
        uint8 `(digits, resolution, resolution, 3)`, and labels, int64 `(digits,)`.
    """
    images, labels = _digits()
    numbers = list(split_indices(split))
    return np.stack([_enlarged(images[number], resolution) for number in numbers]), labels[numbers]


def vary_digit(image: np.ndarray, resolution: int, draws: np.random.Generator) -> np.ndarray:
    """A digit turned by up to 10 degrees, scaled by up to 10 %, sheared by up to 0.15 and shifted by up to 6 %.

    Args:
        image: `(8, 8)` in [0, 1].
        resolution: side of the result in pixels.
        draws: source of the changes.

    Returns:
        uint8 `(resolution, resolution, 3)`.
    """
    angle = np.deg2rad(draws.uniform(-10, 10))
    scale = np.exp(draws.uniform(-0.1, 0.1, size=2))
    shear = draws.uniform(-0.15, 0.15)
    shift = draws.uniform(-0.06, 0.06, size=2) * resolution
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    matrix = turn @ np.array([[1.0, shear], [0.0, 1.0]]) @ np.diag(1 / scale)
    centre = np.full(2, resolution / 2)
    offset = centre - matrix @ (centre + shift)
    picture = Image.fromarray(_enlarged(image, resolution))
    coefficients = (*matrix[0], offset[0], *matrix[1], offset[1])
    return np.asarray(picture.transform(picture.size, Image.Transform.AFFINE, coefficients, Image.Resampling.BICUBIC))


def digits_dataset(
    task: str = "class",
    split: str = "train",
    num_rows: int | None = None,
    resolution: int = 32,
    seed: int = 0,
    *,
    augment: bool = False,
    streaming: bool = False,
) -> Dataset | IterableDataset:
    """The digits as a data set; every row has the digit as `label`, whatever the task.

    Args:
        task: `class`, `caption` ('a handwritten three' to a picture) or `question` ('which digit is this?' to 'three').
        split: one of `train`, `validation`, `test`.
        num_rows: at most so many rows; with `augment`, exactly so many.
        resolution: side of the pictures in pixels, at least 10.
        seed: of `augment`.
        augment: row `i` is a copy of digit `i` modulo their number, changed by `vary_digit`; training only.
        streaming: an `IterableDataset` over the same rows.

    Raises:
        ConfigError: an unknown task or split, a resolution below 10, or changed copies of held-out digits.
    """
    with needed_for("data sets"):
        from datasets import ClassLabel, Dataset

    if task not in TASKS:
        raise ConfigError(f"the digits have no task {task!r}{nearest(task, TASKS)}")
    require_count(resolution, "resolution", least=10)
    if num_rows is not None:
        require_count(num_rows, "num_rows")
    if augment and split != "train":
        raise ConfigError(f"augment changes training digits only, given the split {split!r}")
    images, labels = _digits()
    numbers = split_indices(split)
    if num_rows is None or not augment:
        num_rows = min(len(numbers), len(numbers) if num_rows is None else num_rows)
    rows = []
    for index in range(num_rows):
        number = numbers[index % len(numbers)]
        if augment:
            picture = vary_digit(images[number], resolution, np.random.default_rng((seed, index)))
            row_id = f"digits-{number}-{task}-{seed}-{index}"
        else:
            picture, row_id = _enlarged(images[number], resolution), f"digits-{number}-{task}"
        rows.append(_row(task, picture, int(labels[number]), row_id))
    dataset = Dataset.from_list(rows, features=row_features(ClassLabel(names=list(DIGIT_NAMES))))
    return dataset.to_iterable_dataset() if streaming else dataset


def _row(task: str, picture: np.ndarray, label: int, row_id: str) -> Row:
    image = {"bytes": encode_png(picture, compress_level=1), "path": None}
    about = {"row_id": row_id, "source": "scikit-learn/digits"}
    if task == "class":
        return class_row(image, label, **about)
    if task == "caption":
        return {**caption_row(image, digit_caption(label), **about), "label": label}
    return {**question_row(image, QUESTION, DIGIT_NAMES[label], **about), "label": label}


def _enlarged(image: np.ndarray, resolution: int) -> np.ndarray:
    # Strokes reach the border of the 8 x 8 pixels; the margin keeps them whole, and inside when they are shifted.
    picture = Image.fromarray(np.pad(image, 1)).resize((resolution, resolution), Image.Resampling.BICUBIC)
    grey = np.rint(np.clip(np.asarray(picture), 0, 1) * 255).astype(np.uint8)
    return np.repeat(grey[:, :, None], 3, axis=2)


def _order(number: int) -> bytes:
    return hashlib.blake2b(f"digit-{number}".encode(), digest_size=8).digest()
