"""Questions about pictures, with answers of one or two words that are balanced by construction."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ...errors import ConfigError, DataError, nearest
from .language import NUMBERS, PLURALS
from .sampling import MAXIMUM_COUNT, Pair, SceneSampler, common_pair, held_out_pair
from .scenes import (
    COLOURS,
    INVERSE_RELATIONS,
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
from .splits import Draws, held_out_combinations

QUESTION_TYPES = ("colour", "shape", "count", "position", "relation", "existence", "size", "texture", "word")

#: What `questions` data sets ask when nothing else is said; the other types need textures or written words.
DEFAULT_QUESTION_TYPES = ("colour", "shape", "count", "position", "relation", "existence")


@dataclass(frozen=True, slots=True)
class Question:
    """A question about a picture.

    Args:
        type: one of `QUESTION_TYPES`.
        text: lower-case, ends with a question mark.
        answer: one or two lower-case words.
    """

    type: str
    text: str
    answer: str


def check_question_types(types: Sequence[str]) -> tuple[str, ...]:
    """The types as a tuple.

    Raises:
        ConfigError: none are given, or one does not exist.
    """
    for name in types:
        if name not in QUESTION_TYPES:
            raise ConfigError(f"question_types has {name!r}, which does not exist{nearest(name, QUESTION_TYPES)}")
    if not types:
        raise ConfigError(f"question_types is empty; give at least one of {', '.join(QUESTION_TYPES)}")
    return tuple(types)


def _name(pair: Pair) -> str:
    return f"{pair[0]} {pair[1]}"


def _pair(item: SceneObject) -> Pair:
    return item.colour, item.shape


def _a(noun: str) -> str:
    return f"an {noun}" if noun[0] in "aeiou" else f"a {noun}"


_YES_NO = ("no", "yes")
_FORMS: tuple[tuple[str, re.Pattern[str]], ...] = (
    ("colour", re.compile(r"what colour is the (?P<noun>.+)\?")),
    ("shape", re.compile(r"what shape is the (?P<noun>.+)\?")),
    ("count", re.compile(r"how many (?P<nouns>.+) are there\?")),
    ("position", re.compile(r"where is the (?P<noun>.+)\?")),
    (
        "relation",
        re.compile(rf"is the (?P<first>.+) (?P<relation>{'|'.join(RELATIONS)}) the (?P<second>.+)\?"),
    ),
    ("existence", re.compile(r"is there an? (?P<noun>.+)\?")),
    ("size", re.compile(r"what size is the (?P<noun>.+)\?")),
    ("texture", re.compile(r"is the (?P<noun>.+) solid, striped or dotted\?")),
    ("word", re.compile(r"what word is written\?")),
)


def _matching(scene: Scene, noun: str) -> list[SceneObject]:
    """The objects that a noun phrase such as `red circle`, `circle` or `red object` names."""
    *adjectives, head = noun.split()
    found = []
    for item in scene.objects:
        if head not in ("object", item.shape):
            continue
        if all(word in (item.colour, item.size_name, item.texture) for word in adjectives):
            found.append(item)
    return found


def _only(scene: Scene, noun: str, text: str) -> SceneObject:
    found = _matching(scene, noun)
    if len(found) != 1:
        raise DataError(f"{text!r} asks about one {noun}, but the scene has {len(found)}")
    return found[0]


def answer_question(text: str, scene: Scene) -> Question:
    """Answers a question from the scene alone.

    Raises:
        DataError: the text is no question of the grammar, or it asks about something that is not there once.
    """
    for type_name, form in _FORMS:
        found = form.fullmatch(text)
        if found is None:
            continue
        if type_name == "count":
            *adjectives, plural = found["nouns"].split()
            singulars = {**{plural: shape for shape, plural in PLURALS.items()}, "objects": "object"}
            noun = " ".join((*adjectives, singulars.get(plural, plural)))
            answer = NUMBERS[len(_matching(scene, noun))]
        elif type_name == "relation":
            first = _only(scene, found["first"], text)
            second = _only(scene, found["second"], text)
            answer = _YES_NO[relation_between(first, second) == found["relation"]]
        elif type_name == "existence":
            answer = _YES_NO[bool(_matching(scene, found["noun"]))]
        elif type_name == "word":
            if scene.word is None:
                raise DataError(f"{text!r} is asked about a scene without a word")
            answer = scene.word.text
        else:
            item = _only(scene, found["noun"], text)
            answer = {
                "colour": item.colour,
                "shape": item.shape,
                "position": item.region,
                "size": item.size_name,
                "texture": item.texture,
            }[type_name]
        return Question(type_name, text, answer)
    raise DataError(f"{text!r} is no question of the world Shapes; expected for example 'what colour is the star?'")


def _near_miss(draws: Draws, scene: Scene) -> Pair:
    """A colour and shape that are not in the scene but, mostly, share one of them with something that is."""
    present = {_pair(item) for item in scene.objects}
    while True:
        if present and draws.uniform() < 0.75:
            colour, shape = draws.choice(sorted(present))
            if draws.uniform() < 0.5:
                colour = draws.choice(tuple(COLOURS))
            else:
                shape = draws.choice(SHAPES)
        else:
            colour, shape = common_pair(draws)
        if (colour, shape) not in present and (colour, shape) not in held_out_combinations().colour_shape:
            return colour, shape


def ask(scene: Scene, draws: Draws, types: Sequence[str] = DEFAULT_QUESTION_TYPES) -> Question:
    """A question about a given scene, of a type that applies to it.

    Questions with the answers yes and no are balanced; the others are as balanced as the scenes are. Use
    `sample_question` for scenes made for the question.

    Raises:
        DataError: none of the types applies to the scene.
    """
    objects = scene.objects
    nouns = Counter(item.shape for item in objects)
    colours = Counter(item.colour for item in objects)
    pairs = Counter(_pair(item) for item in objects)
    unique_shapes = [item for item in objects if nouns[item.shape] == 1]
    unique_colours = [item for item in objects if colours[item.colour] == 1]
    unique = [item for item in objects if pairs[_pair(item)] == 1]
    applicable = {
        "colour": bool(unique_shapes),
        "shape": bool(unique_colours),
        "count": bool(objects),
        "position": len(objects) == 1,
        "relation": len(unique) == 2 and len(objects) == 2,
        "existence": True,
        "size": bool(unique_shapes),
        "texture": any(item.size > SIZES["small"] for item in unique_shapes),
        "word": scene.word is not None,
    }
    options = [name for name in check_question_types(types) if applicable[name]]
    if not options:
        raise DataError(f"none of the question types {', '.join(types)} applies to the scene {scene}")
    type_name = draws.choice(options)
    if type_name == "colour":
        text = f"what colour is the {draws.choice(unique_shapes).shape}?"
    elif type_name == "shape":
        text = f"what shape is the {draws.choice(unique_colours).colour} object?"
    elif type_name == "count":
        noun = "objects" if draws.uniform() < 0.34 else PLURALS[draws.choice(objects).shape]
        text = f"how many {noun} are there?"
    elif type_name == "position":
        text = f"where is the {objects[0].shape}?"
    elif type_name == "relation":
        first, second = draws.shuffled(objects)
        relation = relation_between(first, second)
        if draws.uniform() < 0.5:
            wrong = [name for name in RELATIONS if name != relation]
            relation = INVERSE_RELATIONS[relation] if draws.uniform() < 0.5 else draws.choice(wrong)
        text = f"is the {_name(_pair(first))} {relation} the {_name(_pair(second))}?"
    elif type_name == "existence":
        present = bool(objects) and draws.uniform() < 0.5
        noun = _name(_pair(draws.choice(objects)) if present else _near_miss(draws, scene))
        text = f"is there {_a(noun)}?"
    elif type_name == "size":
        text = f"what size is the {draws.choice(unique_shapes).shape}?"
    elif type_name == "texture":
        large = [item for item in unique_shapes if item.size > SIZES["small"]]
        text = f"is the {draws.choice(large).shape} solid, striped or dotted?"
    else:
        text = "what word is written?"
    return answer_question(text, scene)


def _count_scene(sampler: SceneSampler, draws: Draws, held_out: bool) -> tuple[tuple[SceneObject, ...], str]:
    """Objects and a plural noun of which there are one to four, all numbers equally likely."""
    count = 1 + draws.integer(MAXIMUM_COUNT)
    pair = held_out_pair(draws) if held_out else common_pair(draws)
    if draws.uniform() < 0.34:
        if count == 1:
            return (sampler.single(draws, held_out, pair),), "objects"
        return sampler.group(draws, count, held_out), "objects"
    num_others = draws.integer(MAXIMUM_COUNT - count + 1)
    if num_others == 0:
        if count == 1:
            return (sampler.single(draws, held_out, pair),), PLURALS[pair[1]]
        return sampler.equal(draws, pair, count), PLURALS[pair[1]]

    def draw_pairs() -> list[Pair]:
        pairs = [pair] * count
        while len(pairs) < count + num_others:
            other = common_pair(draws)
            if other[1] != pair[1]:
                pairs.append(other)
        return pairs

    return sampler.group(draws, count + num_others, held_out, draw_pairs), PLURALS[pair[1]]


def sample_question(
    sampler: SceneSampler, draws: Draws, types: Sequence[str] = DEFAULT_QUESTION_TYPES
) -> tuple[Scene, Question]:
    """A scene made for a question, such that all answers to a type of question are about equally likely.

    Args:
        sampler: draws scenes of one split.
        draws: the row's random decisions.
        types: types of question, all equally likely.
    """
    config = sampler.config
    type_name = draws.choice(check_question_types(types))
    held_out = config.held_out_share > 0 and draws.uniform() < config.held_out_share
    background = draws.choice(config.backgrounds)
    if type_name == "count":
        objects, noun = _count_scene(sampler, draws, held_out)
        scene = Scene(background, objects)
        return scene, answer_question(f"how many {noun} are there?", scene)
    if type_name == "relation":
        return _asked(Scene(background, sampler.pair(draws, held_out)), draws, type_name)
    if type_name == "position":
        return _asked(
            Scene(background, (sampler.single(draws, held_out, region=draws.choice(REGIONS)),)),
            draws,
            type_name,
        )
    if type_name == "word":
        return _asked(sampler.sample(draws, "word"), draws, type_name)
    count = 1 + draws.integer(3)
    while True:
        single = count == 1
        objects = (sampler.single(draws, held_out),) if single else sampler.group(draws, count, held_out)
        scene = Scene(background, objects)
        if type_name == "existence":
            return _asked(scene, draws, type_name)
        item = draws.choice(objects)
        attribute = "colour" if type_name == "shape" else "shape"
        alone = sum(getattr(other, attribute) == getattr(item, attribute) for other in objects) == 1
        if type_name == "texture" and item.size <= SIZES["small"]:
            count = 1
            continue
        if alone:
            noun = f"{item.colour} object" if type_name == "shape" else item.shape
            text = {
                "colour": f"what colour is the {noun}?",
                "shape": f"what shape is the {noun}?",
                "size": f"what size is the {noun}?",
                "texture": f"is the {noun} solid, striped or dotted?",
            }[type_name]
            return scene, answer_question(text, scene)


def _asked(scene: Scene, draws: Draws, type_name: str) -> tuple[Scene, Question]:
    return scene, ask(scene, draws, (type_name,))


def majority_baseline(rows: Iterable[Question | Mapping[str, Any]]) -> dict[str, float]:
    """Accuracy of always giving the commonest answer to each type of question.

    Args:
        rows: questions, or mappings with the keys `question_type` and `answer`.

    Returns:
        `overall` and one entry per type, each in [0, 1].

    Raises:
        DataError: there are no rows.
    """
    answers: dict[str, Counter[str]] = {}
    for row in rows:
        type_name, answer = (
            (row.type, row.answer) if isinstance(row, Question) else (row["question_type"], row["answer"])
        )
        answers.setdefault(type_name, Counter())[answer] += 1
    if not answers:
        raise DataError("a majority baseline needs at least one question, but got none")
    best = {name: counts.most_common(1)[0][1] for name, counts in answers.items()}
    result = {name: best[name] / sum(counts.values()) for name, counts in sorted(answers.items())}
    return {
        "overall": sum(best.values()) / sum(sum(counts.values()) for counts in answers.values()),
        **result,
    }


def question_vocabulary() -> set[str]:
    """Every word that a question or an answer can have."""
    grammar = "what colour shape size word is the a an how many are there where written or object objects"
    grammar += " , ? yes no"
    words = (*SHAPES, *PLURALS.values(), *COLOURS, *SIZES, *TEXTURES, *RELATIONS, *REGIONS, *NUMBERS, *WORDS)
    return set(" ".join((grammar, *words)).split())
