from __future__ import annotations

import copy

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from unimm.data.rows import (
    ROW_FIELDS,
    caption_row,
    class_row,
    content_id,
    conversation_row,
    edit_row,
    image_row,
    message,
    preference_row,
    question_row,
    row_features,
    validate_row,
)
from unimm.data.shapes import ShapesRows
from unimm.data.shapes.rows import TASKS
from unimm.data.transforms import encode_png
from unimm.errors import DataError

PICTURE = Image.new("RGB", (4, 4), "red")
OTHER = Image.new("RGB", (4, 4), "blue")


def kinds(row):
    return [(one["role"], [part["type"] for part in one["content"]]) for one in row["messages"]]


def test_builders_put_pictures_where_they_are_shown_or_drawn():
    assert kinds(caption_row(PICTURE, "red")) == [("user", ["text"]), ("assistant", ["image"])]
    assert kinds(question_row(PICTURE, "which?", "red")) == [("user", ["image", "text"]), ("assistant", ["text"])]
    assert kinds(image_row(PICTURE)) == [("assistant", ["image"])]
    assert kinds(class_row(PICTURE, 3)) == [("assistant", ["image"])]
    assert kinds(edit_row([PICTURE], "blue", OTHER)) == [("user", ["image", "text"]), ("assistant", ["image"])]
    assert class_row(PICTURE, 3)["label"] == 3
    assert edit_row([PICTURE], "blue", OTHER)["images"] == [PICTURE, OTHER]
    preference = preference_row("red", PICTURE, OTHER)
    assert (preference["chosen"], preference["rejected"], preference["images"]) == (0, 1, [PICTURE, OTHER])


def test_every_builder_gives_a_row_of_the_schema_and_nothing_else():
    rows = [
        caption_row(PICTURE, "red"),
        question_row(PICTURE, "which?", "red"),
        image_row(PICTURE),
        class_row(PICTURE, 0),
        edit_row([PICTURE, PICTURE], "blue", OTHER),
        preference_row("red", PICTURE, OTHER),
        conversation_row([PICTURE], [{"from": "human", "value": "<image>\nhello"}, {"from": "gpt", "value": "hi"}]),
    ]
    for row in rows:
        assert validate_row(row) is row
        assert set(row) <= set(ROW_FIELDS)


@pytest.mark.parametrize("task", TASKS)
def test_rows_of_the_world_shapes_have_the_schema(task):
    validate_row(ShapesRows(task, num_rows=1, resolution=32)[0])


def test_conversations_keep_text_and_pictures_in_reading_order():
    turns = [
        {"from": "system", "value": "be short"},
        {"from": "human", "value": "first <image> then <image>\n compare"},
        {"from": "gpt", "value": "same"},
        {"role": "user", "content": "sure?"},
        {"role": "assistant", "content": "yes"},
    ]
    row = conversation_row([PICTURE, OTHER], turns)
    assert [one["role"] for one in row["messages"]] == ["system", "user", "assistant", "user", "assistant"]
    assert row["messages"][1] == message("user", "first", None, "then", None, "compare")


@settings(max_examples=30, deadline=None)
@given(st.lists(st.sampled_from(["<image>", "a word", "two\nlines"]), min_size=1, max_size=6))
def test_a_conversation_mentions_as_many_pictures_as_it_has_marks(pieces):
    num_marks = pieces.count("<image>")
    turns = [{"from": "human", "value": " ".join(pieces)}, {"from": "gpt", "value": "fine"}]
    row = conversation_row([PICTURE] * num_marks, turns)
    assert sum(part["type"] == "image" for part in row["messages"][0]["content"]) == num_marks
    with pytest.raises(DataError, match=f"has {num_marks} '<image>' but the row has {num_marks + 1} pictures"):
        conversation_row([PICTURE] * (num_marks + 1), turns)


def test_conversations_with_unknown_speakers_or_without_text_are_refused():
    with pytest.raises(DataError, match="row 'x': turn 0 is from 'robot'; expected one of assistant, gpt, human"):
        conversation_row([], [{"from": "robot", "value": "hi"}], row_id="x")
    with pytest.raises(DataError, match="turn 0 says None; expected a text"):
        conversation_row([], [{"from": "human", "value": None}])


def test_an_id_depends_on_the_content_alone():
    assert caption_row(PICTURE, "red")["id"] == caption_row(PICTURE.copy(), "red")["id"]
    ids = {
        caption_row(PICTURE, "red")["id"],
        caption_row(OTHER, "red")["id"],
        caption_row(PICTURE, "blue")["id"],
        question_row(PICTURE, "red", "red")["id"],
        class_row(PICTURE, 1)["id"],
        class_row(PICTURE, 2)["id"],
        caption_row({"bytes": b"1", "path": None}, "red")["id"],
        caption_row({"bytes": None, "path": "1"}, "red")["id"],
        caption_row(np.zeros((4, 4, 3), np.uint8), "red")["id"],
    }
    assert len(ids) == 8  # the bytes b"1" and the path "1" are one content
    assert content_id([], []) == content_id([], [])


def broken(**changes):
    row = copy.deepcopy(caption_row(PICTURE, "red", row_id="row-7", source="test"))
    row.update(changes)
    return {name: value for name, value in row.items() if value is not ...}


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"messages": ..., "mesages": []}, r"'messages' is missing \(did you mean 'mesages'\?\)"),
        ({"source": 5}, "'source' is 5; expected a text"),
        ({"images": "a.png"}, "'images' is 'a.png'; expected a list of pictures"),
        ({"images": [3]}, r"'images\[0\]' is 3; expected a PIL picture"),
        ({"images": [np.zeros((2, 2))]}, r"'images\[0\]' is a float64 array \(2, 2\); expected a uint8 array"),
        ({"images": []}, "'images' is a list of 0 pictures; expected 1, as many as"),
        ({"images": [PICTURE, PICTURE]}, "'images' is a list of 2 pictures; expected 1, as many as"),
        ({"messages": []}, r"'messages' is \[\]; expected at least one message"),
        ({"messages": "hello"}, "'messages' is 'hello'; expected a list of messages"),
        ({"messages": [{"role": "user"}]}, r"'messages\[0\]' is .*expected a mapping with 'role' and 'content'"),
        ({"messages": [message("human", "x")]}, r"'messages\[0\].role' is 'human'; expected one of system, user"),
        ({"messages": [{"role": "user", "content": "x"}]}, r"'messages\[0\].content' is 'x'; expected a list"),
        ({"messages": [{"role": "user", "content": [{"type": "video"}]}]}, r".*content\[0\]' is .*'text' or 'image'"),
        ({"messages": [message("user", "  ")]}, r".*content\[0\].text' is '  '; expected a text that is not empty"),
        ({"label": -1}, "'label' is -1; expected a class number of 0 or more, or a text"),
        ({"label": True}, "'label' is True"),
        ({"chosen": 0}, "'rejected' is None; expected a value, since 'chosen' has one"),
        ({"chosen": 0, "rejected": 2}, "'rejected' is 2; expected the number of one of the row's 1 pictures"),
        ({"images": [PICTURE] * 3, "chosen": 1, "rejected": 1}, "'rejected' is 1; expected another picture"),
        ({"chosen": 0, "rejected": "worse"}, "'chosen' is 0; expected .* in both fields alike"),
    ],
)
def test_a_wrong_row_is_refused_with_its_id_the_field_and_what_was_expected(changes, problem):
    with pytest.raises(DataError, match=f"^row 'row-7': field {problem}"):
        validate_row(broken(**changes))


def test_a_row_without_id_is_refused():
    with pytest.raises(DataError, match="field 'id' is ''; expected a text that is not empty"):
        validate_row(broken(id=""))
    with pytest.raises(DataError, match="a row without id: field 'id' is missing"):
        validate_row(broken(id=...))


def test_preferences_between_answers_are_messages_whose_pictures_count():
    row = broken(messages=[message("user", "draw")], images=[PICTURE, OTHER])
    row |= {"chosen": [message("assistant", None)], "rejected": [message("assistant", None)]}
    assert validate_row(row) is row
    with pytest.raises(DataError, match="is a list of 1 pictures; expected 2"):
        validate_row({**row, "images": [PICTURE]})


@pytest.mark.needs("datasets")
def test_rows_go_through_arrow_and_come_back(tmp_path):
    from datasets import Dataset, Value

    OTHER.save(tmp_path / "blue.png")
    images = [{"bytes": encode_png(PICTURE), "path": None}, {"bytes": None, "path": str(tmp_path / "blue.png")}]
    rows = [class_row(images[0], 4), class_row(images[1], 5)]
    stored = Dataset.from_list(rows, features=row_features(Value("int64")))
    stored.save_to_disk(tmp_path / "rows")
    for loaded in (stored, Dataset.load_from_disk(tmp_path / "rows")):
        assert [row["label"] for row in loaded] == [4, 5]
        assert [row["images"][0].getpixel((0, 0)) for row in loaded] == [(255, 0, 0), (0, 0, 255)]
        for row in loaded:
            validate_row(row)
