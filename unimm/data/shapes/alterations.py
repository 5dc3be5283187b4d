"""Changing exactly one thing: captions that are false in one attribute, and scenes that break one claim."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from ...errors import DataError
from .language import NUMBERS, Claims, check_claims
from .sampling import (
    MAXIMUM_COUNT,
    OBJECT_MARGIN,
    SceneSampler,
    centre_in_region,
    centre_range,
    centres_in_relation,
    common_pair,
)
from .scenes import (
    BACKGROUNDS,
    COLOURS,
    REGIONS,
    RELATIONS,
    SHAPES,
    SIZES,
    TEXTURES,
    WORDS,
    Scene,
    SceneObject,
)
from .splits import Draws

#: A false position is at least this far from the object, so that no tolerant judge may accept it.
_FALSE_POSITION_TOLERANCE = 0.06

_ATTEMPTS = 200

_VALUES: dict[str, Sequence[str]] = {
    "shape": SHAPES,
    "colour": tuple(COLOURS),
    "size": tuple(SIZES),
    "texture": TEXTURES,
    "position": REGIONS,
}


def stated_attributes(claims: Claims) -> tuple[str, ...]:
    """What can be altered in a caption: all that it states, but a number that its kind fixes."""
    names = [name for name in _VALUES if any(getattr(claim, name) is not None for claim in claims.objects)]
    if claims.kind == "count":
        names.append("count")
    names += [name for name in ("relation", "background", "word") if getattr(claims, name) is not None]
    return tuple(names)


def _other(draws: Draws, values: Sequence[str], value: str) -> str:
    return draws.choice([candidate for candidate in values if candidate != value])


def _altered(claims: Claims, draws: Draws, attribute: str) -> Claims:
    if attribute == "count":
        return replace(
            claims, count=NUMBERS.index(_other(draws, NUMBERS[2 : MAXIMUM_COUNT + 1], NUMBERS[claims.count]))
        )
    if attribute == "relation":
        return replace(claims, relation=_other(draws, RELATIONS, str(claims.relation)))
    if attribute == "background":
        return replace(claims, background=_other(draws, tuple(BACKGROUNDS), str(claims.background)))
    if attribute == "word":
        return replace(claims, word=_other(draws, WORDS, str(claims.word)))
    objects = list(claims.objects)
    position = draws.choice([n for n, claim in enumerate(objects) if getattr(claim, attribute) is not None])
    value = _other(draws, _VALUES[attribute], getattr(objects[position], attribute))
    objects[position] = replace(objects[position], **{attribute: value})
    return replace(claims, objects=tuple(objects))


def alter_claims(claims: Claims, scene: Scene, draws: Draws, attribute: str | None = None) -> tuple[Claims, str]:
    """Claims that differ from true ones in one attribute of one object, and are false in the scene.

    Args:
        claims: what is true of the scene.
        scene: the scene.
        draws: random decisions.
        attribute: which attribute to alter, by default a random one of those that are stated.

    Returns:
        The false claims, and the altered attribute.

    Raises:
        DataError: the attribute is not stated.
    """
    options = stated_attributes(claims)
    if attribute is not None and attribute not in options:
        raise DataError(f"the caption does not state {attribute!r}; it states {', '.join(options) or 'nothing'}")
    for _ in range(_ATTEMPTS):
        name = attribute or draws.choice(options)
        altered = _altered(claims, draws, name)
        if not all(check_claims(altered, scene, tolerance=_FALSE_POSITION_TOLERANCE).values()):
            return altered, name
    raise DataError(f"no false claims were found beside {claims}")


def fits(item: SceneObject, others: Sequence[SceneObject]) -> bool:
    """Whether an object lies inside of the picture and keeps the margin from others."""
    low, high = centre_range(item.size)
    inside = all(low - 1e-9 <= value <= high + 1e-9 for value in item.centre)
    return inside and all(
        max(abs(item.centre[0] - other.centre[0]), abs(item.centre[1] - other.centre[1]))
        >= (item.size + other.size) / 2 + OBJECT_MARGIN - 1e-9
        for other in others
    )


def place_beside(draws: Draws, item: SceneObject, others: Sequence[SceneObject]) -> SceneObject | None:
    """The object at a random free place, or None where none was found."""
    low, high = centre_range(item.size)
    for _ in range(24):
        moved = replace(item, centre=(draws.uniform(low, high), draws.uniform(low, high)))
        if fits(moved, others):
            return moved
    return None


def _change_count(scene: Scene, draws: Draws) -> Scene | None:
    objects = scene.objects
    if len(objects) > 1 and draws.uniform() < 0.5:
        gone = draws.integer(len(objects))
        return replace(scene, objects=tuple(item for n, item in enumerate(objects) if n != gone))
    if len(objects) >= MAXIMUM_COUNT or scene.word is not None:
        return None
    new = replace(objects[0], size=SIZES["small"], texture="solid")
    if len({(item.colour, item.shape) for item in objects}) == len(objects):
        colour, shape = common_pair(draws)
        new = replace(new, colour=colour, shape=shape)
    placed = place_beside(draws, new, objects)
    return replace(scene, objects=(*objects, placed)) if placed else None


def _change_relation(scene: Scene, draws: Draws) -> Scene | None:
    first, second = scene.objects
    relation = draws.choice(RELATIONS)
    centres = centres_in_relation(draws, (first.size, second.size), relation)
    return replace(scene, objects=(replace(first, centre=centres[0]), replace(second, centre=centres[1])))


def _change_word(scene: Scene, draws: Draws) -> Scene | None:
    if scene.word is None:
        return None
    text = scene.word.text
    options = [word for word in WORDS if len(word) == len(text) and word != text]
    return replace(scene, word=replace(scene.word, text=draws.choice(options)))


def _change_object(scene: Scene, draws: Draws, attribute: str, textures: Sequence[str]) -> Scene | None:
    position = draws.integer(len(scene.objects))
    item = scene.objects[position]
    others = [other for n, other in enumerate(scene.objects) if n != position]
    if attribute == "position":
        if others:
            return None
        return scene.replace_object(position, centre=centre_in_region(draws, item.size, draws.choice(REGIONS)))
    if attribute == "size":
        changed = replace(item, size=SIZES[_other(draws, tuple(SIZES), item.size_name)])
        if changed.size <= SIZES["small"]:
            changed = replace(changed, texture="solid")
        if not fits(changed, others):
            return None
    elif attribute == "texture":
        if item.size <= SIZES["small"] or len(textures) < 2:
            return None
        changed = replace(item, texture=_other(draws, textures, item.texture))
    else:
        value = _other(draws, _VALUES[attribute], getattr(item, attribute))
        changed = replace(item, shape=value) if attribute == "shape" else replace(item, colour=value)
    objects = list(scene.objects)
    objects[position] = changed
    return replace(scene, objects=tuple(objects))


def alter_scene(
    scene: Scene, claims: Claims, sampler: SceneSampler, draws: Draws, attribute: str | None = None
) -> tuple[Scene, str]:
    """A scene in which one thing differs, such that claims that were true are false.

    Args:
        scene: the scene.
        claims: what is true of it.
        sampler: of the split, which says whether held-out combinations may appear.
        draws: random decisions.
        attribute: what to change, among the stated attributes and `count`; by default a random one.

    Returns:
        The changed scene, and what was changed.

    Raises:
        DataError: nothing can be changed so.
    """
    options = list(dict.fromkeys((*stated_attributes(claims), "count")))
    if not scene.objects:
        options = [name for name in options if name in ("word", "background")]
    if attribute is not None:
        if attribute not in options:
            raise DataError(f"the caption does not state {attribute!r}; it states {', '.join(options)}")
        options = [attribute]
    changes: dict[str, Callable[[], Scene | None]] = {
        "count": lambda: _change_count(scene, draws),
        "relation": lambda: _change_relation(scene, draws),
        "background": lambda: replace(scene, background=_other(draws, tuple(BACKGROUNDS), scene.background)),
        "word": lambda: _change_word(scene, draws),
    }
    for _ in range(_ATTEMPTS):
        name = draws.choice(options)
        change = changes.get(name)
        changed = change() if change else _change_object(scene, draws, name, sampler.config.textures)
        if changed is None or not sampler.allows(changed):
            continue
        if not all(check_claims(claims, changed, tolerance=_FALSE_POSITION_TOLERANCE).values()):
            return changed, name
    raise DataError(f"nothing could be changed in {scene} so that the claims of kind {claims.kind!r} become false")
