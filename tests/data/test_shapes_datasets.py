"""The tasks of the world Shapes: rows, data sets, edits, subjects, videos, damaged pictures."""

from __future__ import annotations

import numpy as np
import pytest

from unimm.data.shapes import (
    Scene,
    ShapesRows,
    check_claims,
    held_out_combinations,
    parse_caption,
    render,
    segment,
    shapes_dataset,
    tokens_of,
    vocabulary,
)
from unimm.data.shapes.datasets import ROWS_PER_SHARD
from unimm.data.shapes.edits import DEFAULT_EDIT_TYPES
from unimm.data.shapes.rows import LAYOUT_PALETTE, TASKS
from unimm.errors import ConfigError
from unimm.evaluation.shapes import ShapesJudge

NUM_IMAGES = {"captions": 1, "descriptions": 1, "questions": 1, "edits": 2, "preferences": 2, "subjects": 4, "layouts": 2,
              "restoration": 2, "videos": 8}  # fmt: skip


@pytest.mark.parametrize("task", TASKS)
def test_rows_follow_the_schema_and_stand_for_each_picture_at_most_once(task):
    words = set(vocabulary())
    rows = ShapesRows(task, "train", 40, 32)
    assert len({row["id"] for row in rows}) == len(rows) == 40
    for row in rows:
        assert {"id", "images", "messages", "source", "scene"} <= set(row)
        assert [image.shape for image in row["images"]] == [(32, 32, 3)] * NUM_IMAGES[task]
        assert all(image.dtype == np.uint8 for image in row["images"])
        content = [part for message in row["messages"] for part in message["content"]]
        num_placeholders = sum(part["type"] == "image" for part in content)
        assert num_placeholders == (0 if task == "preferences" else len(row["images"]))
        texts = [part["text"] for part in content if part["type"] == "text"]
        assert texts
        assert all(set(tokens_of(text)) <= words for text in texts)
        assert [message["role"] for message in row["messages"]][:1] == ["user"]


@pytest.mark.parametrize("task", TASKS)
def test_train_rows_never_show_a_held_out_combination(task):
    held_out = held_out_combinations()
    for row in ShapesRows(task, "train", 300, 16):
        assert not held_out.has_scene(Scene.from_dict(row["scene"]))


@pytest.mark.needs("datasets")
def test_a_data_set_in_memory_equals_the_rows_and_the_streamed_one():
    rows = ShapesRows("captions", "test", 12, 32, 3)
    stored = shapes_dataset("captions", "test", 12, 32, 3)
    streamed = shapes_dataset("captions", "test", 12, 32, 3, streaming=True)
    for row, kept, passing in zip(rows, stored, streamed, strict=True):
        assert row["id"] == kept["id"] == passing["id"]
        assert np.array_equal(row["images"][0], np.asarray(kept["images"][0]))
        assert np.array_equal(row["images"][0], np.asarray(passing["images"][0]))
        assert row["caption"] == kept["caption"] == passing["caption"]
        assert Scene.from_dict(kept["scene"]) == Scene.from_dict(row["scene"])


@pytest.mark.needs("datasets")
@pytest.mark.parametrize("task", TASKS)
def test_every_task_makes_a_data_set(task):
    data = shapes_dataset(task, num_rows=3, resolution=32)
    assert data.num_rows == 3
    assert data.column_names == list(ShapesRows(task)[0])
    assert len(data[2]["images"]) == NUM_IMAGES[task]


@pytest.mark.needs("datasets")
@pytest.mark.parametrize("num_workers", [0, 1, 2])
def test_a_streamed_data_set_gives_each_row_once_for_any_number_of_workers(num_workers):
    from torch.utils.data import DataLoader

    num_rows = 2 * ROWS_PER_SHARD + 5
    data = shapes_dataset("captions", num_rows=num_rows, resolution=16, streaming=True).select_columns(["id"])
    seen = [batch["id"] for batch in DataLoader(data, batch_size=None, num_workers=num_workers)]
    assert sorted(seen) == sorted(f"shapes-captions-train-0-{index}" for index in range(num_rows))


@pytest.mark.needs("datasets")
def test_two_processes_share_the_shards_of_a_streamed_data_set():
    from datasets.distributed import split_dataset_by_node

    data = shapes_dataset("captions", num_rows=2 * ROWS_PER_SHARD, resolution=16, streaming=True)
    data = data.select_columns(["id"])
    parts = [[row["id"] for row in split_dataset_by_node(data, rank, 2)] for rank in range(2)]
    assert [len(part) for part in parts] == [ROWS_PER_SHARD, ROWS_PER_SHARD]
    assert len({*parts[0], *parts[1]}) == 2 * ROWS_PER_SHARD


def test_an_edit_changes_what_it_says_and_nothing_else():
    rows = ShapesRows("edits", "train", 400, 16)
    seen = set()
    for row in rows:
        before, after = Scene.from_dict(row["scene_before"]), Scene.from_dict(row["scene"])
        seen.add(row["edit_type"])
        gone = [item for item in before.objects if item not in after.objects]
        new = [item for item in after.objects if item not in before.objects]
        counts = {"removal": (1, 0), "addition": (0, 1), "background": (0, 0)}
        assert (len(gone), len(new)) == counts.get(row["edit_type"], (1, 1))
        assert (before.background != after.background) == (row["edit_type"] == "background")
        instruction = row["messages"][0]["content"][1]["text"]
        if row["edit_type"] in ("colour", "shape"):
            assert getattr(new[0], row["edit_type"]) == instruction.split()[-1]
        if row["edit_type"] == "position":
            assert instruction.endswith(f"to the {new[0].region}")
    assert seen == set(DEFAULT_EDIT_TYPES)


def test_the_chosen_picture_of_a_preference_is_right_and_the_rejected_one_is_not():
    for row in ShapesRows("preferences", "train", 60, 32, kinds=("object", "pair", "count")):
        claims = parse_caption(row["caption"])
        chosen, rejected = (row["images"][row[name]] for name in ("chosen", "rejected"))
        scene = Scene.from_dict(row["scene"])
        assert all(check_claims(claims, scene).values())
        assert np.array_equal(chosen, render(scene, 32))
        assert not np.array_equal(chosen, rejected)


def test_one_attribute_can_be_asked_for_in_preferences():
    rows = ShapesRows("preferences", "train", 30, 16, altered_attribute="relation")
    assert {row["altered"] for row in rows} == {"relation"}
    assert all(parse_caption(row["caption"]).kind == "pair" for row in rows)


def test_the_views_of_a_subject_show_one_object_in_several_places():
    for row in ShapesRows("subjects", "train", 30, 32, num_views=5):
        claims = [parse_caption(caption) for caption in row["captions"]]
        assert len(row["images"]) == len({claim.objects[0].position for claim in claims}) == 5
        assert len({(c.objects[0].shape, c.objects[0].colour, c.objects[0].emblem) for c in claims}) == 1
        for turn, caption in zip(row["messages"][::2], row["captions"], strict=True):
            text = turn["content"][0]["text"]
            assert text.startswith(f"a {row['subject']} ")
            assert caption.endswith(text.removeprefix(f"a {row['subject']}"))


def test_layouts_are_the_palette_colours_of_the_segmentation():
    for row in ShapesRows("layouts", "train", 20, 32):
        assert np.array_equal(row["images"][0], LAYOUT_PALETTE[segment(Scene.from_dict(row["scene"]), 32)])


def test_damaged_pictures_differ_from_clean_ones_and_every_damage_appears():
    seen = set()
    for row in ShapesRows("restoration", "train", 60, 32):
        spoiled, clean = row["images"]
        seen.add(row["degradation"])
        assert np.array_equal(clean, render(Scene.from_dict(row["scene"]), 32))
        # A hole may hit a grey background; everything else changes some pixel.
        assert row["degradation"] == "hole" or not np.array_equal(spoiled, clean)
    assert seen == {"noise", "blur", "blocks", "pixels", "hole"}


def test_videos_begin_with_their_scene_and_move():
    for row in ShapesRows("videos", "train", 20, 32, num_frames=5):
        assert len(row["images"]) == 5
        assert np.array_equal(row["images"][0], render(Scene.from_dict(row["scene"]), 32))
        assert all(not np.array_equal(a, b) for a, b in zip(row["images"], row["images"][1:], strict=False))


@pytest.mark.needs("datasets")
def test_options_that_do_not_exist_or_fit_are_refused():
    with pytest.raises(ConfigError, match="did you mean 'captions'"):
        shapes_dataset("caption")
    with pytest.raises(ConfigError, match="did you mean 'num_frames'"):
        ShapesRows("videos", num_frame=3)
    with pytest.raises(ConfigError, match="has no option 'num_frames'"):
        ShapesRows("captions", num_frames=3)
    with pytest.raises(ConfigError, match="num_frames is 2 or more"):
        ShapesRows("videos", num_frames=1)
    with pytest.raises(ConfigError, match="need textures"):
        ShapesRows("edits", edit_types=("texture",))
    with pytest.raises(ConfigError, match="did you mean 'blur'"):
        ShapesRows("restoration", degradations=("blurr",))
    with pytest.raises(ConfigError, match="one row or more"):
        shapes_dataset("captions", num_rows=0)


def test_a_description_says_what_the_picture_shows():
    judge = ShapesJudge()
    for row in ShapesRows("descriptions", "train", 20, 64):
        asked, told = (turn["content"] for turn in row["messages"])
        assert [part["text"] for part in asked] == [None, "what is there?"]
        assert told[0]["text"] == row["caption"]
        assert judge.judge(row["images"][0], row["caption"]).right


def test_counting_questions_have_answers_in_a_world_without_small_objects():
    rows = ShapesRows("questions", "train", 300, 32, sizes=("medium", "large"), question_types=("count",))
    assert {row["label"] for row in rows} == {"one", "two", "three", "four"}


def test_an_error_inside_of_a_row_does_not_end_the_data_set(monkeypatch):
    rows = ShapesRows("captions", "train", 5, 32)
    monkeypatch.setattr(rows, "_make", lambda draws: [][0])
    with pytest.raises(IndexError):
        list(rows)
