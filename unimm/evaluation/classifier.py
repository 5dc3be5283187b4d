"""The judge of drawn digits: a classifier trained on real ones, whose accuracy is measured on held-out real ones."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from ..data.digits import DIGIT_NAMES, digit_images, digits_dataset
from ..errors import DataError, ImageError
from .answers import rate_record

if TYPE_CHECKING:
    from sklearn.svm import SVC

#: Side that pictures are shrunk to; the real digits are 8 x 8 pixels in a margin of one.
SIDE = 10


class DigitsJudge:
    """A support vector machine over pictures shrunk to 10 x 10 grey values.

    Made by `fit`. It names one of the ten digits for any picture, also for one without a digit: on such it is right as
    often as chance is.

    Args:
        classifier: fitted on rows of 100 grey values in [0, 1].
    """

    def __init__(self, classifier: SVC):
        self._classifier = classifier
        images, labels = digit_images("test")
        #: Share of the held-out real digits that it names right: `{"n", "right", "interval"}` (95 %).
        self.accuracy: dict[str, Any] = self.score(images, labels)

    @classmethod
    def fit(cls, seed: int = 0, num_copies: int = 4) -> DigitsJudge:
        """Trains on the real digits' training split and slightly changed copies of them; about two seconds.

        Args:
            seed: of the copies.
            num_copies: changed copies of each digit.
        """
        from sklearn.svm import SVC

        images, labels = digit_images("train")
        features, targets = [_features(images)], [labels]
        if num_copies:
            copies = digits_dataset(num_rows=num_copies * len(labels), augment=True, seed=seed)
            features.append(_features([row["images"][0] for row in copies]))
            targets.append(np.asarray(copies["label"]))
        classifier = SVC(C=10.0, gamma="scale")
        classifier.fit(np.concatenate(features), np.concatenate(targets))
        return cls(classifier)

    def predict(self, images: np.ndarray | Sequence[Any]) -> np.ndarray:
        """The digit that each picture shows.

        Args:
            images: uint8 `(pictures, height, width, 3)`, or a list of PIL pictures; white on black, 10 pixels or more.

        Returns:
            int64 `(pictures,)`, 0 to 9.

        Raises:
            ImageError: another shape or type, or a picture below 10 pixels.
        """
        return self._classifier.predict(_features(images)).astype(np.int64)

    def score(self, images: np.ndarray | Sequence[Any], labels: Sequence[int] | np.ndarray) -> dict[str, Any]:
        """How many pictures show the digit that they should: `{"n", "right", "interval"}` (95 %).

        Args:
            images: as in `predict`.
            labels: the wanted digit of each, 0 to 9.

        Raises:
            DataError: another number of labels than of pictures, or a label outside of 0 to 9.
            ImageError: as in `predict`.
        """
        wanted = np.asarray(labels)
        if len(wanted) != len(images):
            raise DataError(f"expected one label per picture, given {len(wanted)} labels for {len(images)} pictures")
        if not np.isin(wanted, np.arange(len(DIGIT_NAMES))).all():
            raise DataError(f"labels must be digits, 0 to 9; given {sorted(set(wanted.tolist()))}")
        return rate_record(int((self.predict(images) == wanted).sum()), len(wanted))


def _features(images: np.ndarray | Sequence[Any]) -> np.ndarray:
    if len(images) == 0:
        raise ImageError("expected at least one picture, given none")
    rows = []
    for image in images:
        if not isinstance(image, Image.Image):
            if not (
                isinstance(image, np.ndarray) and image.dtype == np.uint8 and image.ndim == 3 and image.shape[2] == 3
            ):
                given = f"{image.dtype} {image.shape}" if isinstance(image, np.ndarray) else type(image).__name__
                raise ImageError(f"expected uint8 pictures (height, width, 3), given {given}")
            image = Image.fromarray(image)
        if min(image.size) < SIDE:
            raise ImageError(f"expected pictures of {SIDE} pixels or more, given {image.width} x {image.height}")
        grey = image.convert("L").resize((SIDE, SIDE), Image.Resampling.BOX)
        rows.append(np.asarray(grey, dtype=np.float32).ravel() / 255)
    return np.stack(rows)
