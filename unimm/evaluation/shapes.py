"""The judge of the world Shapes: reads a picture back into a scene and checks what a caption claims.

Only classical image analysis. The background is the border's median. A pixel's opacity and colour come from
the straight line between the background and each of the world's colours. Connected pixels are an object; its
size follows from its area, and its shape is the one whose rendering agrees best with its opacities.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Integral
from typing import Any

import numpy as np

from ..data.shapes.language import Claims, check_claims, parse_caption
from ..errors import DataError, ImageError
from .shapes_reading import Reading, read_picture


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether a picture shows what its caption states.

    Args:
        right: every check holds.
        checks: claim to whether it holds, among `count, shape, colour, size, texture, position, emblem,
            relation, background, word`; only what the caption states is there.
    """

    right: bool
    checks: dict[str, bool]


class ShapesJudge:
    """Reads pictures of the world Shapes and judges them against captions.

    Args:
        position_tolerance: by how much a centre may lie outside of the stated region, as a share of the side.
    """

    def __init__(self, position_tolerance: float = 0.03) -> None:
        self.position_tolerance = position_tolerance

    def read(self, image) -> Reading:
        """Reads a picture back into a scene.

        Args:
            image: uint8 `(side, side, 3)`, or a PIL image.

        Raises:
            ImageError: another type, shape, or a side under 16 pixels.
        """
        return read_picture(_as_pixels(image))

    def judge(self, image, caption: str | Claims) -> Verdict:
        """Judges one picture.

        Args:
            image: uint8 `(side, side, 3)`, or a PIL image.
            caption: a sentence of the world's grammar, or what it claims.

        Raises:
            DataError: the caption is no sentence of the grammar.
            ImageError: the picture has another type or shape.
        """
        return self.judge_reading(self.read(image), _as_claims(caption))

    def judge_reading(self, reading: Reading, claims: Claims) -> Verdict:
        """Judges what `read` saw."""
        checks = check_claims(claims, reading.scene, num_strays=reading.num_strays, tolerance=self.position_tolerance)
        return Verdict(all(checks.values()), checks)

    def judge_many(self, images: Sequence, captions: Sequence[str | Claims]) -> list[Verdict]:
        """Judges pictures one by one against as many captions.

        Raises:
            ImageError: there are more or fewer pictures than captions.
        """
        if len(images) != len(captions):
            raise ImageError(f"got {len(images)} pictures for {len(captions)} captions; give one caption per picture")
        return [self.judge(image, caption) for image, caption in zip(images, captions, strict=True)]


def _as_claims(caption: Any) -> Claims:
    if not isinstance(caption, str | Claims):
        raise DataError(f"a caption is a sentence of the world's grammar, given {caption!r}")
    return parse_caption(caption) if isinstance(caption, str) else caption


def _as_pixels(image) -> np.ndarray:
    array = np.asarray(image)
    if array.dtype != np.uint8 or array.ndim != 3 or array.shape[2] != 3 or array.shape[0] != array.shape[1]:
        raise ImageError(
            "the judge reads square RGB pictures as uint8 of shape (side, side, 3), but got "
            f"{array.dtype} of shape {array.shape}"
        )
    if array.shape[0] < 16:
        raise ImageError(f"the judge needs pictures of 16 pixels a side or more, but got {array.shape[0]}")
    return array.astype(np.float32)


def wilson_interval(num_right: int, num_all: int) -> tuple[float, float]:
    """The 95 % interval of a rate after Wilson.

    `(p + z²/2n ± z √(p(1-p)/n + z²/4n²)) / (1 + z²/n)` with z = 1.96.

    Raises:
        ValueError: `num_all` is not positive, or `num_right` not within it.
    """
    if not isinstance(num_all, Integral) or num_all <= 0:
        raise ValueError(f"a rate needs at least one case, but got {num_all!r}")
    if not isinstance(num_right, Integral) or not 0 <= num_right <= num_all:
        raise ValueError(f"the number of right cases must lie in 0 to {num_all}, but got {num_right!r}")
    z = 1.959964
    share = num_right / num_all
    middle = share + z * z / (2 * num_all)
    half = z * np.sqrt(share * (1 - share) / num_all + (z / (2 * num_all)) ** 2)
    scale = 1 + z * z / num_all
    return float(max(0.0, (middle - half) / scale)), float(min(1.0, (middle + half) / scale))


def evaluate_generations(
    images: Sequence, captions: Sequence[str | Claims], judge: ShapesJudge | None = None
) -> dict[str, Any]:
    """Judges one picture per caption and counts.

    Args:
        images: pictures, uint8 `(side, side, 3)` or PIL.
        captions: as many sentences of the world's grammar.
        judge: the judge, by default one with its usual tolerance.

    Returns:
        `n`, `right` (share), `interval` (95 %), and the same three by kind of caption (`by_kind`) and by
        checked claim (`by_attribute`).

    Raises:
        ImageError: no pictures, or more or fewer pictures than captions.
        DataError: captions that are no sentences of the grammar.
    """
    if not isinstance(captions, Sequence) or isinstance(captions, str):
        raise DataError(f"captions must be a list of sentences, given {captions!r}")
    claims = [_as_claims(caption) for caption in captions]
    if not claims:
        raise ImageError("there is nothing to evaluate: got no pictures")
    verdicts = (judge or ShapesJudge()).judge_many(images, claims)
    by_kind: dict[str, list[bool]] = {}
    by_attribute: dict[str, list[bool]] = {}
    for claim, verdict in zip(claims, verdicts, strict=True):
        by_kind.setdefault(claim.kind, []).append(verdict.right)
        for name, holds in verdict.checks.items():
            by_attribute.setdefault(name, []).append(holds)
    return {
        **_rate([verdict.right for verdict in verdicts]),
        "by_kind": {name: _rate(outcomes) for name, outcomes in sorted(by_kind.items())},
        "by_attribute": {name: _rate(outcomes) for name, outcomes in sorted(by_attribute.items())},
    }


def _rate(outcomes: list[bool]) -> dict[str, Any]:
    num_right = sum(outcomes)
    return {
        "n": len(outcomes),
        "right": num_right / len(outcomes),
        "interval": list(wilson_interval(num_right, len(outcomes))),
    }
