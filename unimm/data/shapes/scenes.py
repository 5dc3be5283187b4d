"""What a scene of the world Shapes is: its words, its objects, and the relations that hold in it.

All lengths are shares of the picture's side, x grows to the right and y downwards.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from ...errors import DataError, nearest

SHAPES = ("circle", "square", "triangle", "diamond", "cross", "star")

#: The eight colours of objects, sRGB in [0, 255]; any two are at least 100 apart.
COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (215, 25, 35),
    "orange": (255, 145, 10),
    "yellow": (255, 235, 40),
    "green": (20, 140, 55),
    "cyan": (50, 215, 235),
    "blue": (35, 65, 225),
    "purple": (125, 20, 175),
    "pink": (255, 115, 185),
}

BACKGROUNDS: dict[str, tuple[int, int, int]] = {
    "white": (245, 245, 245),
    "grey": (128, 128, 128),
    "black": (15, 15, 15),
}

#: Colour of a written word on each background.
INKS: dict[str, tuple[int, int, int]] = {
    "white": (15, 15, 15),
    "grey": (15, 15, 15),
    "black": (245, 245, 245),
}

#: Side of an object's box for each size.
SIZES: dict[str, float] = {"small": 0.28, "medium": 0.38, "large": 0.5}

TEXTURES = ("solid", "striped", "dotted")

#: The second tone of a textured object is its colour times this.
TEXTURE_SHADE = 0.55

#: Side of an emblem's box as a share of its object's box.
EMBLEM_SCALE = 0.5

RELATIONS = ("left of", "right of", "above", "below")
INVERSE_RELATIONS = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}

#: Regions of the picture in reading order; `REGIONS[3 * row + column]`.
REGIONS = (
    "upper left", "top", "upper right",
    "left", "centre", "right",
    "lower left", "bottom", "lower right",
)  # fmt: skip

#: Where the first and the second border between regions lie, on both axes.
REGION_BORDERS = (0.36, 0.64)

DIRECTIONS: dict[str, tuple[int, int]] = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}

#: Words that are written into pictures (in capital letters).
WORDS = (
    "ant", "bat", "bee", "cat", "cow", "cup", "dog", "egg", "fox", "hat", "hen", "ice",
    "jam", "key", "map", "owl", "pig", "sun", "van", "zip", "bird", "duck", "fish", "milk",
)  # fmt: skip

#: Side of one cell of a glyph (5 x 7 cells, one column between glyphs).
GLYPH_CELL = 1 / 32


def _check(kind: str, value: Any, known: Any) -> None:
    if value not in known:
        raise DataError(f"{value!r} is no {kind} of the world Shapes{nearest(str(value), known)}")


@dataclass(frozen=True, slots=True)
class SceneObject:
    """One object of a scene.

    Args:
        shape: one of `SHAPES`.
        colour: one of `COLOURS`.
        size: side of the object's box as a share of the picture's side, in (0, 1]; `SIZES` has the named
            ones.
        centre: x and y of the box's centre, each in [0, 1].
        texture: one of `TEXTURES`.
        emblem: shape and colour of a smaller figure inside, which makes a novel object.
    """

    shape: str
    colour: str
    size: float
    centre: tuple[float, float]
    texture: str = "solid"
    emblem: tuple[str, str] | None = None

    def __post_init__(self) -> None:
        _check("shape", self.shape, SHAPES)
        _check("colour", self.colour, COLOURS)
        _check("texture", self.texture, TEXTURES)
        if self.emblem is not None:
            _check("shape", self.emblem[0], SHAPES)
            _check("colour", self.emblem[1], COLOURS)

    @property
    def size_name(self) -> str:
        """The named size whose logarithm is nearest."""
        small, medium, large = SIZES.values()
        if self.size * self.size < small * medium:
            return "small"
        return "medium" if self.size * self.size < medium * large else "large"

    @property
    def region(self) -> str:
        """The region of the picture that holds the centre, one of `REGIONS`."""
        first, second = REGION_BORDERS
        x, y = self.centre
        return REGIONS[3 * ((y >= first) + (y >= second)) + (x >= first) + (x >= second)]


@dataclass(frozen=True, slots=True)
class SceneWord:
    """A word written in capital letters.

    Args:
        text: lower-case letters.
        centre: x and y of the centre of the word's box, each in [0, 1].
    """

    text: str
    centre: tuple[float, float]

    def __post_init__(self) -> None:
        if not (self.text.isascii() and self.text.isalpha() and self.text.islower()):
            raise DataError(f"a written word consists of the letters a to z, but got {self.text!r}")

    @property
    def extent(self) -> tuple[float, float]:
        """Width and height of the word's box."""
        return (6 * len(self.text) - 1) * GLYPH_CELL, 7 * GLYPH_CELL


@dataclass(frozen=True, slots=True)
class Scene:
    """A picture's content.

    Args:
        background: one of `BACKGROUNDS`.
        objects: what is drawn, no two of which overlap.
        word: a written word, if any.
    """

    background: str
    objects: tuple[SceneObject, ...] = ()
    word: SceneWord | None = None

    def __post_init__(self) -> None:
        _check("background", self.background, BACKGROUNDS)

    def replace_object(self, position: int, **changes: Any) -> Scene:
        """The scene with some fields of one object changed."""
        objects = list(self.objects)
        objects[position] = replace(objects[position], **changes)
        return replace(self, objects=tuple(objects))

    def to_dict(self) -> dict[str, Any]:
        """Plain lists, strings and numbers; the same keys for every scene, what is absent is empty."""
        return {
            "background": self.background,
            "objects": [
                {
                    "shape": item.shape,
                    "colour": item.colour,
                    "size": item.size,
                    "x": item.centre[0],
                    "y": item.centre[1],
                    "texture": item.texture,
                    "emblem_shape": item.emblem[0] if item.emblem else "",
                    "emblem_colour": item.emblem[1] if item.emblem else "",
                }
                for item in self.objects
            ],
            "word": self.word.text if self.word else "",
            "word_x": self.word.centre[0] if self.word else 0.0,
            "word_y": self.word.centre[1] if self.word else 0.0,
        }

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Scene:
        """The inverse of `to_dict`.

        Raises:
            DataError: a key is missing or a value is none of the world's.
        """
        try:
            objects = tuple(
                SceneObject(
                    shape=item["shape"],
                    colour=item["colour"],
                    size=item["size"],
                    centre=(item["x"], item["y"]),
                    texture=item["texture"],
                    emblem=(item["emblem_shape"], item["emblem_colour"]) if item["emblem_shape"] else None,
                )
                for item in values["objects"]
            )
            word = SceneWord(values["word"], (values["word_x"], values["word_y"])) if values["word"] else None
            return cls(values["background"], objects, word)
        except KeyError as error:
            raise DataError(f"a scene needs the key {error}, but has {sorted(values)}") from error


def relation_between(first: SceneObject, second: SceneObject) -> str:
    """How `first` lies to `second`: along the axis on which their centres are farther apart."""
    dx = first.centre[0] - second.centre[0]
    dy = first.centre[1] - second.centre[1]
    if abs(dx) >= abs(dy):
        return "left of" if dx < 0 else "right of"
    return "above" if dy < 0 else "below"
