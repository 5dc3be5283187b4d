"""Captions, questions and false statements of the world Shapes."""

from __future__ import annotations

from collections import Counter, defaultdict

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from unimm.data.shapes import (
    Claims,
    ObjectClaim,
    Scene,
    SceneObject,
    ShapesSampler,
    alter_claims,
    alter_scene,
    answer_question,
    check_claims,
    claims_of,
    describe,
    majority_baseline,
    parse_caption,
    tokens_of,
    vocabulary,
)
from unimm.data.shapes.questions import DEFAULT_QUESTION_TYPES, QUESTION_TYPES
from unimm.data.shapes.sampling import SceneSampler, WorldConfig
from unimm.data.shapes.scenes import (
    BACKGROUNDS,
    COLOURS,
    DIRECTIONS,
    REGIONS,
    RELATIONS,
    SHAPES,
    SIZES,
    TEXTURES,
    WORDS,
)
from unimm.data.shapes.splits import Draws, held_out_combinations
from unimm.errors import ConfigError, DataError

KINDS = ("object", "pair", "count", "group", "word")
RICH = ("colour", "shape", "size", "position", "background", "texture")


def maybe(values):
    return st.none() | st.sampled_from(list(values))


object_claims = st.builds(
    ObjectClaim,
    shape=maybe(SHAPES),
    colour=maybe(COLOURS),
    size=maybe(SIZES),
    texture=maybe(TEXTURES),
    emblem=st.none() | st.tuples(st.sampled_from(SHAPES), st.sampled_from(list(COLOURS))),
)
placed_claims = st.builds(
    lambda claim, place: ObjectClaim(claim.shape, claim.colour, claim.size, claim.texture, place, claim.emblem),
    object_claims,
    maybe(REGIONS),
)
any_claims = st.one_of(
    st.builds(Claims, st.just("object"), st.tuples(placed_claims), st.just(1)),
    st.builds(
        Claims,
        st.just("pair"),
        st.tuples(object_claims, object_claims),
        st.just(2),
        relation=st.sampled_from(RELATIONS),
    ),
    st.builds(Claims, st.just("count"), st.tuples(object_claims), st.integers(2, 6)),
    st.lists(placed_claims, min_size=2, max_size=4).map(lambda items: Claims("group", tuple(items), len(items))),
    st.builds(
        lambda items, word: Claims("word", tuple(items), len(items), word=word),
        st.lists(placed_claims, max_size=1),
        st.sampled_from(WORDS),
    ),
    st.builds(
        Claims,
        st.just("video"),
        st.tuples(object_claims),
        st.just(1),
        motion=st.sampled_from(list(DIRECTIONS)),
    ),
)


@given(any_claims, maybe(BACKGROUNDS))
@settings(max_examples=400, deadline=None)
def test_parsing_inverts_describing_for_everything_that_can_be_claimed(claims, background):
    claims = Claims(claims.kind, claims.objects, claims.count, claims.relation, background, claims.word, claims.motion)
    caption = describe(claims)
    assert parse_caption(caption) == claims
    assert set(tokens_of(caption)) <= set(vocabulary())


@pytest.mark.parametrize(
    "caption",
    ["", "a red", "red circle", "an red circle", "a circle red", "one red circle", "a red circle and",
     "Two red circles", "a red circle left a blue square", "a red circle on a pink background",
     "three green star"],
)  # fmt: skip
def test_a_text_outside_of_the_grammar_is_refused(caption):
    with pytest.raises(DataError, match="no sentence"):
        parse_caption(caption)


@given(st.integers(0, 10**9), st.sampled_from(KINDS), st.sets(st.sampled_from(RICH)))
@settings(max_examples=150, deadline=None)
def test_a_caption_states_only_what_is_true(index, kind, attributes):
    sampler = ShapesSampler(
        "test", resolution=64, kinds=(kind,), attributes=tuple(attributes), textures=TEXTURES, num_questions=0
    )
    sample = sampler.sample(index)
    claims = parse_caption(sample.caption)
    assert claims == sample.claims
    assert claims.kind == kind
    assert all(check_claims(claims, sample.scene).values())


def test_captions_state_the_wanted_attributes_and_optional_ones_half_of_the_time():
    plain = ShapesSampler("train", attributes=("shape",), num_questions=0)
    assert not any(set(tokens_of(plain[index].caption)) & {*COLOURS, *SIZES} for index in range(100))
    sampler = ShapesSampler(
        "train", kinds=("object",), attributes=("colour",), optional_attributes=("size",), num_questions=0
    )
    stated = sum(bool(set(tokens_of(sampler[index].caption)) & set(SIZES)) for index in range(1000))
    assert 440 < stated < 560


def test_kinds_are_drawn_with_their_weights():
    sampler = ShapesSampler("train", kinds=("object", "pair"), kind_weights=(3, 1), num_questions=0)
    counts = Counter(sampler[index].kind for index in range(1000))
    assert 700 < counts["object"] < 800


@given(st.integers(0, 10**9), st.sampled_from(KINDS))
@settings(max_examples=150, deadline=None)
def test_altered_claims_differ_in_one_attribute_and_are_false(index, kind):
    sample = ShapesSampler("test", resolution=64, kinds=(kind,), attributes=RICH, num_questions=0).sample(index)
    false_claims, attribute = alter_claims(sample.claims, sample.scene, Draws(0, "test", index, 99))
    assert parse_caption(describe(false_claims)) == false_claims
    assert not all(check_claims(false_claims, sample.scene, tolerance=0.03).values())
    pairs = zip(sample.claims.objects, false_claims.objects, strict=True)
    changed = [name for a, b in pairs for name in ObjectClaim.__slots__ if getattr(a, name) != getattr(b, name)]
    changed += [
        name
        for name in ("count", "relation", "background", "word")
        if getattr(sample.claims, name) != getattr(false_claims, name)
    ]
    assert changed == [attribute]


@given(st.integers(0, 10**9), st.sampled_from(KINDS), st.sampled_from(["train", "test"]))
@settings(max_examples=150, deadline=None)
def test_an_altered_scene_breaks_the_caption_and_respects_the_split(index, kind, split):
    config = WorldConfig(kinds=(kind,), attributes=RICH)
    sample = ShapesSampler(split, resolution=64, kinds=(kind,), attributes=RICH, num_questions=0).sample(index)
    scenes = SceneSampler(split, config)
    other, _ = alter_scene(sample.scene, sample.claims, scenes, Draws(0, split, index, 98))
    assert not all(check_claims(sample.claims, other, tolerance=0.03).values())
    assert split == "test" or not held_out_combinations().has_scene(other)


def test_a_claim_about_a_missing_or_surplus_object_does_not_hold():
    red = SceneObject("circle", "red", 0.28, (0.3, 0.3))
    blue = SceneObject("square", "blue", 0.28, (0.7, 0.3))
    claims = parse_caption("a red circle left of a blue square")
    assert all(check_claims(claims, Scene("white", (blue, red))).values())
    assert check_claims(claims, Scene("white", (red,))) == {
        "count": False, "shape": False, "colour": False, "relation": False,
    }  # fmt: skip
    assert not check_claims(parse_caption("a red circle"), Scene("white", (red, blue)))["count"]
    assert not check_claims(parse_caption("a red circle"), Scene("white", (red,)), num_strays=1)["count"]
    assert not any(check_claims(claims, Scene("white")).values())


@given(st.integers(0, 10**9), st.sampled_from(QUESTION_TYPES))
@settings(max_examples=150, deadline=None)
def test_a_question_made_for_a_scene_has_the_answer_that_the_scene_gives(index, question_type):
    sampler = ShapesSampler("test", task="questions", resolution=64, question_types=(question_type,), textures=TEXTURES)
    sample = sampler.sample(index)
    (question,) = sample.questions
    assert question.type == question_type
    assert answer_question(question.text, sample.scene) == question
    assert 1 <= len(question.answer.split()) <= 2
    words = set(tokens_of(f"{question.text} {question.answer}"))
    assert words <= set(vocabulary())


@given(st.integers(0, 10**9), st.sampled_from(KINDS))
@settings(max_examples=100, deadline=None)
def test_questions_about_captioned_scenes_have_the_answers_that_the_scenes_give(index, kind):
    sample = ShapesSampler("train", resolution=64, kinds=(kind,), num_questions=3).sample(index)
    assert len(sample.questions) == 3
    for question in sample.questions:
        assert answer_question(question.text, sample.scene) == question


def test_answers_are_balanced():
    sampler = ShapesSampler("train", task="questions", resolution=16)
    answers: dict[str, Counter] = defaultdict(Counter)
    questions = [sampler[index].questions[0] for index in range(6000)]
    for question in questions:
        answers[question.type][question.answer] += 1
    expected = {"colour": 8, "shape": 6, "count": 4, "position": 9, "relation": 2, "existence": 2}
    assert set(answers) == set(DEFAULT_QUESTION_TYPES) == set(expected)
    for name, counts in answers.items():
        assert len(counts) == expected[name]
        assert max(counts.values()) / sum(counts.values()) < 1.5 / expected[name], name
    assert majority_baseline(questions)["overall"] < 0.36


def test_the_majority_baseline_is_that_of_the_commonest_answer_per_type():
    rows = [{"question_type": "colour", "answer": a} for a in ("red", "red", "blue", "green")]
    rows += [{"question_type": "count", "answer": a} for a in ("one", "two")]
    assert majority_baseline(rows) == {"overall": 0.5, "colour": 0.5, "count": 0.5}
    with pytest.raises(DataError, match="at least one"):
        majority_baseline([])


def test_the_vocabulary_is_small_lower_case_and_sorted():
    words = vocabulary()
    assert len(words) < 150
    assert words == sorted(set(words))
    assert all(word in "?," or (word.isalpha() and word.islower()) for word in words)


def test_questions_and_captions_that_do_not_fit_a_scene_are_refused():
    scene = Scene("white", (SceneObject("circle", "red", 0.28, (0.3, 0.3)),))
    with pytest.raises(DataError, match="has 0"):
        answer_question("what colour is the square?", scene)
    with pytest.raises(DataError, match="no question"):
        answer_question("why is the circle red?", scene)
    with pytest.raises(DataError, match="cannot describe"):
        claims_of(scene, "pair")
    with pytest.raises(DataError, match="does not state"):
        alter_claims(claims_of(scene, "object"), scene, Draws(0, "train", 0), "size")
    with pytest.raises(ConfigError, match="did you mean 'colour'"):
        ShapesSampler("train", question_types=("color",))
