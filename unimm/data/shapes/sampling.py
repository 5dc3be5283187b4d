"""Drawing random scenes: which objects there are, and where they have room."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from ...errors import ConfigError, nearest
from .language import ATTRIBUTES, KINDS
from .scenes import (
    BACKGROUNDS,
    COLOURS,
    GLYPH_CELL,
    INVERSE_RELATIONS,
    REGION_BORDERS,
    REGIONS,
    RELATIONS,
    SHAPES,
    SIZES,
    TEXTURES,
    WORDS,
    Scene,
    SceneObject,
    SceneWord,
)
from .splits import Draws, check_split, held_out_combinations

#: Room between any two objects, and between an object and the border, as shares of the picture's side.
OBJECT_MARGIN = 0.07
BORDER_MARGIN = 0.03

#: A single object's centre keeps this far from the borders between regions.
REGION_MARGIN = 0.03

#: Of two objects with a relation, the distance along the relation's axis exceeds the other one by this.
RELATION_MARGIN = 0.12

MAXIMUM_COUNT = 4

Pair = tuple[str, str]


@dataclass(frozen=True)
class WorldConfig:
    """Which scenes are drawn, and what their captions state.

    Args:
        kinds: kinds of caption, some of `KINDS`.
        kind_weights: how often each kind is drawn, in proportion; equally often when empty.
        attributes: what captions state, some of `ATTRIBUTES`.
        optional_attributes: what every second caption states in addition.
        backgrounds: backgrounds of the pictures.
        textures: textures of the objects that are large enough for one; solid alone unless textures are
            stated.
        sizes: sizes of the objects; large ones appear alone or beside a small one, three or more are small.
        words: words that are written.
        held_out_share: share of scenes with a combination that only the test split has; must be 0 in the
            others.
    """

    kinds: tuple[str, ...] = ("object", "pair")
    kind_weights: tuple[float, ...] = ()
    attributes: tuple[str, ...] = ("colour", "shape")
    optional_attributes: tuple[str, ...] = ()
    backgrounds: tuple[str, ...] = tuple(BACKGROUNDS)
    textures: tuple[str, ...] = field(default=())
    sizes: tuple[str, ...] = tuple(SIZES)
    words: tuple[str, ...] = WORDS
    held_out_share: float = 0.0

    def __post_init__(self) -> None:
        for name in (
            "kinds",
            "kind_weights",
            "attributes",
            "optional_attributes",
            "backgrounds",
            "sizes",
            "words",
        ):
            if not isinstance(getattr(self, name), list | tuple):
                raise ConfigError(f"{name} must be a list, given {getattr(self, name)!r}")
            object.__setattr__(self, name, tuple(getattr(self, name)))
        if not self.textures:
            stated = "texture" in (*self.attributes, *self.optional_attributes)
            object.__setattr__(self, "textures", TEXTURES if stated else ("solid",))
        object.__setattr__(self, "textures", tuple(self.textures))
        for name, known in (
            ("kinds", KINDS),
            ("attributes", ATTRIBUTES),
            ("optional_attributes", ATTRIBUTES),
            ("backgrounds", tuple(BACKGROUNDS)),
            ("textures", TEXTURES),
            ("sizes", tuple(SIZES)),
        ):
            values = getattr(self, name)
            for value in values:
                if value not in known:
                    raise ConfigError(f"{name} has {value!r}, which the world Shapes does not{nearest(value, known)}")
            if not values and name != "optional_attributes" and name != "attributes":
                raise ConfigError(f"{name} is empty; give at least one of {', '.join(known)}")
        for name, kind, words in (("kind_weights", float | int, "numbers"), ("words", str, "words")):
            if not all(isinstance(value, kind) for value in getattr(self, name)):
                raise ConfigError(f"{name} must be {words}, given {getattr(self, name)}")
        if not isinstance(self.held_out_share, float | int):
            raise ConfigError(f"held_out_share is a share in [0, 1], but got {self.held_out_share!r}")
        if self.kind_weights and len(self.kind_weights) != len(self.kinds):
            raise ConfigError(
                f"kind_weights has {len(self.kind_weights)} numbers for {len(self.kinds)} kinds; give one each"
            )
        if not 0.0 <= self.held_out_share <= 1.0:
            raise ConfigError(f"held_out_share is a share in [0, 1], but got {self.held_out_share}")
        if "small" not in self.sizes and {"count", "group"} & set(self.kinds):
            raise ConfigError("scenes of kind 'count' and 'group' need the size 'small', without which nothing fits")
        if self.sizes == ("large",) and "pair" in self.kinds:
            raise ConfigError("two large objects do not fit beside each other; add the size 'small'")


@functools.cache
def _combinations(held_out: bool) -> tuple[Pair, ...]:
    kept = held_out_combinations().colour_shape
    return tuple((c, s) for c in COLOURS for s in SHAPES if ((c, s) in kept) == held_out)


@functools.cache
def _shapes_of(colour: str) -> tuple[str, ...]:
    return tuple(shape for c, shape in _combinations(False) if c == colour)


def common_pair(draws: Draws) -> Pair:
    """A colour and a shape that every split has; all colours are equally likely."""
    colour = draws.choice(tuple(COLOURS))
    return colour, draws.choice(_shapes_of(colour))


def held_out_pair(draws: Draws) -> Pair:
    """A colour and a shape that only the test split has."""
    return draws.choice(_combinations(True))


def distinct_pairs(draws: Draws, count: int, held_out: bool) -> list[Pair]:
    """Colours and shapes of several objects no two of which agree in both, one held out where wanted."""
    pairs = [held_out_pair(draws)] if held_out else []
    while len(pairs) < count:
        pair = common_pair(draws)
        if pair not in pairs:
            pairs.append(pair)
    return draws.shuffled(pairs)


def centre_range(size: float) -> tuple[float, float]:
    """Lowest and highest coordinate of the centre of an object of this size."""
    return BORDER_MARGIN + size / 2, 1 - BORDER_MARGIN - size / 2


def _coordinate_in_cell(draws: Draws, size: float, cell: int) -> float:
    low, high = centre_range(size)
    borders = (low, *REGION_BORDERS, high)
    first = borders[cell] + (REGION_MARGIN if cell > 0 else 0.0)
    last = borders[cell + 1] - (REGION_MARGIN if cell < 2 else 0.0)
    return draws.uniform(first, last)


def centre_in_region(draws: Draws, size: float, region: str) -> tuple[float, float]:
    """A centre that is clearly inside a region of the picture."""
    row, column = divmod(REGIONS.index(region), 3)
    return _coordinate_in_cell(draws, size, column), _coordinate_in_cell(draws, size, row)


def centres_in_relation(
    draws: Draws, sizes: tuple[float, float], relation: str
) -> tuple[tuple[float, float], tuple[float, float]]:
    """Centres of two objects the first of which clearly lies in the relation to the second."""
    near, far = sizes if relation in ("left of", "above") else sizes[::-1]
    near_low, near_high = centre_range(near)
    far_low, far_high = centre_range(far)
    room = (near + far) / 2 + OBJECT_MARGIN
    gap = draws.uniform(room, far_high - near_low)
    first = draws.uniform(max(near_low, far_low - gap), min(near_high, far_high - gap))
    across_near = draws.uniform(near_low, near_high)
    slack = gap - RELATION_MARGIN
    across_far = draws.uniform(max(far_low, across_near - slack), min(far_high, across_near + slack))
    if relation in ("left of", "right of"):
        centres = ((first, across_near), (first + gap, across_far))
    else:
        centres = ((across_near, first), (across_far, first + gap))
    return centres if relation in ("left of", "above") else centres[::-1]


def scattered_centres(draws: Draws, sizes: list[float]) -> list[tuple[float, float]]:
    """Centres of several objects whose boxes keep the margin from each other."""
    while True:
        centres: list[tuple[float, float]] = []
        for size in sizes:
            low, high = centre_range(size)
            for _ in range(12):
                x, y = draws.uniform(low, high), draws.uniform(low, high)
                if all(
                    max(abs(x - u), abs(y - v)) >= (size + other) / 2 + OBJECT_MARGIN
                    for (u, v), other in zip(centres, sizes, strict=False)
                ):
                    centres.append((x, y))
                    break
            else:
                break
        if len(centres) == len(sizes):
            return centres


@functools.cache
def _size_pairs(sizes: tuple[str, ...]) -> tuple[tuple[float, float], ...]:
    values = [SIZES[name] for name in sizes]
    pairs = [
        (a, b)
        for a in values
        for b in values
        if (a + b) / 2 + OBJECT_MARGIN <= centre_range(b)[1] - centre_range(a)[0] - 1e-9
    ]
    return tuple(pairs)


class SceneSampler:
    """Draws scenes of one split.

    Args:
        split: one of `train`, `validation`, `test`.
        config: which scenes.

    Raises:
        ConfigError: held-out combinations are asked of a split that must not have them.
    """

    def __init__(self, split: str, config: WorldConfig) -> None:
        check_split(split)
        if split != "test" and config.held_out_share > 0:
            raise ConfigError(f"the split {split!r} must not have combinations that are kept for 'test'")
        self.split = split
        self.config = config
        self._held_out = held_out_combinations()

    def allows(self, scene: Scene) -> bool:
        """Whether the split may show the scene: only `test` has held-out combinations."""
        return self.split == "test" or not self._held_out.has_scene(scene)

    def sample(self, draws: Draws, kind: str) -> Scene:
        """A scene that a caption of this kind describes; a pair's objects are in the order of mention."""
        held_out = self.config.held_out_share > 0 and draws.uniform() < self.config.held_out_share
        background = draws.choice(self.config.backgrounds)
        if kind in ("object", "video"):
            return Scene(background, (self.single(draws, held_out),))
        if kind == "pair":
            return Scene(background, self.pair(draws, held_out))
        if kind == "word":
            return self._word_scene(draws, background, held_out)
        if kind == "count":
            count = 2 + draws.integer(MAXIMUM_COUNT - 1)
            pair = held_out_pair(draws) if held_out else common_pair(draws)
            return Scene(background, self.equal(draws, pair, count))
        count = 2 + draws.integer(MAXIMUM_COUNT - 1)
        return Scene(background, self.group(draws, count, held_out))

    def texture(self, draws: Draws, size: float) -> str:
        """A texture; objects of the smallest size are solid, since nothing smaller than them is legible."""
        textures = self.config.textures
        if len(textures) == 1:
            return textures[0]
        return draws.choice(textures) if size > SIZES["small"] else "solid"

    def single(self, draws: Draws, held_out: bool, pair: Pair | None = None, region: str | None = None) -> SceneObject:
        """One object somewhere in the picture; all regions are equally likely."""
        colour, shape = pair or (held_out_pair(draws) if held_out else common_pair(draws))
        size = SIZES[draws.choice(self.config.sizes)]
        centre = centre_in_region(draws, size, region or draws.choice(REGIONS))
        return SceneObject(shape, colour, size, centre, self.texture(draws, size))

    def pair(self, draws: Draws, held_out: bool) -> tuple[SceneObject, SceneObject]:
        """Two objects that differ, one clearly left of, right of, above or below the other."""
        kept = self._held_out
        by_relation = held_out and draws.uniform() < 0.5
        while True:
            if by_relation:
                colour, shape, relation = draws.choice(sorted(kept.colour_shape_relation))
                pairs = [(colour, shape), common_pair(draws)]
                if draws.uniform() < 0.5:
                    pairs.reverse()
                    relation = INVERSE_RELATIONS[relation]
                if pairs[0] == pairs[1]:
                    continue
            else:
                relation = draws.choice(RELATIONS)
                pairs = distinct_pairs(draws, 2, held_out)
            sizes = draws.choice(_size_pairs(self.config.sizes))
            centres = centres_in_relation(draws, sizes, relation)
            first, second = (
                SceneObject(shape, colour, size, centre, self.texture(draws, size))
                for (colour, shape), size, centre in zip(pairs, sizes, centres, strict=True)
            )
            if held_out or not kept.has_relation(first, second):
                return first, second

    def equal(self, draws: Draws, pair: Pair, count: int) -> tuple[SceneObject, ...]:
        """Several objects that agree in everything but their places."""
        names = [name for name in self.config.sizes if name == "small" or (name == "medium" and count == 2)]
        # More than two have room only when they are small, whatever other sizes the world has.
        size = SIZES[draws.choice(names or ["small"])]
        texture = self.texture(draws, size)
        centres = scattered_centres(draws, [size] * count)
        return tuple(SceneObject(pair[1], pair[0], size, centre, texture) for centre in centres)

    def group(
        self, draws: Draws, count: int, held_out: bool, draw_pairs: Callable[[], list[Pair]] | None = None
    ) -> tuple[SceneObject, ...]:
        """Several objects anywhere, which differ unless `draw_pairs` says what they are."""
        while True:
            what = draw_pairs() if draw_pairs else distinct_pairs(draws, count, held_out)
            sizes = list(draws.choice(_size_pairs(self.config.sizes))) if count == 2 else [SIZES["small"]] * count
            centres = scattered_centres(draws, sizes)
            objects = tuple(
                SceneObject(shape, colour, size, centre, self.texture(draws, size))
                for (colour, shape), size, centre in zip(what, sizes, centres, strict=True)
            )
            if held_out or not self._held_out.has_scene(Scene("white", objects)):
                return objects

    def _word_scene(self, draws: Draws, background: str, held_out: bool) -> Scene:
        text = draws.choice(self.config.words)
        word = SceneWord(text, (0.5, 0.5))
        width, height = word.extent
        x = draws.uniform(BORDER_MARGIN + width / 2, 1 - BORDER_MARGIN - width / 2)
        low, high = BORDER_MARGIN + height / 2, 1 - BORDER_MARGIN - height / 2
        if not held_out and draws.uniform() < 0.5:
            return Scene(background, (), replace(word, centre=(x, draws.uniform(low, high))))
        names = [name for name in self.config.sizes if name != "large"] or ["small"]
        size = SIZES[draws.choice(names)]
        colour, shape = held_out_pair(draws) if held_out else common_pair(draws)
        first, last = centre_range(size)
        room = (size + height) / 2 + OBJECT_MARGIN
        if draws.uniform() < 0.5:
            y = draws.uniform(low, last - room)
            centre_y = draws.uniform(max(first, y + room), last)
        else:
            y = draws.uniform(first + room, high)
            centre_y = draws.uniform(first, min(last, y - room))
        item = SceneObject(shape, colour, size, (draws.uniform(first, last), centre_y), self.texture(draws, size))
        return Scene(background, (item,), replace(word, centre=(x, y)))


def smallest_object(resolution: int) -> float:
    """Side in pixels of the box of the smallest object at a resolution."""
    return SIZES["small"] * resolution


def smallest_glyph(resolution: int) -> tuple[float, float]:
    """Width and height in pixels of a letter at a resolution."""
    return 5 * GLYPH_CELL * resolution, 7 * GLYPH_CELL * resolution
