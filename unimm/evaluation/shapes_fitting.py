"""Which shape a map of opacities shows: renderings of the same area and centroid are compared with it."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np

from ..data.shapes.rendering import shape_coverage
from ..data.shapes.scenes import SHAPES

#: Radii in pixels by which renderings are blurred before they are compared.
_BLURS = (0.0, 0.7, 1.2, 1.7)

#: What a shape loses of its agreement per unit of log(measured side / nearest usual side).
_SIZE_PENALTY = 0.3


@dataclass(frozen=True, slots=True)
class Fit:
    """The best shape for a map of opacities: its name, agreement in [0, 1], side and centre in pixels."""

    shape: str
    agreement: float
    side: float
    centre: tuple[float, float]


def fit_shape(opacity: np.ndarray, left: int, top: int, usual_sides: np.ndarray) -> Fit:
    """Finds the shape whose rendering of the same area and centroid agrees best with a map of opacities.

    The agreement is 1 - sum |opacity - rendering| / sum (opacity + rendering), the best over a few blurs,
    minus 0.3 |log(side / nearest usual side)|: blurred beyond legibility, a small star is a circle of no
    usual size.

    Args:
        opacity: `(rows, columns)` in [0, 1], not all zero.
        left: column of the picture at which the map begins.
        top: row of the picture at which the map begins.
        usual_sides: sides in pixels that objects of the world have here.
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


@functools.cache
def _shape_moments() -> tuple[np.ndarray, np.ndarray]:
    """Areas `(6,)` of the shapes in a box of side 1, and their centroids `(6, 2)` from the box's centre."""
    side = 256
    areas, centroids = [], []
    places = (np.arange(side) + 0.5) / side - 0.5
    for shape in SHAPES:
        coverage = shape_coverage(shape, (side / 2, side / 2), 0.5 * side / 1.1, (0, side), (0, side))
        mass = coverage.sum()
        centroids.append((1.1 * (coverage.sum(axis=0) @ places) / mass, 1.1 * (coverage.sum(axis=1) @ places) / mass))
        areas.append(mass / side**2 * 1.1**2)
    return np.asarray(areas), np.asarray(centroids)


@functools.lru_cache(maxsize=512)
def _blur_matrix(side: int, radius: float) -> np.ndarray:
    """A Gaussian blur along one axis as a matrix `(side, side)`."""
    places = np.arange(side)
    weights = np.exp(-0.5 * ((places[:, None] - places[None, :]) / radius) ** 2)
    return (weights / weights.sum(axis=1, keepdims=True)).astype(np.float32)
