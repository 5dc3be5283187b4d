from __future__ import annotations

import numpy as np
import pytest

from unimm.data.digits import DIGIT_NAMES, QUESTION, SPLIT_SHARES, TASKS, digit_images, digits_dataset, split_indices
from unimm.data.rows import validate_row
from unimm.errors import ConfigError


def test_splits_are_disjoint_and_hold_every_digit():
    splits = [set(split_indices(split)) for split in SPLIT_SHARES]
    assert [len(split) for split in splits] == [1258, 180, 359]
    assert set.union(*splits) == set(range(1797))
    assert sum(len(split) for split in splits) == 1797


def test_splits_are_stratified():
    for split, share in SPLIT_SHARES.items():
        counts = np.bincount(digit_images(split)[1], minlength=10)
        assert (abs(counts - share * 179.7) < 6).all()


def test_splits_never_change():
    assert split_indices("test")[:6] == (0, 8, 17, 21, 23, 36)


@pytest.mark.needs("datasets")
@pytest.mark.parametrize("task", TASKS)
def test_rows_have_the_schema_and_their_label(task):
    rows = digits_dataset(task, "validation")
    images, labels = digit_images("validation")
    assert len(rows) == 180
    assert len(set(rows["id"])) == 180
    for number in range(20):
        row = validate_row(rows[number])
        assert row["label"] == labels[number]
        assert np.array_equal(np.asarray(row["images"][0]), images[number])


@pytest.mark.needs("datasets")
def test_captions_questions_and_answers_name_the_digit():
    (caption,) = digits_dataset("caption", num_rows=1)
    (question,) = digits_dataset("question", num_rows=1)
    name = DIGIT_NAMES[caption["label"]]
    assert caption["messages"][0]["content"][0]["text"] == f"a handwritten {name}"
    assert question["messages"][0]["content"][1]["text"] == QUESTION
    assert question["messages"][1]["content"][0]["text"] == name


@pytest.mark.parametrize("resolution", [10, 16, 32, 64])
def test_digits_are_white_on_black_at_any_resolution(resolution):
    images, _ = digit_images("test", resolution)
    assert images.shape == (359, resolution, resolution, 3)
    assert images.dtype == np.uint8
    assert images[:, 0, 0].max() < 60
    assert images.reshape(359, -1).max(axis=1).min() > 200


def test_the_enlarged_digit_still_holds_the_small_one():
    from sklearn.datasets import load_digits

    small = load_digits().images[list(split_indices("test"))] / 16
    images, _ = digit_images("test", 40)
    shrunk = images[:, 4:36, 4:36, 0].reshape(359, 8, 4, 8, 4).mean((2, 4)) / 255
    assert np.corrcoef(small.ravel(), shrunk.ravel())[0, 1] > 0.97


@pytest.mark.needs("datasets")
def test_changed_copies_are_drawn_from_the_seed_and_stay_inside():
    first = digits_dataset(num_rows=1300, augment=True, seed=1)
    again = digits_dataset(num_rows=1300, augment=True, seed=1)
    other = digits_dataset(num_rows=1300, augment=True, seed=2)
    assert len(first) == 1300

    def picture(rows, number):
        return np.asarray(rows[number]["images"][0])

    assert all(np.array_equal(picture(first, number), picture(again, number)) for number in range(0, 1300, 100))
    assert all(not np.array_equal(picture(first, number), picture(other, number)) for number in range(0, 1300, 100))
    assert not np.array_equal(picture(first, 0), picture(first, 1258))
    assert first[0]["label"] == first[1258]["label"]
    plain = digit_images("train")[0].mean()
    assert abs(np.mean([picture(first, number).mean() for number in range(300)]) / plain - 1) < 0.05


@pytest.mark.needs("datasets")
def test_streamed_digits_are_the_same():
    rows = list(digits_dataset("question", "test", num_rows=5, streaming=True))
    assert [row["id"] for row in rows] == list(digits_dataset("question", "test", num_rows=5)["id"])
    assert rows[0]["images"][0].size == (32, 32)


@pytest.mark.needs("datasets")
@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"task": "captions"}, r"no task 'captions' \(did you mean 'caption'\?\)"),
        ({"split": "val"}, r"no split 'val'"),
        ({"resolution": 8}, "resolution must be 10 or more, given 8"),
        ({"num_rows": 0}, "num_rows must be 1 or more, given 0"),
        ({"split": "test", "augment": True}, "changes training digits only"),
    ],
)
def test_wrong_arguments_are_refused(options, problem):
    with pytest.raises(ConfigError, match=problem):
        digits_dataset(**options)
