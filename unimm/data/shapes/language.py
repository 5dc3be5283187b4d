"""The language of the world Shapes: what a caption claims, the grammar of captions, and their exact inverse.

caption  := body [" on a " BACKGROUND " background"]
body     := object | pair | count | group | word | video
object   := phrase [PLACE]                         a small red circle in the upper left
pair     := phrase RELATION phrase                 a red circle left of a blue square
count    := NUMBER plural                          three green stars
group    := object ("and" object)+                 a red circle and a blue square and a green star
word     := [object "and"] "the word" WORD         a red circle and the word sun
video    := phrase "moving" DIRECTION              a red circle moving left
phrase   := ("a" | "an") [SIZE] [TEXTURE] [COLOUR] (SHAPE | "object") ["with a" COLOUR SHAPE "inside"]
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from ...errors import DataError, nearest
from .scenes import (
    BACKGROUNDS,
    COLOURS,
    DIRECTIONS,
    REGIONS,
    RELATIONS,
    SHAPES,
    SIZES,
    TEXTURES,
    WORDS,
    Scene,
    SceneObject,
    relation_between,
)

KINDS = ("object", "pair", "count", "group", "word", "video")

#: What a caption may state about an object or the picture, beyond what its kind always states.
ATTRIBUTES = ("colour", "shape", "size", "texture", "position", "background")

#: More objects than this are matched in their order of appearance only.
_MAXIMUM_MATCHED = 6

NUMBERS = ("zero", "one", "two", "three", "four", "five", "six")

PLURALS = {shape: "crosses" if shape == "cross" else shape + "s" for shape in SHAPES}
_SINGULARS = {plural: shape for shape, plural in PLURALS.items()}

PLACES = {
    region: f"on the {region}" if region in ("left", "right") else
    f"at the {region}" if region in ("top", "bottom") else f"in the {region}"
    for region in REGIONS
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class ObjectClaim:
    """What a caption states about one object (or several equal ones); None is not stated."""

    shape: str | None = None
    colour: str | None = None
    size: str | None = None
    texture: str | None = None
    position: str | None = None
    emblem: tuple[str, str] | None = None


@dataclass(frozen=True, slots=True)
class Claims:
    """Everything that a caption states.

    Args:
        kind: one of `KINDS`.
        objects: one claim per object, in the order of mention; one claim for all objects of a count.
        count: number of objects in the picture.
        relation: how the first object lies to the second, one of `RELATIONS` (kind `pair`).
        background: one of `BACKGROUNDS`.
        word: the written word (kind `word`).
        motion: one of `DIRECTIONS` (kind `video`).
    """

    kind: str
    objects: tuple[ObjectClaim, ...]
    count: int
    relation: str | None = None
    background: str | None = None
    word: str | None = None
    motion: str | None = None


def claims_of(
    scene: Scene, kind: str, attributes: Sequence[str] = ("colour", "shape"), motion: str | None = None
) -> Claims:
    """What a caption of this kind that states these attributes claims about a scene.

    Args:
        scene: the scene, whose number of objects fits the kind.
        kind: one of `KINDS`.
        attributes: some of `ATTRIBUTES`; a position is stated by the kinds `object`, `group` and `word` only.
        motion: how the object of a video moves.

    Raises:
        DataError: an unknown kind or attribute, or a scene that the kind cannot describe.
    """
    for attribute in attributes:
        if attribute not in ATTRIBUTES:
            raise DataError(f"{attribute!r} is no attribute of captions{nearest(attribute, ATTRIBUTES)}")
    num_objects = len(scene.objects)
    fits = {
        "object": num_objects == 1 and scene.word is None,
        "pair": num_objects == 2 and scene.word is None,
        "count": num_objects >= 2 and scene.word is None,
        "group": num_objects >= 2 and scene.word is None,
        "word": num_objects <= 1 and scene.word is not None,
        "video": num_objects == 1 and scene.word is None and motion is not None,
    }
    if kind not in fits:
        raise DataError(f"{kind!r} is no kind of caption{nearest(kind, KINDS)}")
    if not fits[kind]:
        raise DataError(
            f"a caption of kind {kind!r} cannot describe a scene of {num_objects} objects"
            f"{' and a word' if scene.word else ''}"
        )
    places = kind in ("object", "group", "word") and "position" in attributes
    objects = tuple(
        ObjectClaim(
            shape=item.shape if "shape" in attributes else None,
            colour=item.colour if "colour" in attributes else None,
            size=item.size_name if "size" in attributes else None,
            texture=item.texture if "texture" in attributes else None,
            position=item.region if places else None,
            emblem=item.emblem,
        )
        for item in scene.objects
    )
    if kind == "count":
        if len(set(objects)) > 1:
            raise DataError("a caption of kind 'count' describes equal objects only, but the scene's objects differ")
        objects = objects[:1]
    return Claims(
        kind=kind,
        objects=objects,
        count=num_objects,
        relation=relation_between(*scene.objects) if kind == "pair" else None,
        background=scene.background if "background" in attributes else None,
        word=scene.word.text if kind == "word" and scene.word else None,
        motion=motion,
    )


def _article(following: str) -> str:
    return "an" if following[0] in "aeiou" else "a"


def _phrase(claim: ObjectClaim, plural: bool = False) -> str:
    noun = claim.shape or "object"
    if plural:
        noun = PLURALS.get(noun, "objects")
    words = [word for word in (claim.size, claim.texture, claim.colour, noun) if word]
    text = " ".join(words) if plural else f"{_article(words[0])} {' '.join(words)}"
    if claim.emblem:
        shape, colour = claim.emblem
        text += f" with {_article(colour)} {colour} {shape} inside"
    return text


def _placed_phrase(claim: ObjectClaim) -> str:
    return _phrase(claim) + (f" {PLACES[claim.position]}" if claim.position else "")


def describe(claims: Claims) -> str:
    """The caption that states these claims; `parse_caption` is its inverse."""
    if claims.kind == "pair":
        first, second = claims.objects
        body = f"{_phrase(first)} {claims.relation} {_phrase(second)}"
    elif claims.kind == "count":
        body = f"{NUMBERS[claims.count]} {_phrase(claims.objects[0], plural=True)}"
    elif claims.kind == "video":
        body = f"{_phrase(claims.objects[0])} moving {claims.motion}"
    else:
        parts = [_placed_phrase(claim) for claim in claims.objects]
        if claims.word:
            parts.append(f"the word {claims.word}")
        body = " and ".join(parts)
    return body + (f" on a {claims.background} background" if claims.background else "")


def _one_of(values: Sequence[str]) -> str:
    return "|".join(sorted(values, key=len, reverse=True))


_PHRASE = (
    rf"(?:(?P<size>{_one_of(tuple(SIZES))}) )?(?:(?P<texture>{_one_of(TEXTURES)}) )?"
    rf"(?:(?P<colour>{_one_of(tuple(COLOURS))}) )?"
    rf"(?P<noun>{_one_of((*SHAPES, *_SINGULARS, 'object', 'objects'))})"
    rf"(?: with an? (?P<emblem_colour>{_one_of(tuple(COLOURS))}) (?P<emblem_shape>{_one_of(SHAPES)}) inside)?"
    rf"(?: (?P<place>{_one_of(tuple(PLACES.values()))}))?"
)
_OBJECT = re.compile(rf"(?:an? )?{_PHRASE}")
_BACKGROUND = re.compile(rf"(?P<body>.+) on a (?P<background>{_one_of(tuple(BACKGROUNDS))}) background")
_COUNT = re.compile(rf"(?P<number>{_one_of(NUMBERS[2:])}) (?P<rest>.+)")
_PAIR = re.compile(rf"(?P<first>.+?) (?P<relation>{_one_of(RELATIONS)}) (?P<second>an? .+)")
_VIDEO = re.compile(rf"(?P<first>.+) moving (?P<motion>{_one_of(tuple(DIRECTIONS))})")
_REGION_OF_PLACE = {place: region for region, place in PLACES.items()}


def _parse_object(text: str) -> ObjectClaim | None:
    found = _OBJECT.fullmatch(text)
    if found is None:
        return None
    noun = _SINGULARS.get(found["noun"], found["noun"])
    return ObjectClaim(
        shape=noun if noun in SHAPES else None,
        colour=found["colour"],
        size=found["size"],
        texture=found["texture"],
        position=_REGION_OF_PLACE[found["place"]] if found["place"] else None,
        emblem=(found["emblem_shape"], found["emblem_colour"]) if found["emblem_shape"] else None,
    )


def _parse_body(body: str) -> Claims | None:
    if found := _COUNT.fullmatch(body):
        claim = _parse_object(found["rest"])
        return Claims("count", (claim,), NUMBERS.index(found["number"])) if claim else None
    if found := _VIDEO.fullmatch(body):
        claim = _parse_object(found["first"])
        return Claims("video", (claim,), 1, motion=found["motion"]) if claim else None
    if found := _PAIR.fullmatch(body):
        pair = (_parse_object(found["first"]), _parse_object(found["second"]))
        if pair[0] is not None and pair[1] is not None:
            return Claims("pair", (pair[0], pair[1]), 2, relation=found["relation"])
    parts = body.split(" and ")
    word = None
    if parts[-1].startswith("the word "):
        word = parts.pop().removeprefix("the word ")
    objects = [_parse_object(part) for part in parts]
    claims = tuple(claim for claim in objects if claim is not None)
    if len(claims) != len(objects):
        return None
    kind = "word" if word else "object" if len(claims) == 1 else "group"
    return Claims(kind, claims, len(claims), word=word)


def parse_caption(caption: str) -> Claims:
    """Reads a caption back into what it claims: `parse_caption(describe(claims)) == claims`.

    Raises:
        DataError: the text is no sentence of the grammar.
    """
    found = _BACKGROUND.fullmatch(caption)
    body, background = (found["body"], found["background"]) if found else (caption, None)
    claims = _parse_body(body)
    if claims is not None:
        claims = replace(claims, background=background)
        if describe(claims) == caption:
            return claims
    raise DataError(
        f"the caption {caption!r} is no sentence of the world Shapes; expected for example "
        "'a red circle', 'a red circle left of a blue square' or 'three green stars'"
    )


def check_claims(claims: Claims, scene: Scene, *, num_strays: int = 0, tolerance: float = 0.0) -> dict[str, bool]:
    """Which claims hold in a scene.

    Objects are matched to claims so that as many checks as possible hold. The check `count` wants exactly the
    stated number of objects, no unstated word or emblem, and nothing else in the picture.

    Args:
        claims: what is claimed.
        scene: what there is.
        num_strays: things in the picture that are no objects of the world.
        tolerance: by how much a centre may lie outside of its region, as a share of the picture's side.

    Returns:
        Claim to whether it holds, among `count, shape, colour, size, texture, position, emblem, relation,
        background, word`; only what is stated is there. A motion is not checked: it needs several pictures.
    """
    claimed_emblems = sum(claim.emblem is not None for claim in claims.objects)
    checks = {
        "count": len(scene.objects) == claims.count
        and num_strays == 0
        and (scene.word is None or claims.word is not None)
        and sum(item.emblem is not None for item in scene.objects) <= claimed_emblems
    }
    checks.update(_best_match(claims, scene, tolerance))
    if claims.background is not None:
        checks["background"] = scene.background == claims.background
    if claims.word is not None:
        checks["word"] = scene.word is not None and scene.word.text == claims.word
    return checks


def _best_match(claims: Claims, scene: Scene, tolerance: float) -> dict[str, bool]:
    """The checks of objects and their relation, objects matched to claims so that most hold."""
    wanted = claims.objects * claims.count if claims.kind == "count" else claims.objects
    missing = max(0, len(wanted) - len(scene.objects))
    there: list[SceneObject | None] = [*scene.objects, *[None] * missing]
    matchings: Iterator[tuple[SceneObject | None, ...]]
    if claims.kind == "count" or len(there) > _MAXIMUM_MATCHED:
        matchings = itertools.islice(itertools.combinations(there, len(wanted)), 64)
    else:
        matchings = itertools.permutations(there, len(wanted))
    best: dict[str, bool] = {}
    best_score = -1
    for matching in matchings:
        outcome: dict[str, bool] = {}
        score = 0
        for claim, item in zip(wanted, matching, strict=True):
            for name, holds in _object_checks(claim, item, tolerance).items():
                outcome[name] = outcome.get(name, True) and holds
                score += holds
        if claims.relation is not None:
            first, second = matching
            outcome["relation"] = (
                first is not None and second is not None and relation_between(first, second) == claims.relation
            )
            score += outcome["relation"]
        if score > best_score:
            best, best_score = outcome, score
    return best


def _object_checks(claim: ObjectClaim, item: SceneObject | None, tolerance: float) -> dict[str, bool]:
    """Which of an object's claims hold; none where it is missing."""
    checks: dict[str, bool] = {}
    for name in ("shape", "colour", "texture", "emblem"):
        stated = getattr(claim, name)
        if stated is not None:
            checks[name] = item is not None and getattr(item, name) == stated
    if claim.size is not None:
        checks["size"] = item is not None and item.size_name == claim.size
    if claim.position is not None:
        checks["position"] = item is not None and claim.position in _regions_near(item, tolerance)
    return checks


def _regions_near(item: SceneObject, tolerance: float) -> set[str]:
    shifts = (-tolerance, 0.0, tolerance)
    x, y = item.centre
    return {replace(item, centre=(x + dx, y + dy)).region for dx in shifts for dy in shifts}


def tokens_of(text: str) -> list[str]:
    """A text's words, with the question mark and the comma as words of their own."""
    return re.findall(r"[a-z0-9]+|[?,]", text)


def caption_vocabulary() -> set[str]:
    """Every word that a caption can have."""
    grammar = "a an the and with inside moving word object objects background in on at"
    phrases = (*RELATIONS, *REGIONS, *SHAPES, *PLURALS.values(), *COLOURS, *SIZES, *TEXTURES, *BACKGROUNDS)
    words = (*NUMBERS[2:], *DIRECTIONS, *WORDS)
    return set(tokens_of(" ".join((grammar, *phrases, *words))))
