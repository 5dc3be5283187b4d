"""Edits: a scene, an instruction that changes one thing, and the scene afterwards."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from ...errors import ConfigError, nearest
from .alterations import fits
from .sampling import RELATION_MARGIN, SceneSampler, centre_in_region, centre_range, common_pair
from .scenes import BACKGROUNDS, COLOURS, REGIONS, SHAPES, SIZES, Scene, SceneObject, relation_between
from .splits import Draws

EDIT_TYPES = ("colour", "shape", "size", "position", "removal", "addition", "background", "texture")

#: What `edits` data sets do when nothing else is said; changes of texture need textures.
DEFAULT_EDIT_TYPES = ("colour", "shape", "size", "position", "removal", "addition", "background")

_ATTEMPTS = 500


@dataclass(frozen=True, slots=True)
class Edit:
    """One instruction and what it does.

    Args:
        type: one of `EDIT_TYPES`.
        instruction: one sentence.
        before: the scene that is edited.
        after: a scene in which the instruction was followed; all else is unchanged.
    """

    type: str
    instruction: str
    before: Scene
    after: Scene


def check_edit_types(types: Sequence[str]) -> tuple[str, ...]:
    """The types as a tuple.

    Raises:
        ConfigError: none are given, or one does not exist.
    """
    for name in types:
        if name not in EDIT_TYPES:
            raise ConfigError(f"edit_types has {name!r}, which does not exist{nearest(name, EDIT_TYPES)}")
    if not types:
        raise ConfigError(f"edit_types is empty; give at least one of {', '.join(EDIT_TYPES)}")
    return tuple(types)


def _the(item: SceneObject) -> str:
    return f"the {item.colour} {item.shape}"


def sample_edit(sampler: SceneSampler, draws: Draws, types: Sequence[str] = DEFAULT_EDIT_TYPES) -> Edit:
    """A random edit; all types are equally likely.

    Args:
        sampler: draws scenes of one split.
        draws: random decisions.
        types: types of edit, some of `EDIT_TYPES`.
    """
    type_name = draws.choice(check_edit_types(types))
    held_out = sampler.config.held_out_share > 0 and draws.uniform() < sampler.config.held_out_share
    for _ in range(_ATTEMPTS):
        background = draws.choice(sampler.config.backgrounds)
        alone = type_name in ("position", "addition") or (type_name != "removal" and draws.uniform() < 0.5)
        objects = (sampler.single(draws, held_out),) if alone else sampler.pair(draws, held_out)
        before = Scene(background, objects)
        edit = (
            _addition(sampler, draws, before) if type_name == "addition" else _change(draws, before, type_name, sampler)
        )
        if edit is not None and sampler.allows(edit.after) and edit.after != before:
            return edit
    raise ConfigError(f"no edit of type {type_name!r} exists for the sizes and textures of {sampler.config}")


def _change(draws: Draws, before: Scene, type_name: str, sampler: SceneSampler) -> Edit | None:
    if type_name == "background":
        value = draws.choice([name for name in BACKGROUNDS if name != before.background])
        return Edit(type_name, f"change the background to {value}", before, replace(before, background=value))
    position = draws.integer(len(before.objects))
    item = before.objects[position]
    others = [other for n, other in enumerate(before.objects) if n != position]
    if type_name == "removal":
        return Edit(type_name, f"remove {_the(item)}", before, replace(before, objects=tuple(others)))
    if type_name == "colour":
        value = draws.choice([name for name in COLOURS if name != item.colour])
        changed = replace(item, colour=value)
        instruction = f"make {_the(item)} {value}"
    elif type_name == "shape":
        value = draws.choice([name for name in SHAPES if name != item.shape])
        changed = replace(item, shape=value)
        instruction = f"turn {_the(item)} into a {value}"
    elif type_name == "size":
        value = draws.choice([name for name in sampler.config.sizes if name != item.size_name] or [item.size_name])
        changed = replace(item, size=SIZES[value], texture="solid" if value == "small" else item.texture)
        instruction = f"make {_the(item)} {value}"
    elif type_name == "texture":
        value = draws.choice([name for name in sampler.config.textures if name != item.texture] or [item.texture])
        if item.size <= SIZES["small"]:
            return None
        changed = replace(item, texture=value)
        instruction = f"make {_the(item)} {value}"
    else:
        region = draws.choice([name for name in REGIONS if name != item.region])
        changed = replace(item, centre=centre_in_region(draws, item.size, region))
        instruction = f"move {_the(item)} to the {region}"
    if not fits(changed, others) or any((changed.colour, changed.shape) == (o.colour, o.shape) for o in others):
        return None
    objects = list(before.objects)
    objects[position] = changed
    return Edit(type_name, instruction, before, replace(before, objects=tuple(objects)))


def _addition(sampler: SceneSampler, draws: Draws, before: Scene) -> Edit | None:
    anchor = before.objects[0]
    colour, shape = common_pair(draws)
    if (colour, shape) == (anchor.colour, anchor.shape):
        return None
    size = SIZES["small"]
    low, high = centre_range(size)
    new = SceneObject(shape, colour, size, (draws.uniform(low, high), draws.uniform(low, high)))
    apart = sorted(abs(new.centre[axis] - anchor.centre[axis]) for axis in (0, 1))
    if not fits(new, before.objects) or apart[1] - apart[0] < RELATION_MARGIN:
        return None
    article = "an" if colour[0] in "aeiou" else "a"
    instruction = f"add {article} {colour} {shape} {relation_between(new, anchor)} {_the(anchor)}"
    return Edit("addition", instruction, before, replace(before, objects=(anchor, new)))


def edit_vocabulary() -> set[str]:
    """Every word of instructions that captions do not have."""
    return {"make", "turn", "into", "move", "to", "the", "remove", "add", "change", "background", "a", "an"}
