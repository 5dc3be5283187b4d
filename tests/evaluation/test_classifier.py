from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image, ImageFilter

from unimm.data.digits import digit_images
from unimm.errors import DataError, ImageError
from unimm.evaluation.classifier import DigitsJudge

pytestmark = pytest.mark.needs("datasets")


@pytest.fixture(scope="module")
def judge() -> DigitsJudge:
    return DigitsJudge.fit(seed=0)


def test_the_judge_names_at_least_97_percent_of_held_out_digits(judge):
    assert judge.accuracy["n"] == 359
    assert judge.accuracy["right"] >= 0.97
    assert judge.accuracy["interval"][0] < judge.accuracy["right"] < judge.accuracy["interval"][1]
    images, labels = digit_images("test")
    assert (judge.predict(images) == labels).mean() == judge.accuracy["right"]


def test_the_same_seed_gives_the_same_judge():
    images, _ = digit_images("test")
    first, again = DigitsJudge.fit(seed=3, num_copies=1), DigitsJudge.fit(seed=3, num_copies=1)
    other = DigitsJudge.fit(seed=4, num_copies=1)
    assert np.array_equal(first.predict(images), again.predict(images))
    assert np.array_equal(first._classifier.support_vectors_, again._classifier.support_vectors_)
    assert not np.array_equal(first._classifier.support_vectors_, other._classifier.support_vectors_)


@pytest.mark.parametrize("resolution", [16, 24, 48, 64])
def test_the_judge_reads_digits_of_any_size(judge, resolution):
    assert judge.score(*digit_images("test", resolution))["right"] >= 0.97


@pytest.mark.parametrize("spoil", ["jpeg", "blur", "noise"])
def test_slight_damage_as_a_tokenizer_does_costs_little(judge, spoil):
    images, labels = digit_images("test")
    draws = np.random.default_rng(0)

    def spoiled(image: np.ndarray) -> Image.Image:
        picture = Image.fromarray(image)
        if spoil == "blur":
            return picture.filter(ImageFilter.GaussianBlur(1.0))
        if spoil == "noise":
            return Image.fromarray(np.clip(image + draws.normal(0, 12, image.shape), 0, 255).astype(np.uint8))
        buffer = io.BytesIO()
        picture.save(buffer, "JPEG", quality=75)
        return Image.open(io.BytesIO(buffer.getvalue()))

    assert judge.score([spoiled(image) for image in images], labels)["right"] >= 0.96


def test_noise_and_wrong_labels_are_right_no_more_often_than_chance(judge):
    images, labels = digit_images("test")
    noise = np.random.default_rng(0).integers(0, 256, (1000, 32, 32, 3), dtype=np.uint8)
    assert judge.score(noise, np.arange(1000) % 10)["right"] < 0.14
    assert judge.score(images, (labels + 1) % 10)["right"] < 0.02


def test_wrong_pictures_and_labels_are_refused(judge):
    images, labels = digit_images("test")
    with pytest.raises(ImageError, match=r"given float64 \(32, 32, 3\)"):
        judge.predict(images[:2] / 255)
    with pytest.raises(ImageError, match="given str"):
        judge.predict(["picture"])
    with pytest.raises(ImageError, match="10 pixels or more, given 8 x 8"):
        judge.predict(images[:2, :8, :8])
    with pytest.raises(ImageError, match="at least one picture"):
        judge.predict([])
    with pytest.raises(DataError, match="given 2 labels for 3 pictures"):
        judge.score(images[:3], labels[:2])
    with pytest.raises(DataError, match=r"0 to 9; given \[10\]"):
        judge.score(images[:1], [10])
