"""Drawing scenes: anti-aliased at any resolution, by signed distances with a ramp of one pixel."""

from __future__ import annotations

import functools
import math

import numpy as np

from ...errors import ImageError
from .font import word_bitmap
from .scenes import (
    BACKGROUNDS,
    COLOURS,
    EMBLEM_SCALE,
    GLYPH_CELL,
    INKS,
    SHAPES,
    TEXTURE_SHADE,
    Scene,
    SceneObject,
    SceneWord,
)

#: Smallest side of a picture that can be drawn.
MINIMUM_RESOLUTION = 16

#: Smallest side at which written words are legible.
MINIMUM_WORD_RESOLUTION = 64

_SQUARE_HALF_SIDE = 0.84
# Clearly taller than wide: blurred, a small equilateral diamond could be a cross or a circle.
_DIAMOND_HALF_WIDTH = 0.68
_CROSS_HALF_WIDTH = 0.36
_TRIANGLE_TOP, _TRIANGLE_BOTTOM = -0.95, 0.8
_STAR_OUTER, _STAR_INNER, _STAR_SHIFT = 1.06, 0.49, 0.1

_STRIPE_PERIOD = 0.85
_DOT_PERIOD = 0.72
_DOT_RADIUS = 0.25


def signed_distance(shape: str, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Distance to a shape's outline, negative inside, exact near straight edges.

    Args:
        shape: one of `SHAPES`.
        x: horizontal coordinates in which the shape's box is [-1, 1], any shape that broadcasts with `y`.
        y: vertical coordinates, downwards.

    Returns:
        Distances in units of half the box's side.
    """
    if shape == "circle":
        return np.sqrt(x * x + y * y) - 1.0
    if shape == "square":
        return np.maximum(np.abs(x), np.abs(y)) - _SQUARE_HALF_SIDE
    if shape == "diamond":
        return (np.abs(x) + _DIAMOND_HALF_WIDTH * (np.abs(y) - 1.0)) / math.hypot(1.0, _DIAMOND_HALF_WIDTH)
    if shape == "triangle":
        height = _TRIANGLE_BOTTOM - _TRIANGLE_TOP
        sides = (height * np.abs(x) - (y - _TRIANGLE_TOP)) / math.hypot(height, 1.0)
        return np.maximum(sides, y - _TRIANGLE_BOTTOM)
    if shape == "cross":
        ax, ay = np.abs(x), np.abs(y)
        upright = np.maximum(ax - _CROSS_HALF_WIDTH, ay - 1.0)
        level = np.maximum(ay - _CROSS_HALF_WIDTH, ax - 1.0)
        return np.minimum(upright, level)
    if shape == "star":
        # One of ten equal sectors: fold every point into it, then one straight edge is left.
        ax, up = np.abs(x), _STAR_SHIFT - y
        radius = np.sqrt(ax * ax + up * up)
        sector = 2 * math.pi / 5
        angle = np.arctan2(ax, up)
        angle = np.abs(angle - sector * np.rint(angle / sector))
        edge_x = _STAR_INNER * math.cos(sector / 2) - _STAR_OUTER
        edge_y = _STAR_INNER * math.sin(sector / 2)
        length = math.hypot(edge_x, edge_y)
        return (edge_y * (radius * np.cos(angle) - _STAR_OUTER) - edge_x * radius * np.sin(angle)) / length
    raise ImageError(f"cannot draw {shape!r}; the shapes are {', '.join(SHAPES)}")


def shape_coverage(
    shape: str, centre: tuple[float, float], half_side: float, rows: tuple[int, int], columns: tuple[int, int]
) -> np.ndarray:
    """Share of each pixel that a shape covers.

    Args:
        shape: one of `SHAPES`.
        centre: x and y of the box's centre in pixels.
        half_side: half the side of the box in pixels.
        rows: first and one past the last pixel row.
        columns: first and one past the last pixel column.

    Returns:
        float32 `(rows, columns)` in [0, 1].
    """
    x = (np.arange(columns[0], columns[1], dtype=np.float32) + np.float32(0.5 - centre[0])) / np.float32(half_side)
    y = (np.arange(rows[0], rows[1], dtype=np.float32) + np.float32(0.5 - centre[1])) / np.float32(half_side)
    distance = signed_distance(shape, x[None, :], y[:, None])
    return np.clip(0.5 - distance * np.float32(half_side), 0.0, 1.0)


def _box(centre: tuple[float, float], half: float, resolution: int) -> tuple[tuple[int, int], tuple[int, int]]:
    columns = (max(0, math.floor(centre[0] - half - 1)), min(resolution, math.ceil(centre[0] + half + 1)))
    rows = (max(0, math.floor(centre[1] - half - 1)), min(resolution, math.ceil(centre[1] + half + 1)))
    return rows, columns


def second_tone(
    texture: str, centre: tuple[float, float], half: float, rows: tuple[int, int], columns: tuple[int, int]
) -> np.ndarray:
    """Share of each pixel that has the darker tone of a textured object.

    Args:
        texture: `striped` or `dotted`.
        centre: x and y of the object's centre in pixels.
        half: half the side of the object's box in pixels.
        rows: first and one past the last pixel row.
        columns: first and one past the last pixel column.

    Returns:
        float32 `(rows, columns)` or, for stripes, `(rows, 1)`, in [0, 1].
    """
    y = (np.arange(rows[0], rows[1], dtype=np.float32) + np.float32(0.5 - centre[1])) / np.float32(half)
    if texture == "striped":
        phase = np.abs(np.mod(y / _STRIPE_PERIOD, 1.0) - 0.5) - 0.25
        return np.clip(0.5 + phase * (_STRIPE_PERIOD * half), 0.0, 1.0)[:, None]
    x = (np.arange(columns[0], columns[1], dtype=np.float32) + np.float32(0.5 - centre[0])) / np.float32(half)
    dx = np.mod(x / _DOT_PERIOD + 0.5, 1.0) - 0.5
    dy = np.mod(y / _DOT_PERIOD + 0.5, 1.0) - 0.5
    radius = np.sqrt(dx[None, :] ** 2 + dy[:, None] ** 2) * _DOT_PERIOD
    return np.clip(0.5 - (radius - _DOT_RADIUS) * half, 0.0, 1.0)


@functools.cache
def _tones(colour: str) -> tuple[np.ndarray, np.ndarray]:
    first = np.asarray(COLOURS[colour], dtype=np.float32)
    return first, first * np.float32(TEXTURE_SHADE)


def _draw_object(canvas: np.ndarray, item: SceneObject) -> None:
    resolution = canvas.shape[0]
    centre = (item.centre[0] * resolution, item.centre[1] * resolution)
    half = item.size * resolution / 2
    rows, columns = _box(centre, half, resolution)
    coverage = shape_coverage(item.shape, centre, half, rows, columns)[..., None]
    first, second = _tones(item.colour)
    paint: np.ndarray = first
    if item.texture != "solid":
        share = second_tone(item.texture, centre, half, rows, columns)[..., None]
        paint = first + share * (second - first)
    patch = canvas[rows[0] : rows[1], columns[0] : columns[1]]
    patch += coverage * (paint - patch)
    if item.emblem is not None:
        shape, colour = item.emblem
        _draw_object(canvas, SceneObject(shape, colour, item.size * EMBLEM_SCALE, item.centre))


@functools.lru_cache(maxsize=4096)
def _overlap(num_cells: int, start: float, cell: float, resolution: int) -> np.ndarray:
    """Overlap of each cell of a row with each pixel, float32 `(num_cells, resolution)`."""
    edges = start + cell * np.arange(num_cells + 1)
    pixels = np.arange(resolution)
    left = np.maximum(edges[:-1, None], pixels[None, :])
    right = np.minimum(edges[1:, None], pixels[None, :] + 1)
    return np.maximum(right - left, 0.0).astype(np.float32)


def _word_coverage(word: SceneWord, resolution: int) -> np.ndarray:
    bitmap = word_bitmap(word.text)
    cell = GLYPH_CELL * resolution
    top = word.centre[1] * resolution - 3.5 * cell
    left = word.centre[0] * resolution - bitmap.shape[1] * cell / 2
    rows = _overlap(bitmap.shape[0], top, cell, resolution)
    columns = _overlap(bitmap.shape[1], left, cell, resolution)
    return rows.T @ bitmap @ columns


def check_resolution(resolution: int) -> None:
    """Raises an `ImageError` for a side in pixels that the world does not draw."""
    if not isinstance(resolution, int) or resolution < MINIMUM_RESOLUTION:
        raise ImageError(f"scenes are drawn at {MINIMUM_RESOLUTION} pixels a side or more, but got {resolution!r}")


def render(scene: Scene, resolution: int) -> np.ndarray:
    """Draws a scene.

    Args:
        scene: what to draw.
        resolution: side of the square picture in pixels, at least 16.

    Returns:
        uint8 `(resolution, resolution, 3)`, sRGB.

    Raises:
        ImageError: the resolution is too small.
    """
    check_resolution(resolution)
    canvas = np.empty((resolution, resolution, 3), dtype=np.float32)
    canvas[:] = BACKGROUNDS[scene.background]
    for item in scene.objects:
        _draw_object(canvas, item)
    if scene.word is not None:
        ink = np.asarray(INKS[scene.background], dtype=np.float32)
        canvas += _word_coverage(scene.word, resolution)[..., None] * (ink - canvas)
    return (canvas + 0.5).astype(np.uint8)


def segment(scene: Scene, resolution: int) -> np.ndarray:
    """The scene's layout: which class each pixel's centre belongs to.

    Returns:
        uint8 `(resolution, resolution)`: 0 the background, `1 + SHAPES.index(shape)` an object, 7 a word.
    """
    check_resolution(resolution)
    classes = np.zeros((resolution, resolution), dtype=np.uint8)
    for item in scene.objects:
        centre = (item.centre[0] * resolution, item.centre[1] * resolution)
        half = item.size * resolution / 2
        rows, columns = _box(centre, half, resolution)
        inside = shape_coverage(item.shape, centre, half, rows, columns) >= 0.5
        classes[rows[0] : rows[1], columns[0] : columns[1]][inside] = 1 + SHAPES.index(item.shape)
    if scene.word is not None:
        classes[_word_coverage(scene.word, resolution) >= 0.5] = 1 + len(SHAPES)
    return classes
