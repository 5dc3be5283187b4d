"""Scenes, pictures, splits and determinism of the world Shapes."""

from __future__ import annotations

import itertools
import multiprocessing
import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from unimm.data.shapes import (
    Scene,
    SceneObject,
    SceneWord,
    ShapesSampler,
    WorldConfig,
    held_out_combinations,
    render,
    segment,
)
from unimm.data.shapes.font import LETTERS, glyphs
from unimm.data.shapes.rendering import shape_coverage
from unimm.data.shapes.sampling import BORDER_MARGIN, OBJECT_MARGIN, smallest_glyph, smallest_object
from unimm.data.shapes.scenes import BACKGROUNDS, COLOURS, RELATIONS, SHAPES, SIZES, relation_between
from unimm.errors import ConfigError, DataError, ImageError

ALL_KINDS = ("object", "pair", "count", "group", "word")


def draw(split: str = "train", **options) -> ShapesSampler:
    return ShapesSampler(split, **{"resolution": 64, "kinds": ALL_KINDS, "num_questions": 0, **options})


def test_the_world_has_at_least_five_shapes_eight_colours_and_three_sizes():
    assert len(SHAPES) >= 5
    assert len(COLOURS) >= 8
    assert len(SIZES) >= 3


def test_colours_and_backgrounds_are_far_from_each_other():
    colours = np.array([*COLOURS.values(), *BACKGROUNDS.values()], dtype=float)
    distances = [np.linalg.norm(a - b) for a, b in itertools.combinations(colours, 2)]
    assert min(distances) >= 90


def test_letters_touch_all_four_sides_of_their_boxes_and_differ_from_each_other():
    table = glyphs()
    for letter, glyph in zip(LETTERS, table, strict=True):
        assert all(edge.any() for edge in (glyph[0], glyph[-1], glyph[:, 0], glyph[:, -1])), letter
    assert min(np.abs(a - b).sum() for a, b in itertools.combinations(table, 2)) >= 2


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("side", [9, 64])
def test_the_coverage_of_a_shape_equals_that_of_supersampling(shape, side):
    coarse = shape_coverage(shape, (side / 2, side / 2), side / 2, (0, side), (0, side))
    factor = 16
    fine = shape_coverage(shape, (side * factor / 2,) * 2, side * factor / 2, (0, side * factor), (0, side * factor))
    expected = fine.reshape(side, factor, side, factor).mean(axis=(1, 3))
    assert np.abs(coarse - expected).mean() < 0.03
    assert abs(coarse.sum() / expected.sum() - 1) < 0.02


def test_a_picture_at_twice_the_resolution_averages_to_the_picture():
    sampler = draw(kinds=("object", "pair", "count"))
    for index in range(20):
        scene = sampler[index].scene
        large = render(scene, 128).astype(float).reshape(64, 2, 64, 2, 3).mean(axis=(1, 3))
        assert np.abs(large - render(scene, 64)).mean() < 1.0


def test_objects_and_words_keep_their_margins():
    for sample in itertools.islice(draw(), 300):
        boxes = [(*item.centre, item.size / 2, item.size / 2) for item in sample.scene.objects]
        if sample.scene.word:
            width, height = sample.scene.word.extent
            boxes.append((*sample.scene.word.centre, width / 2, height / 2))
        for x, y, half_width, half_height in boxes:
            assert min(x - half_width, y - half_height) >= BORDER_MARGIN - 1e-9
            assert max(x + half_width, y + half_height) <= 1 - BORDER_MARGIN + 1e-9
        for first, second in itertools.combinations(boxes, 2):
            gap_x = abs(first[0] - second[0]) - first[2] - second[2]
            gap_y = abs(first[1] - second[1]) - first[3] - second[3]
            assert max(gap_x, gap_y) >= OBJECT_MARGIN - 1e-9


def test_the_layout_of_a_scene_is_what_its_picture_shows():
    sampler = draw(kinds=("object", "pair", "group"))
    for index in range(20):
        sample = sampler[index]
        layout = segment(sample.scene, 64)
        background = np.array(BACKGROUNDS[sample.scene.background])
        coloured = np.abs(sample.image.astype(int) - background).max(axis=2) > 0
        assert (layout > 0).sum() > 0
        assert coloured[layout > 0].all()
        assert {SHAPES[number - 1] for number in np.unique(layout[layout > 0])} == {
            item.shape for item in sample.scene.objects
        }


def test_a_row_depends_on_seed_split_task_and_number_alone():
    sampler = draw()
    again = draw(num_rows=7)
    assert np.array_equal(sampler[5].image, again[5].image)
    assert sampler[5].caption == again[5].caption
    scenes = {sampler[5].scene, draw(seed=1)[5].scene, draw("validation")[5].scene, sampler[6].scene}
    scenes.add(ShapesSampler("train", task="questions")[5].scene)
    assert len(scenes) == 5
    assert sampler.sample(2**40).scene == draw().sample(2**40).scene


def _fingerprint(indices: list[int]) -> list[bytes]:
    sampler = draw()
    return [pickle.dumps((sampler[i].image.tobytes(), sampler[i].caption)) for i in indices]


def test_rows_are_the_same_in_other_processes():
    chunks = [[0, 3, 6], [1, 4, 7], [2, 5, 8]]
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        rows = pool.map(_fingerprint, chunks)
    by_index = {
        index: row for chunk, part in zip(chunks, rows, strict=True) for index, row in zip(chunk, part, strict=True)
    }
    assert [by_index[index] for index in range(9)] == _fingerprint(list(range(9)))


@pytest.mark.parametrize("split", ["train", "validation"])
@pytest.mark.parametrize("task", ["captions", "questions"])
def test_train_and_validation_never_show_a_held_out_combination(split, task):
    sampler = ShapesSampler(split, task=task, kinds=("object", "pair", "count", "group"), num_questions=0)
    held_out = held_out_combinations()
    assert not any(held_out.has_scene(sampler[index].scene) for index in range(1500))


@pytest.mark.parametrize("task", ["captions", "questions"])
def test_held_out_only_shows_a_held_out_combination_in_every_scene(task):
    sampler = ShapesSampler(
        "test", task=task, kinds=("object", "pair", "count", "group"), num_questions=0, held_out_only=True
    )
    held_out = held_out_combinations()
    assert all(held_out.has_scene(sampler[index].scene) for index in range(500))


def test_the_test_split_shows_the_wanted_share_of_held_out_combinations():
    held_out = held_out_combinations()
    for share in (0.0, 0.25, None):
        sampler = ShapesSampler("test", num_questions=0, held_out_share=share)
        seen = np.mean([held_out.has_scene(sampler[index].scene) for index in range(1500)])
        assert abs(seen - (0.5 if share is None else share)) < 0.05


def test_held_out_combinations_leave_every_colour_shape_and_relation_in_train():
    held_out = held_out_combinations()
    for colour in COLOURS:
        assert sum(kept[0] == colour for kept in held_out.colour_shape) <= 2
    for shape in SHAPES:
        assert sum(kept[1] == shape for kept in held_out.colour_shape) <= 3
    assert {relation for _, _, relation in held_out.colour_shape_relation} == set(RELATIONS)
    assert not {kept[:2] for kept in held_out.colour_shape_relation} & held_out.colour_shape


def test_relations_of_pairs_hold_in_both_directions():
    inverse = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}
    sampler = draw(kinds=("pair",))
    relations = set()
    for index in range(200):
        first, second = sampler[index].scene.objects
        relation = relation_between(first, second)
        assert relation_between(second, first) == inverse[relation]
        relations.add(relation)
    assert relations == set(RELATIONS)


@given(st.integers(0, 10**9), st.sampled_from(ALL_KINDS))
@settings(max_examples=40, deadline=None)
def test_a_scene_survives_being_written_as_a_dictionary(index, kind):
    scene = draw(kinds=(kind,), attributes=("colour", "shape", "texture")).sample(index).scene
    assert Scene.from_dict(scene.to_dict()) == scene


def test_the_smallest_object_and_glyph_have_the_documented_sizes():
    assert smallest_object(32) == pytest.approx(8.96)
    assert smallest_glyph(64) == (10.0, 14.0)


def test_unknown_names_are_refused_with_the_nearest_known_one():
    with pytest.raises(DataError, match="did you mean 'circle'"):
        SceneObject("circel", "red", 0.3, (0.5, 0.5))
    with pytest.raises(ConfigError, match="did you mean 'background'"):
        WorldConfig(attributes=("backgrond",))
    with pytest.raises(ConfigError, match="did you mean 'kinds'"):
        ShapesSampler("train", kind=("object",))
    with pytest.raises(DataError, match="did you mean 'train'"):
        ShapesSampler("trian")
    with pytest.raises(DataError, match="letters a to z"):
        SceneWord("Hi!", (0.5, 0.5))


def test_settings_that_cannot_be_are_refused():
    with pytest.raises(ConfigError, match="must not have combinations"):
        ShapesSampler("train", held_out_only=True)
    with pytest.raises(ConfigError, match="64 pixels"):
        ShapesSampler("train", resolution=32, kinds=("word",))
    with pytest.raises(ConfigError, match="size 'small'"):
        ShapesSampler("train", kinds=("count",), sizes=("large",))
    with pytest.raises(ConfigError, match="one each"):
        ShapesSampler("train", kinds=("object", "pair"), kind_weights=(1.0,))
    with pytest.raises(ImageError, match="16 pixels"):
        ShapesSampler("train", resolution=8)
    with pytest.raises(IndexError):
        ShapesSampler("train", num_rows=3)[3]
