"""The finer parts of the judge of Shapes: textures, emblems inside of objects, and written words."""

from __future__ import annotations

import functools
from collections.abc import Callable

import numpy as np
from scipy import ndimage

from ..data.shapes.font import GLYPH_HEIGHT, GLYPH_WIDTH, LETTERS, glyphs
from ..data.shapes.rendering import second_tone
from ..data.shapes.scenes import COLOURS, GLYPH_CELL, SceneWord

_COLOUR_NAMES = tuple(COLOURS)
_COLOUR_TABLE = np.asarray(list(COLOURS.values()), dtype=np.float32)

#: Standard deviation of the brightness inside an object, as a share of its colour, below which it is solid.
_TONE_DEVIATION = 0.05

#: Smallest correlation of the brightness with a texture, and smallest contrast as a share of the colour.
_MINIMUM_TEXTURE_CORRELATION = 0.55
_MINIMUM_CONTRAST = 0.16

_TEXTURE_BLURS = (0.0, 0.7, 1.2)

#: Where a texture may lie against its object's centre, in half sides of the object's box.
_TEXTURE_SHIFTS = {
    "striped": tuple((0.0, shift) for shift in (-0.17, 0.0, 0.17)),
    "dotted": tuple((x, y) for x in (-0.12, 0.0, 0.12) for y in (-0.12, 0.0, 0.12)),
}

#: Share of an object's inside that another colour must have to be an emblem.
_EMBLEM_SHARE = 0.07

_MINIMUM_EMBLEM_AGREEMENT = 0.6

#: Smallest correlation between a letter's cells and its blurred bitmap.
_MINIMUM_CORRELATION = 0.72

#: Radii in pixels by which bitmaps of letters are blurred before they are compared.
_LETTER_BLURS = (0.5, 0.9, 1.4)

#: Where letters are looked for around the middle of the ink, in cells.
_SHIFTS = np.array([-0.6, -0.3, 0.0, 0.3, 0.6])

_MAXIMUM_LETTERS = 6


def has_tones(pixels: np.ndarray, interior: np.ndarray, colour: np.ndarray) -> bool:
    """Whether the brightness inside of an object varies so much that it may have a texture.

    Args:
        pixels: `(rows, columns, 3)` in [0, 255].
        interior: `(rows, columns)`, the pixels that are surely inside.
        colour: `(3,)`, the object's colour.
    """
    return bool(interior.any()) and float((pixels[interior] @ colour).std()) > _TONE_DEVIATION * float(colour @ colour)


def read_texture(
    pixels: np.ndarray, interior: np.ndarray, colour: np.ndarray, centre: tuple[float, float], half: float
) -> str:
    """The texture whose blurred rendering explains best how the brightness varies inside of an object.

    Args:
        pixels: `(rows, columns, 3)` in [0, 255].
        interior: `(rows, columns)`, the pixels that are surely inside.
        colour: `(3,)`, the object's colour.
        centre: x and y of the object's centre in the patch, in pixels.
        half: half the side of the object's box in pixels.
    """
    if interior.sum() < 8:
        return "solid"
    darkness = -((pixels @ colour) / float(colour @ colour))[interior]
    darkness = darkness - darkness.mean()
    norm = float(np.linalg.norm(darkness))
    if norm == 0.0:
        return "solid"
    rows, columns = interior.shape
    best_correlation, best_texture = _MINIMUM_TEXTURE_CORRELATION, "solid"
    for texture, shifts in _TEXTURE_SHIFTS.items():
        for shift_x, shift_y in shifts:
            place = (centre[0] + shift_x * half, centre[1] + shift_y * half)
            tone = np.broadcast_to(second_tone(texture, place, half, (0, rows), (0, columns)), interior.shape)
            for radius in _TEXTURE_BLURS:
                expected = (ndimage.gaussian_filter(tone, radius) if radius else tone)[interior]
                expected = expected - expected.mean()
                energy = float(expected @ expected)
                inner = float(darkness @ expected)
                if energy == 0.0 or inner < _MINIMUM_CONTRAST * energy:
                    continue
                correlation = inner / (norm * energy**0.5)
                if correlation > best_correlation:
                    best_correlation, best_texture = correlation, texture
    return best_texture


def find_emblem(
    pixels: np.ndarray, interior: np.ndarray, nearest: np.ndarray, colour: int, fit_shape: Callable
) -> tuple[str, str] | None:
    """Shape and colour of a figure inside of an object, if there is one.

    Args:
        pixels: `(rows, columns, 3)` in [0, 255].
        interior: `(rows, columns)`, the pixels that are surely inside.
        nearest: `(rows, columns)`, the number of each pixel's nearest colour.
        colour: the object's own colour.
        fit_shape: finds the best shape for a map of opacities, given the usual size of emblems in this
            object.
    """
    deviating = interior & (nearest != colour) & (nearest < len(_COLOUR_NAMES))
    if deviating.sum() < _EMBLEM_SHARE * interior.sum() or deviating.sum() < 5:
        return None
    other = int(np.bincount(nearest[deviating]).argmax())
    direction = _COLOUR_TABLE[other] - _COLOUR_TABLE[colour]
    opacity = ((pixels - _COLOUR_TABLE[colour]) @ direction / float(direction @ direction)).clip(0.0, 1.0)
    opacity[~interior] = 0.0
    distance = np.linalg.norm(pixels - _COLOUR_TABLE[colour] - opacity[..., None] * direction, axis=2)
    if float((distance * interior).sum() / interior.sum()) > 40 or opacity.max() < 0.6:
        return None
    fit = fit_shape(opacity)
    return (fit.shape, _COLOUR_NAMES[other]) if fit.agreement >= _MINIMUM_EMBLEM_AGREEMENT else None


def read_word(opacity: np.ndarray) -> SceneWord | None:
    """Reads a word of the world's font letter by letter, or None where no word is legible.

    Each letter is the one whose blurred bitmap correlates best; where the word lies and how blurred it is
    are those with the best worst letter.

    Args:
        opacity: `(side, side)` in [0, 1], how much ink each pixel has.
    """
    side = opacity.shape[0]
    cell = GLYPH_CELL * side
    rows = np.nonzero(opacity.max(axis=1) > 0.35)[0]
    columns = np.nonzero(opacity.max(axis=0) > 0.35)[0]
    if len(rows) == 0 or len(columns) == 0:
        return None
    height, width = rows[-1] + 1 - rows[0], columns[-1] + 1 - columns[0]
    num_letters = round((width / cell + 1) / (GLYPH_WIDTH + 1) - 0.05)
    if abs(height - GLYPH_HEIGHT * cell) > 1.9 * cell or not 1 <= num_letters <= _MAXIMUM_LETTERS:
        return None
    num_columns = (GLYPH_WIDTH + 1) * num_letters + 1
    num_rows = GLYPH_HEIGHT + 2
    middle_y = (rows[0] + rows[-1] + 1) / 2
    middle_x = (columns[0] + columns[-1] + 1) / 2
    best_score, best_text, best_place = -np.inf, "", (0.0, 0.0)
    for shift_y in _SHIFTS * cell:
        vertical = _cell_means(num_rows, middle_y + shift_y - num_rows * cell / 2, cell, side)
        strip = vertical @ opacity
        for shift_x in _SHIFTS * cell:
            horizontal = _cell_means(num_columns, middle_x + shift_x - num_columns * cell / 2, cell, side)
            cells = strip @ horizontal.T
            step, window = 2 * (GLYPH_WIDTH + 1), 2 * (GLYPH_WIDTH + 2)
            letters = np.stack([cells[:, step * n : step * n + window].ravel() for n in range(num_letters)])
            letters = letters - letters.mean(axis=1, keepdims=True)
            norms = np.linalg.norm(letters, axis=1, keepdims=True)
            if norms.min() < 1e-3:
                continue
            correlations = (letters / norms) @ _letter_templates(round(cell, 3))
            for level in correlations.reshape(num_letters, -1, len(LETTERS)).transpose(1, 0, 2):
                score = float(level.max(axis=1).min())
                if score > best_score:
                    best_score = score
                    best_text = "".join(LETTERS[number] for number in level.argmax(axis=1))
                    best_place = ((middle_x + shift_x) / side, (middle_y + shift_y) / side)
    return SceneWord(best_text, best_place) if best_score > _MINIMUM_CORRELATION else None


@functools.lru_cache(maxsize=64)
def _letter_templates(cell: float) -> np.ndarray:
    """The letters with a margin of one cell, two samples per cell, blurred; each a unit vector of mean zero.

    Args:
        cell: side of a cell in pixels.

    Returns:
        `(18 * 14, blurs * 26)`.
    """
    padded = np.pad(glyphs(), ((0, 0), (1, 1), (1, 1))).repeat(2, axis=1).repeat(2, axis=2)
    levels = [ndimage.gaussian_filter(padded, (0, 2 * radius / cell, 2 * radius / cell)) for radius in _LETTER_BLURS]
    table = np.concatenate(levels).reshape(len(_LETTER_BLURS) * len(LETTERS), -1).astype(np.float64)
    table -= table.mean(axis=1, keepdims=True)
    return (table / np.linalg.norm(table, axis=1, keepdims=True)).T


def _cell_means(num_cells: int, start: float, cell: float, side: int) -> np.ndarray:
    """A matrix `(2 * num_cells, side)` that averages pixels over half cells."""
    half = cell / 2
    edges = start + half * np.arange(2 * num_cells + 1)
    pixels = np.arange(side)
    overlap = np.minimum(edges[1:, None], pixels + 1) - np.maximum(edges[:-1, None], pixels)
    return np.maximum(overlap, 0.0) / half
