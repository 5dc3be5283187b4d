"""How the judge of Shapes reads a picture: background, opacities, objects, ink, and what is left over."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from ..data.shapes.rendering import MINIMUM_WORD_RESOLUTION
from ..data.shapes.scenes import (
    BACKGROUNDS,
    COLOURS,
    EMBLEM_SCALE,
    INKS,
    SIZES,
    TEXTURE_SHADE,
    Scene,
    SceneObject,
    SceneWord,
)
from .shapes_details import find_emblem, has_tones, read_texture, read_word
from .shapes_fitting import Fit, fit_shape

_COLOUR_NAMES = tuple(COLOURS)
_BACKGROUND_TABLE = np.asarray(list(BACKGROUNDS.values()), dtype=np.float32)
_COLOUR_TABLE = np.asarray(list(COLOURS.values()), dtype=np.float32)

#: Column of ink in the tables of opacities, after the colours.
_INK = len(COLOURS)

_SIDES = np.asarray(list(SIZES.values()))

#: Objects of the smallest size are never textured.
_SMALLEST_TEXTURED = (SIZES["small"] * SIZES["medium"]) ** 0.5

#: Distances between colours, in units of one 8-bit step of one channel.
_BACKGROUND_TOLERANCE = 60.0
_COLOUR_TOLERANCE = 40.0
_LARGEST_MISFIT = 60.0
_NOTICEABLE = 55.0
_FAINT = 22.0

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

#: Dirt that together covers this many times as much is a stray thing after all.
_MUCH_DIRT = 3

#: An object with holes of more than this share of it is none of the world's.
_HOLE_SHARE = 0.1

#: A pixel belongs to an object from this opacity on; low enough for the darker tone on a black background.
_OPAQUE = 0.45


@dataclass(frozen=True, slots=True)
class Reading:
    """What the judge sees in a picture.

    Args:
        scene: the objects and the word that it recognises, with measured sizes and places.
        num_strays: things that are no objects of the world: blobs, illegible writing, a background of no
            known kind.
    """

    scene: Scene
    num_strays: int


def read_picture(pixels: np.ndarray) -> Reading:
    """Reads a picture back into a scene.

    Args:
        pixels: float32 `(side, side, 3)` in [0, 255].
    """
    background = _background(pixels)
    if background is None:
        return Reading(Scene(_nearest_background(np.median(pixels.reshape(-1, 3), axis=0))), 1)
    name, colour = background
    return _PictureReader(pixels, name, colour).read()


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


class _PictureReader:
    """One picture on its way to a reading.

    Every pixel that differs from the background has a row in three tables of nine columns, the eight colours
    and ink: its opacity if it had this full colour (`full`), its opacity in whichever tone of the colour fits
    best (`toned`), and how far it lies beside that tone (`misfits`).

    Args:
        pixels: float32 `(side, side, 3)` in [0, 255].
        background_name: one of `BACKGROUNDS`.
        background: its measured colour, `(3,)`.
    """

    def __init__(self, pixels: np.ndarray, background_name: str, background: np.ndarray) -> None:
        self.pixels = pixels
        self.side = pixels.shape[0]
        self.background_name = background_name
        self.dirt = _DIRT_SHARE * (SIZES["small"] * self.side) ** 2
        offsets = (pixels - background) @ _OPPONENT
        self.lengths = np.linalg.norm(offsets, axis=2)
        noticeable = self.lengths > _FAINT
        self.row_of = np.full((self.side, self.side), -1, dtype=np.int64)
        self.row_of[noticeable] = np.arange(int(noticeable.sum()))
        ink = np.asarray(INKS[background_name], dtype=np.float32)
        tones = (_TONES[:, None, None] * _COLOUR_TABLE).reshape(-1, 3)
        candidates = (np.concatenate([tones, ink[None]]) - background) @ _OPPONENT
        positions, distances = _line_fit(offsets[noticeable], candidates)
        full, toned, misfits = _best_tones(positions[:, :-1], distances[:, :-1])
        self.full = np.concatenate([full, positions[:, -1:]], axis=1)
        self.toned = np.concatenate([toned, positions[:, -1:]], axis=1)
        self.misfits = np.concatenate([misfits, distances[:, -1:]], axis=1)
        self.nearest = np.full((self.side, self.side), -1, dtype=np.int64)
        self.nearest[noticeable] = self.misfits.argmin(axis=1)
        opacity = np.zeros((self.side, self.side), dtype=np.float32)
        opacity[noticeable] = np.take_along_axis(self.toned, self.nearest[noticeable][:, None], axis=1)[:, 0]
        self.foreground = opacity > _OPAQUE
        self.foreground |= self._torn()
        self.labels, self.num_labels = ndimage.label(self.foreground)

    def read(self) -> Reading:
        """The objects, the word, and the number of things that are neither."""
        objects: list[SceneObject] = []
        ink = np.zeros((self.side, self.side), dtype=np.float32)
        num_strays = self._num_smudges()
        dirt_area = 0
        for label, box in enumerate(ndimage.find_objects(self.labels), start=1):
            own = self.labels[box] == label
            misfits = np.minimum(self.misfits[self.row_of[box][own]], _LARGEST_MISFIT).mean(axis=0)
            colour = int(misfits.argmin())
            if colour == _INK:
                self._collect_ink(ink, self._grown(box))
                continue
            area = int(own.sum())
            if area < self.dirt:
                dirt_area += area
                continue
            found = self._read_object(label, box, colour) if misfits[colour] <= _COLOUR_TOLERANCE else None
            if found is None:
                num_strays += 1
            else:
                objects.append(found)
        num_strays += dirt_area > _MUCH_DIRT * self.dirt
        word: SceneWord | None = None
        if ink.sum() > self.dirt:
            word = read_word(ink) if self.side >= MINIMUM_WORD_RESOLUTION else None
            num_strays += word is None
        return Reading(Scene(self.background_name, tuple(objects), word), int(num_strays))

    def _grown(self, box: tuple[slice, slice]) -> tuple[slice, slice]:
        rows, columns = (slice(max(0, part.start - 2), min(self.side, part.stop + 2)) for part in box)
        return rows, columns

    def _torn(self) -> np.ndarray:
        """Pixels between two stripes of one colour that, half of each tone, look like a faint other one."""
        above, middle, below = self.nearest[:-2], self.nearest[1:-1], self.nearest[2:]
        between = self.foreground[:-2] & ~self.foreground[1:-1] & self.foreground[2:]
        torn = np.zeros_like(self.foreground)
        torn[1:-1] = between & (middle >= 0) & (above == below) & (middle != above)
        return torn

    def _num_smudges(self) -> int:
        """Number of patches that clearly differ from the background but are opaque in no known colour."""
        rest = (self.lengths > _NOTICEABLE) & ~ndimage.binary_dilation(self.foreground, iterations=2)
        if rest.sum() < self.dirt:
            return 0
        labels, count = ndimage.label(rest)
        return int((np.bincount(labels.ravel(), minlength=count + 1)[1:] >= self.dirt).sum())

    def _collect_ink(self, ink: np.ndarray, region: tuple[slice, slice]) -> None:
        rows = self.row_of[region]
        known = rows >= 0
        ink[region][known] = np.maximum(ink[region][known], self.full[rows[known], _INK])

    def _read_object(self, label: int, box: tuple[slice, slice], colour: int) -> SceneObject | None:
        """One object from its connected pixels, or None where no shape agrees with them."""
        region = self._grown(box)
        own = self.labels[region] == label
        filled = ndimage.binary_fill_holes(own)
        if filled.sum() - own.sum() > _HOLE_SHARE * filled.sum():
            return None
        interior = ndimage.binary_erosion(filled)
        patch = self.pixels[region]
        texture = "solid"
        fit: Fit | None = None
        if has_tones(patch, interior, _COLOUR_TABLE[colour]):
            fit = self._fit(self.toned, region, label, colour, filled, interior)
            if fit is not None and fit.side >= _SMALLEST_TEXTURED * self.side:
                centre = (fit.centre[0] - region[1].start, fit.centre[1] - region[0].start)
                texture = read_texture(patch, interior, _COLOUR_TABLE[colour], centre, fit.side / 2)
        if texture == "solid":
            # Around a solid object a darker tone is an artefact of compression, not a part of it.
            opaque = self._opacity(self.full, region, colour) > _OPAQUE
            filled = ndimage.binary_fill_holes(own & opaque)
            interior = ndimage.binary_erosion(filled)
            fit = self._fit(self.full, region, label, colour, filled, interior)
        if fit is None or fit.agreement < _MINIMUM_AGREEMENT:
            return None
        sides = np.asarray([fit.side * EMBLEM_SCALE])
        nearest = np.where(self.nearest[region] >= 0, self.nearest[region], colour)
        emblem = find_emblem(patch, interior, nearest, colour, lambda opacity: fit_shape(opacity, 0, 0, sides))
        return SceneObject(
            fit.shape,
            _COLOUR_NAMES[colour],
            fit.side / self.side,
            (fit.centre[0] / self.side, fit.centre[1] / self.side),
            "solid" if emblem else texture,
            emblem,
        )

    def _opacity(self, table: np.ndarray, region: tuple[slice, slice], colour: int) -> np.ndarray:
        rows = self.row_of[region]
        return np.where(rows >= 0, table[rows, colour], 0.0).clip(max=1.0)

    def _fit(
        self,
        table: np.ndarray,
        region: tuple[slice, slice],
        label: int,
        colour: int,
        filled: np.ndarray,
        interior: np.ndarray,
    ) -> Fit | None:
        """The best shape for the opacities in and close around an object; None where nothing is opaque."""
        opacity = self._opacity(table, region, colour)
        others = (self.labels[region] != 0) & (self.labels[region] != label)
        opacity[~ndimage.binary_dilation(filled, iterations=2) | others] = 0.0
        opacity[interior] = 1.0
        if not opacity.any():
            return None
        return fit_shape(opacity, region[1].start, region[0].start, _SIDES * self.side)


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
    squared = (offsets * offsets).sum(axis=1)[:, None] - 2 * positions * inner + positions * positions * lengths
    return positions, np.sqrt(np.maximum(squared, 0.0))


def _best_tones(positions: np.ndarray, distances: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Opacities under the full colours, opacities under the tone that fits best, and that tone's misfit."""
    positions = positions.reshape(len(positions), len(_TONES), _INK)
    distances = distances.reshape(len(distances), len(_TONES), _INK)
    handicapped = distances + _SECOND_TONE_HANDICAP * (_TONES[None, :, None] < 1)
    best = handicapped.argmin(axis=1)[:, None]
    toned = np.take_along_axis(positions, best, axis=1)[:, 0]
    return positions[:, 0], toned, np.take_along_axis(distances, best, axis=1)[:, 0]
