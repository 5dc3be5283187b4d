"""The judge of the world Shapes: reads a picture back into a scene and compares it with what a caption claims.

Only classical image analysis: the background is the border's median; a pixel's opacity and colour come from the
straight line in RGB between the background and each of the world's colours; connected pixels are an object; an
object's size follows from its area, and its shape is the one whose rendering agrees best with its opacities.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import ndimage

from ..data.shapes.language import Claims, check_claims, parse_caption
from ..data.shapes.rendering import MINIMUM_WORD_RESOLUTION, shape_coverage
from ..data.shapes.scenes import (
    BACKGROUNDS,
    COLOURS,
    EMBLEM_SCALE,
    INKS,
    SHAPES,
    SIZES,
    TEXTURE_SHADE,
    Scene,
    SceneObject,
)
from ..errors import ImageError
from .shapes_details import find_emblem, has_tones, read_texture, read_word

_COLOUR_NAMES = tuple(COLOURS)
_BACKGROUND_TABLE = np.asarray(list(BACKGROUNDS.values()), dtype=np.float32)
_COLOUR_TABLE = np.asarray(list(COLOURS.values()), dtype=np.float32)
_SIDES = np.asarray(list(SIZES.values()))

#: Objects of the smallest size are never textured.
_SMALLEST_TEXTURED = (SIZES["small"] * SIZES["medium"]) ** 0.5

#: Distances between colours, in units of one 8-bit step of one channel.
_BACKGROUND_TOLERANCE = 60.0
_COLOUR_TOLERANCE = 40.0
_LARGEST_MISFIT = 60.0
_NOTICEABLE = 55.0

#: From RGB to brightness and two differences of colour, the latter weakened: compression and small tokenizers
#: blur them first. A step of grey keeps its length.
_OPPONENT = np.array(
    [[0.299, 0.587, 0.114], [-0.1687, -0.3313, 0.5], [0.5, -0.4187, -0.0813]], dtype=np.float32
).T * np.array([1.732, 1.3, 1.3], dtype=np.float32)

#: Share of the border that must look like the background.
_BORDER_SHARE = 0.8

#: A darker tone is assumed only where it explains a pixel better than the full colour by this much.
_SECOND_TONE_HANDICAP = 14.0

#: The full colour, the darker tone of a texture, and pixels half one and half the other.
_TONES = np.array([1.0, (1 + TEXTURE_SHADE) / 2, TEXTURE_SHADE], dtype=np.float32)

#: Smallest agreement between an object and the rendering of its shape, in [0, 1].
_MINIMUM_AGREEMENT = 0.7

#: What is smaller than this share of the smallest object's box is dirt, not an object.
_DIRT_SHARE = 0.09

#: A pixel belongs to an object from this opacity on; low enough for the darker tone on a black background.
_OPAQUE = 0.45

#: Radii in pixels by which renderings are blurred before they are compared.
_BLURS = (0.0, 0.7, 1.2, 1.7)

#: What a shape loses of its agreement per unit of log(measured side / nearest named side).
_SIZE_PENALTY = 0.3


@dataclass(frozen=True, slots=True)
class Reading:
    """What the judge sees in a picture.

    Args:
        scene: the objects and the word that it recognises, with measured sizes and places.
        num_strays: things that are no objects of the world: blobs, illegible writing, a background of no known kind.
    """

    scene: Scene
    num_strays: int


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether a picture shows what its caption states.

    Args:
        right: every check holds.
        checks: claim to whether it holds, among `count, shape, colour, size, texture, position, emblem, relation,
            background, word`; only what the caption states is there.
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
        pixels = _as_pixels(image)
        background = _background(pixels)
        if background is None:
            nearest = _nearest_background(np.median(pixels.reshape(-1, 3), axis=0))
            return Reading(Scene(nearest), 1)
        return _read_objects(pixels, *background)

    def judge(self, image, caption: str | Claims) -> Verdict:
        """Judges one picture.

        Args:
            image: uint8 `(side, side, 3)`, or a PIL image.
            caption: a sentence of the world's grammar, or what it claims.

        Raises:
            DataError: the caption is no sentence of the grammar.
            ImageError: the picture has another type or shape.
        """
        claims = parse_caption(caption) if isinstance(caption, str) else caption
        return self.judge_reading(self.read(image), claims)

    def judge_reading(self, reading: Reading, claims: Claims) -> Verdict:
        """Judges what `read` saw."""
        checks = check_claims(
            claims, reading.scene, num_strays=reading.num_strays, tolerance=self.position_tolerance
        )
        return Verdict(all(checks.values()), checks)

    def judge_many(self, images: Sequence, captions: Sequence[str | Claims]) -> list[Verdict]:
        """Judges pictures one by one against as many captions.

        Raises:
            ImageError: there are more or fewer pictures than captions.
        """
        if len(images) != len(captions):
            raise ImageError(
                f"got {len(images)} pictures for {len(captions)} captions; give one caption per picture"
            )
        return [self.judge(image, caption) for image, caption in zip(images, captions, strict=True)]


def _as_pixels(image) -> np.ndarray:
    array = np.asarray(image)
    if array.dtype != np.uint8 or array.ndim != 3 or array.shape[2] != 3 or array.shape[0] != array.shape[1]:
        raise ImageError(
            f"the judge reads square RGB pictures as uint8 of shape (side, side, 3), but got {array.dtype} of shape "
            f"{array.shape}"
        )
    if array.shape[0] < 16:
        raise ImageError(f"the judge needs pictures of 16 pixels a side or more, but got {array.shape[0]}")
    return array.astype(np.float32)


def _nearest_background(colour: np.ndarray) -> str:
    return tuple(BACKGROUNDS)[int(np.abs(_BACKGROUND_TABLE - colour).sum(axis=1).argmin())]


def _background(pixels: np.ndarray) -> tuple[str, np.ndarray] | None:
    """Name and measured colour of the background, or None where the border has no known one."""
    border = np.concatenate([pixels[0], pixels[-1], pixels[1:-1, 0], pixels[1:-1, -1]])
    colour = np.median(border, axis=0)
    name = _nearest_background(colour)
    if np.linalg.norm(colour - np.asarray(BACKGROUNDS[name])) > _BACKGROUND_TOLERANCE:
        return None
    if (np.linalg.norm(border - colour, axis=1) < _NOTICEABLE).mean() < _BORDER_SHARE:
        return None
    return name, colour


def _line_fit(offsets: np.ndarray, directions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Where on the line from the background to each colour a pixel lies, and how far beside it.

    Args:
        offsets: `(pixels, 3)`, colour minus background.
        directions: `(colours, 3)`, the same for the world's colours.

    Returns:
        Positions `(pixels, colours)` in [0, 1.1], 1 is the full colour; distances `(pixels, colours)`.
    """
    lengths = (directions * directions).sum(axis=1)
    inner = offsets @ directions.T
    positions = np.clip(inner / lengths, 0.0, 1.1)
    squared = (
        (offsets * offsets).sum(axis=1)[:, None] - 2 * positions * inner + positions * positions * lengths
    )
    return positions, np.sqrt(np.maximum(squared, 0.0))


@functools.cache
def _shape_moments() -> tuple[np.ndarray, np.ndarray]:
    """Areas `(6,)` of the shapes in a box of side 1, and their centroids `(6, 2)` from the box's centre."""
    side = 256
    areas, centroids = [], []
    places = (np.arange(side) + 0.5) / side - 0.5
    for shape in SHAPES:
        coverage = shape_coverage(shape, (side / 2, side / 2), 0.5 * side / 1.1, (0, side), (0, side))
        mass = coverage.sum()
        centroids.append(
            (1.1 * (coverage.sum(axis=0) @ places) / mass, 1.1 * (coverage.sum(axis=1) @ places) / mass)
        )
        areas.append(mass / side**2 * 1.1**2)
    return np.asarray(areas), np.asarray(centroids)


@functools.lru_cache(maxsize=512)
def _blur_matrix(side: int, radius: float) -> np.ndarray:
    """A Gaussian blur along one axis as a matrix `(side, side)`."""
    places = np.arange(side)
    weights = np.exp(-0.5 * ((places[:, None] - places[None, :]) / radius) ** 2)
    return (weights / weights.sum(axis=1, keepdims=True)).astype(np.float32)


@dataclass(frozen=True, slots=True)
class Fit:
    """The best shape for a map of opacities: its name, agreement in [0, 1], side and centre in pixels."""

    shape: str
    agreement: float
    side: float
    centre: tuple[float, float]


def fit_shape(opacity: np.ndarray, left: int, top: int, usual_sides: np.ndarray) -> Fit:
    """Finds the shape whose rendering of the same area and centroid agrees best with a map of opacities.

    The agreement is 1 - sum |opacity - rendering| / sum (opacity + rendering), the best over a few blurs, minus
    0.3 |log(side / nearest usual side)|: blurred beyond legibility, a small star is a circle of no usual size.

    Args:
        opacity: `(rows, columns)` in [0, 1].
        usual_sides: sides in pixels that objects of the world have here.
        left: column of the picture at which the map begins.
        top: row of the picture at which the map begins.
    """
    rows, columns = opacity.shape
    mass = float(opacity.sum())
    x = float(opacity.sum(axis=0) @ (np.arange(columns) + 0.5)) / mass
    y = float(opacity.sum(axis=1) @ (np.arange(rows) + 0.5)) / mass
    areas, centroids = _shape_moments()
    sides = np.sqrt(mass / areas)
    centres = np.stack([x - centroids[:, 0] * sides, y - centroids[:, 1] * sides], axis=1)
    templates = np.stack(
        [
            shape_coverage(shape, tuple(centre), side / 2, (0, rows), (0, columns))
            for shape, centre, side in zip(SHAPES, centres, sides, strict=True)
        ]
    )
    best = np.zeros(len(SHAPES))
    for radius in _BLURS:
        blurred = templates
        if radius:
            blurred = _blur_matrix(rows, radius) @ templates @ _blur_matrix(columns, radius).T
        difference = np.abs(blurred - opacity).sum(axis=(1, 2))
        np.maximum(best, 1 - difference / (mass + blurred.sum(axis=(1, 2))), out=best)
    best -= _SIZE_PENALTY * np.abs(np.log(sides[:, None] / usual_sides)).min(axis=1)
    winner = int(best.argmax())
    centre = (left + float(centres[winner, 0]), top + float(centres[winner, 1]))
    return Fit(SHAPES[winner], float(best[winner]), float(sides[winner]), centre)


def _best_tones(
    positions: np.ndarray, distances: np.ndarray, num_colours: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Opacities under the full colours, opacities under the tone that fits best, and that tone's misfit."""
    positions = positions.reshape(len(positions), len(_TONES), num_colours)
    distances = distances.reshape(len(distances), len(_TONES), num_colours)
    handicapped = distances + _SECOND_TONE_HANDICAP * (_TONES[None, :, None] < 1)
    best = handicapped.argmin(axis=1)[:, None]
    toned = np.take_along_axis(positions, best, axis=1)[:, 0]
    return positions[:, 0], toned, np.take_along_axis(distances, best, axis=1)[:, 0]


def _torn(foreground: np.ndarray, best: np.ndarray, row_of: np.ndarray) -> np.ndarray:
    """Pixels between two stripes of one colour that, half of each tone, happen to look like a faint other colour."""
    if len(best) == 0:
        return np.zeros_like(foreground)
    colours = np.where(row_of >= 0, best[row_of], -1)
    above, middle, below = colours[:-2], colours[1:-1], colours[2:]
    torn = np.zeros_like(foreground)
    between = foreground[:-2] & ~foreground[1:-1] & foreground[2:]
    torn[1:-1] = between & (middle >= 0) & (above == below) & (middle != above)
    return torn


def _read_objects(pixels: np.ndarray, background_name: str, background: np.ndarray) -> Reading:
    side = pixels.shape[0]
    offsets = (pixels - background).reshape(-1, 3) @ _OPPONENT
    noticeable = np.linalg.norm(offsets, axis=1) > 0.4 * _NOTICEABLE
    num_colours = len(_COLOUR_NAMES)
    ink = np.asarray(INKS[background_name], dtype=np.float32)
    tones = (_TONES[:, None, None] * _COLOUR_TABLE).reshape(-1, 3)
    candidates = (np.concatenate([tones, ink[None]]) - background) @ _OPPONENT
    positions, distances = _line_fit(offsets[noticeable], candidates)
    full, toned, misfits = _best_tones(positions[:, :-1], distances[:, :-1], num_colours)
    # Ink is one more column: tables of opacities and misfits for nine "colours".
    full = np.concatenate([full, positions[:, -1:]], axis=1)
    opacities = np.concatenate([toned, positions[:, -1:]], axis=1)
    misfits = np.concatenate([misfits, distances[:, -1:]], axis=1)
    row_of = np.full(side * side, -1, dtype=np.int64)
    row_of[noticeable] = np.arange(len(opacities))
    best = misfits.argmin(axis=1) if len(misfits) else np.zeros(0, dtype=np.int64)
    opacity = np.zeros(side * side, dtype=np.float32)
    opacity[noticeable] = opacities[np.arange(len(best)), best]
    foreground = (opacity > _OPAQUE).reshape(side, side)
    foreground |= _torn(foreground, best, row_of.reshape(side, side))
    labels, num_labels = ndimage.label(foreground)
    row_of = row_of.reshape(side, side)

    dirt = _DIRT_SHARE * (SIZES["small"] * side) ** 2
    objects: list[SceneObject] = []
    num_strays = 0
    ink_opacity = np.zeros((side, side), dtype=np.float32)
    dirt_area = 0
    for label, box in enumerate(ndimage.find_objects(labels, num_labels), start=1):
        own = labels[box] == label
        area = int(own.sum())
        rows = row_of[box][own]
        totals = np.minimum(misfits[rows], _LARGEST_MISFIT).mean(axis=0)
        colour = int(totals.argmin())
        if colour == num_colours:
            region = _grown(box, side)
            values = row_of[region]
            known = values >= 0
            ink_opacity[region][known] = np.maximum(
                ink_opacity[region][known], opacities[values[known], num_colours]
            )
            continue
        if area < dirt:
            dirt_area += area
            continue
        found = _read_object(pixels, labels, label, box, row_of, (full, opacities), best, colour)
        if found is None or totals[colour] > _COLOUR_TOLERANCE:
            num_strays += 1
        else:
            objects.append(found)
    if dirt_area > 3 * dirt:
        num_strays += 1
    num_strays += _num_smudges(offsets.reshape(side, side, 3), foreground, dirt)
    word = None
    if ink_opacity.sum() > dirt:
        word = read_word(ink_opacity) if side >= MINIMUM_WORD_RESOLUTION else None
        num_strays += word is None
    return Reading(Scene(background_name, tuple(objects), word), num_strays)


def _grown(box: tuple[slice, slice], side: int, by: int = 2) -> tuple[slice, slice]:
    return tuple(slice(max(0, part.start - by), min(side, part.stop + by)) for part in box)  # type: ignore[return-value]


def _num_smudges(offsets: np.ndarray, foreground: np.ndarray, dirt: float) -> int:
    """Number of patches that clearly differ from the background without being opaque in any known colour."""
    rest = (np.linalg.norm(offsets, axis=2) > _NOTICEABLE) & ~ndimage.binary_dilation(
        foreground, iterations=2
    )
    if rest.sum() < dirt:
        return 0
    labels, count = ndimage.label(rest)
    return int((np.bincount(labels.ravel(), minlength=count + 1)[1:] >= dirt).sum())


def _read_object(
    pixels: np.ndarray,
    labels: np.ndarray,
    label: int,
    box: tuple[slice, slice],
    row_of: np.ndarray,
    opacities: tuple[np.ndarray, np.ndarray],
    best: np.ndarray,
    colour: int,
) -> SceneObject | None:
    """One object from its connected pixels, or None where no shape agrees with them."""
    side = pixels.shape[0]
    region = _grown(box, side)
    own = labels[region] == label
    filled = ndimage.binary_fill_holes(own)
    if filled.sum() - own.sum() > 0.1 * filled.sum():
        return None
    interior = ndimage.binary_erosion(filled)
    patch = pixels[region]
    rows = row_of[region]
    others = (labels[region] != 0) & ~own
    texture = "solid"
    toned = has_tones(patch, interior, _COLOUR_TABLE[colour])
    while True:
        opacity = np.where(rows >= 0, opacities[toned][rows, colour], 0.0).clip(max=1.0)
        if not toned:
            # Around a solid object a darker tone is an artefact of compression, not a part of it.
            filled = ndimage.binary_fill_holes(own & (opacity > _OPAQUE))
            interior = ndimage.binary_erosion(filled)
        opacity[~ndimage.binary_dilation(filled, iterations=2) | others] = 0.0
        opacity[interior] = 1.0
        if not opacity.any():
            return None
        fit = fit_shape(opacity, region[1].start, region[0].start, _SIDES * side)
        if not toned:
            break
        centre = (fit.centre[0] - region[1].start, fit.centre[1] - region[0].start)
        if fit.side < _SMALLEST_TEXTURED * side:
            toned = False
            continue
        texture = read_texture(patch, interior, _COLOUR_TABLE[colour], centre, fit.side / 2)
        if texture != "solid":
            break
        toned = False
    if fit.agreement < _MINIMUM_AGREEMENT:
        return None
    name = _COLOUR_NAMES[colour]
    emblem_sides = np.asarray([fit.side * EMBLEM_SCALE])
    emblem = find_emblem(
        patch,
        interior,
        np.where(rows >= 0, best[rows], colour),
        colour,
        lambda o: fit_shape(o, 0, 0, emblem_sides),
    )
    return SceneObject(
        fit.shape,
        name,
        fit.side / side,
        (fit.centre[0] / side, fit.centre[1] / side),
        "solid" if emblem else texture,
        emblem,
    )


def wilson_interval(num_right: int, num_all: int) -> tuple[float, float]:
    """The 95 % interval of a rate after Wilson: `(p + z²/2n ± z √(p(1-p)/n + z²/4n²)) / (1 + z²/n)`, z = 1.96.

    Raises:
        ValueError: `num_all` is not positive.
    """
    if num_all <= 0:
        raise ValueError(f"a rate needs at least one case, but got {num_all}")
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
        `n`, `right` (share), `interval` (95 %), and the same three by kind of caption (`by_kind`) and by checked
        claim (`by_attribute`).

    Raises:
        ImageError: no pictures, or more or fewer pictures than captions.
    """
    claims = [parse_caption(caption) if isinstance(caption, str) else caption for caption in captions]
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
