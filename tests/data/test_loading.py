from __future__ import annotations

import io
import json
import logging
import pickle
import tarfile

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from unimm.data.cards import DataCard
from unimm.data.loading import check_card, export_rows, load_rows
from unimm.data.rows import validate_row
from unimm.errors import DataError, OutputError

datasets = pytest.importorskip("datasets")


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")


def colour(number: int) -> tuple[int, int, int]:
    return (10 * number, 255 - 10 * number, 77)


def png(number: int, size: tuple[int, int] = (6, 4)) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", size, colour(number)).save(buffer, "PNG")
    return buffer.getvalue()


def is_picture(image: Image.Image, number: int) -> bool:
    return image.mode == "RGB" and image.getpixel((0, 0)) == colour(number)


def write_parquet(folder, num_rows: int = 10, name: str = "train.parquet"):
    folder.mkdir(exist_ok=True)
    columns = {
        "photo": [{"bytes": png(number), "path": None} for number in range(num_rows)],
        "words": [f"picture {number}" for number in range(num_rows)],
        "kind": [number % 2 for number in range(num_rows)],
    }
    datasets.Dataset.from_dict(columns).to_parquet(folder / name)
    return folder


def parquet_card(folder, **changes) -> DataCard:
    fields = {
        "name": "mine",
        "pretty_name": "Mine",
        "license": "unknown",
        "task": "caption",
        "format": "parquet",
        "path": str(folder),
        "columns": {"image": "photo", "caption": "words"},
    }
    return DataCard(**{**fields, **changes})


def number_of(row) -> int:
    return int(row["messages"][0]["content"][0]["text"].split()[1])


def write_shard(path, samples: list[dict[str, bytes]], start: int = 0):
    path.parent.mkdir(exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for number, sample in enumerate(samples, start):
            for ending, content in sample.items():
                info = tarfile.TarInfo(f"{number:05d}.{ending}")
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))


def jpeg(number: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8), colour(number)).save(buffer, "JPEG", quality=95)
    return buffer.getvalue()


def captioned(numbers) -> list[dict[str, bytes]]:
    return [{"jpg": jpeg(number), "txt": f"picture {number}\n".encode()} for number in numbers]


def test_local_parquet_becomes_caption_rows_whose_columns_are_the_schema(tmp_path):
    rows = load_rows(parquet_card(write_parquet(tmp_path / "data")))
    assert isinstance(rows, datasets.Dataset)
    assert rows.column_names == ["id", "images", "messages", "source"]
    assert len(rows) == 10
    for number, row in enumerate(rows):
        validate_row(row)
        assert is_picture(row["images"][0], number)
        assert number_of(row) == number
        assert row["messages"][1]["content"][0]["type"] == "image"
        assert row["source"] == "mine"
    assert len(set(rows["id"])) == 10


def test_streamed_rows_are_the_prepared_rows(tmp_path):
    card = parquet_card(write_parquet(tmp_path / "data"))
    prepared = [(row["id"], number_of(row)) for row in load_rows(card)]
    # Without shuffling: `datasets` waits five seconds at the end of a shuffled stream of Parquet.
    streamed = load_rows(card, streaming=True, shuffle_buffer=0)
    assert isinstance(streamed, datasets.IterableDataset)
    rows = list(streamed)
    assert [(row["id"], number_of(row)) for row in rows] == prepared
    assert all(is_picture(row["images"][0], number_of(row)) for row in rows)
    for row in rows:
        validate_row(row)


def test_streaming_shuffles_by_the_seed_and_only_the_training_split(tmp_path):
    for split in ("train", "validation"):
        for shard in range(2):
            write_shard(tmp_path / split / f"{shard}.tar", captioned(range(5 * shard, 5 * shard + 5)))

    def order(split="train", **options):
        rows = load_rows("blip3o-60k", split, path=tmp_path, splits={}, streaming=True, **options)
        return [number_of(row) for row in rows]

    assert order(seed=1) == order(seed=1)
    assert order(seed=1) != order(seed=2)
    assert sorted(order(seed=1)) == list(range(10))
    assert order(shuffle_buffer=0) == list(range(10))
    assert order("validation") == list(range(10))


def test_every_epoch_of_a_stream_has_its_own_order(tmp_path):
    write_shard(tmp_path / "train.tar", captioned(range(10)))
    rows = load_rows("blip3o-60k", path=tmp_path, splits={}, streaming=True)
    orders = []
    for epoch in range(2):
        rows.set_epoch(epoch)
        orders.append([number_of(row) for row in rows])
    assert orders[0] != orders[1]
    assert sorted(orders[0]) == sorted(orders[1])


@pytest.mark.parametrize("shuffle_buffer", [0, 4])
def test_a_streamed_data_set_resumes_where_it_was(tmp_path, shuffle_buffer):
    write_shard(tmp_path / "train.tar", captioned(range(30)))
    options = {"path": tmp_path, "streaming": True, "shuffle_buffer": shuffle_buffer}
    whole = [number_of(row) for row in load_rows("blip3o-60k", **options)]
    first = load_rows("blip3o-60k", **options)
    iterator = iter(first)
    for _ in range(13):
        next(iterator)
    second = load_rows("blip3o-60k", **options)
    second.load_state_dict(first.state_dict())
    rest = [number_of(row) for row in second]
    if shuffle_buffer:
        # The buffer's rows are not part of the state: `datasets` gives them up, which its documentation says.
        assert 0 < len(rest) <= 17
        assert set(rest) <= set(whole)
    else:
        assert rest == whole[13:]


def test_workers_share_the_shards_of_a_stream(tmp_path):
    from torch.utils.data import DataLoader

    for shard in range(2):
        write_shard(tmp_path / f"train-{shard}.tar", captioned(range(4 * shard, 4 * shard + 4)))
    rows = load_rows("blip3o-60k", path=tmp_path, splits={}, streaming=True)
    loader = DataLoader(rows, batch_size=None, num_workers=2, collate_fn=number_of)
    assert sorted(loader) == list(range(8))


def test_num_rows_limits_prepared_and_streamed_rows(tmp_path):
    card = parquet_card(write_parquet(tmp_path / "data"))
    assert len(load_rows(card, num_rows=3)) == 3
    assert len(list(load_rows(card, num_rows=3, streaming=True))) == 3
    assert len(load_rows(card, num_rows=99)) == 10
    with pytest.raises(DataError, match="num_rows must be 1 or more, given 0"):
        load_rows(card, num_rows=0)


def test_prepared_rows_survive_pickling_and_concatenation(tmp_path):
    rows = load_rows(parquet_card(write_parquet(tmp_path / "data")))
    copy = pickle.loads(pickle.dumps(rows))
    assert is_picture(copy[2]["images"][0], 2)
    both = datasets.concatenate_datasets([rows, load_rows(parquet_card(tmp_path / "data", name="other"))])
    assert is_picture(both[12]["images"][0], 2)
    assert both[12]["source"] == "other"


@pytest.mark.parametrize("streaming", [False, True])
def test_a_missing_column_is_named_with_the_card_and_the_columns_that_exist(tmp_path, streaming):
    card = parquet_card(write_parquet(tmp_path / "data"), columns={"image": "photo", "caption": "text"})
    with pytest.raises(DataError, match=r"'mine'.*'text' for the role 'caption'.*only photo, words, kind"):
        load_rows(card, streaming=streaming)


def test_class_rows_keep_their_numbers_and_refuse_numbers_below_zero(tmp_path):
    folder = write_parquet(tmp_path / "data", 4)
    columns = {"image": "photo", "label": "kind"}
    rows = load_rows(parquet_card(folder, task="class", columns=columns))
    assert [row["label"] for row in rows] == [0, 1, 0, 1]
    datasets.Dataset.from_dict({"photo": [{"bytes": png(1), "path": None}], "kind": [-1]}).to_parquet(
        folder / "test.parquet"
    )
    with pytest.raises(DataError, match=r"label.* is -1; expected a class number of 0 or more"):
        load_rows(parquet_card(folder, task="class", columns=columns), "test")


def test_named_labels_become_the_numbers_of_the_card_s_class_names(tmp_path):
    (tmp_path / "data").mkdir()
    datasets.Dataset.from_dict({"image": [png(0), png(1)], "label": ["dog", "cat"]}).to_parquet(
        tmp_path / "data/train.parquet"
    )
    card = parquet_card(tmp_path / "data", task="class", columns={})
    rows = load_rows(card, class_names=["cat", "dog"])
    assert [row["label"] for row in rows] == [1, 0]
    assert rows.features["label"].names == ["cat", "dog"]
    with pytest.raises(DataError, match=r"'dog'.*list the names of all classes as class_names"):
        load_rows(card)
    with pytest.raises(DataError, match=r"'dog', which is no class \(did you mean 'dogs'\?\)"):
        load_rows(card, class_names=["cat", "dogs"])


def make_class_folder(root, splits: dict[str, dict[str, int]]):
    for split, classes in splits.items():
        for name, number in classes.items():
            (root / split / name).mkdir(parents=True)
            (root / split / name / "one.png").write_bytes(png(number))
    return root


def test_an_image_folder_with_class_folders_becomes_class_rows(tmp_path):
    root = make_class_folder(tmp_path / "pictures", {"train": {"ant": 0, "bee": 1, "cat": 2}, "test": {"cat": 2}})
    rows = load_rows("image_folder", path=root)
    assert rows.features["label"].names == ["ant", "bee", "cat"]
    assert [row["label"] for row in rows] == [0, 1, 2]
    assert all(is_picture(row["images"][0], row["label"]) for row in rows)


def test_a_class_that_a_split_lacks_does_not_shift_the_other_numbers(tmp_path):
    root = make_class_folder(
        tmp_path / "pictures", {"train": {"ant": 0, "bee": 1, "cat": 2}, "test": {"ant": 0, "cat": 2}}
    )
    assert [row["label"] for row in load_rows("image_folder", "test", path=root)] == [0, 2]
    with pytest.raises(DataError, match="no split 'validation', only train, test"):
        load_rows("image_folder", "validation", path=root)


def test_an_image_folder_with_metadata_becomes_caption_rows(tmp_path):
    for number in range(3):
        (tmp_path / f"{number}.png").write_bytes(png(number))
    lines = [json.dumps({"file_name": f"{number}.png", "text": f"picture {number}"}) for number in range(3)]
    (tmp_path / "metadata.jsonl").write_text("\n".join(lines))
    for streaming in (False, True):
        rows = list(load_rows("image_folder", path=tmp_path, streaming=streaming, shuffle_buffer=0))
        assert [number_of(row) for row in rows] == [0, 1, 2]
        assert all(is_picture(row["images"][0], number) for number, row in enumerate(rows))


def test_a_plain_image_folder_becomes_rows_without_prompt(tmp_path):
    (tmp_path / "[odd] name").mkdir()
    (tmp_path / "[odd] name" / "one.png").write_bytes(png(3))
    (row,) = load_rows("image_folder", path=tmp_path / "[odd] name")
    assert [one["role"] for one in row["messages"]] == ["assistant"]
    assert "label" not in row
    assert is_picture(row["images"][0], 3)
    with pytest.raises(DataError, match="needs the column 'text' for the role 'caption'"):
        load_rows("image_folder", path=tmp_path / "[odd] name", task="caption")


def test_metadata_that_makes_no_caption_is_warned_about(tmp_path, caplog):
    (tmp_path / "0.png").write_bytes(png(0))
    (tmp_path / "metadata.jsonl").write_text(json.dumps({"file_name": "0.png", "description": "picture 0"}))
    with caplog.at_level(logging.WARNING):
        load_rows("image_folder", path=tmp_path)
    assert "nothing is made of the columns description" in caplog.text
    (row,) = load_rows("image_folder", path=tmp_path, columns={"caption": "description"})
    assert number_of(row) == 0


@pytest.mark.parametrize("streaming", [False, True])
def test_webdataset_shards_become_caption_rows(tmp_path, streaming):
    for shard in range(2):
        write_shard(tmp_path / "shards" / f"sa_{shard:06d}.tar", captioned(range(3 * shard, 3 * shard + 3)))
    rows = list(load_rows("blip3o-60k", path=tmp_path / "shards", streaming=streaming))
    assert sorted(number_of(row) for row in rows) == list(range(6))
    assert len({row["id"] for row in rows}) == 6
    assert all(row["images"][0].size == (8, 8) and row["source"] == "blip3o-60k" for row in rows)


def test_a_column_may_be_a_key_within_another(tmp_path):
    samples = [{"jpg": jpeg(n), "json": json.dumps({"prompt": f"picture {n}"}).encode()} for n in range(6)]
    write_shard(tmp_path / "data_512_2M" / "data_000000.tar", samples)
    rows = load_rows("text-to-image-2m", path=tmp_path, streaming=True)
    assert sorted(number_of(row) for row in rows) == list(range(6))
    with pytest.raises(
        DataError, match="column 'json' has no key 'text' for the role 'caption', it has the keys prompt"
    ):
        list(load_rows("text-to-image-2m", path=tmp_path, streaming=True, columns={"caption": "json.text"}))


def make_llava_folder(folder, missing: bool = False):
    (folder / "images" / "00").mkdir(parents=True)
    entries = []
    for number in range(3):
        if not (missing and number == 1):
            (folder / "images" / "00" / f"{number}.png").write_bytes(png(number))
        turns = [
            {"from": "human", "value": "What is this?\n<image>" if number else "<image>\nWhat is this?"},
            {"from": "gpt", "value": f"picture {number}"},
        ]
        entries.append({"id": f"{number:09d}", "image": f"00/{number}.png", "conversations": turns})
    (folder / "blip_laion_cc_sbu_558k.json").write_text(json.dumps(entries))
    return folder


@pytest.mark.parametrize("streaming", [False, True])
def test_llava_conversations_become_messages_with_the_picture_where_its_mark_is(tmp_path, streaming):
    rows = list(
        load_rows("llava-pretrain", path=make_llava_folder(tmp_path / "llava"), streaming=streaming, shuffle_buffer=0)
    )
    assert [row["id"] for row in rows] == ["000000000", "000000001", "000000002"]
    kinds = [[part["type"] for part in row["messages"][0]["content"]] for row in rows]
    assert kinds == [["image", "text"], ["text", "image"], ["text", "image"]]
    for number, row in enumerate(rows):
        assert [one["role"] for one in row["messages"]] == ["user", "assistant"]
        assert row["messages"][1]["content"][0]["text"] == f"picture {number}"
        assert is_picture(row["images"][0], number)


def test_json_lines_with_pictures_become_edit_rows(tmp_path):
    for number in range(2):
        (tmp_path / f"{number}.png").write_bytes(png(number))
    entry = {"input_image": ["0.png"], "input_prompt": "make it one", "output_image": "1.png"}
    (tmp_path / "text_and_image_to_image.json").write_text(json.dumps([entry]))
    (row,) = load_rows("sharegpt-4o-image-edit", path=tmp_path)
    assert [is_picture(image, number) for number, image in enumerate(row["images"])] == [True, True]
    assert [part["type"] for part in row["messages"][0]["content"]] == ["image", "text"]


def test_question_and_preference_rows_come_from_json_lines(tmp_path):
    for number in range(2):
        (tmp_path / f"{number}.png").write_bytes(png(number))
    (tmp_path / "train.jsonl").write_text(
        json.dumps({"image": "0.png", "question": "what?", "answer": "this", "better": "1.png"})
    )
    card = parquet_card(tmp_path, format="json", task="question", columns={})
    (row,) = load_rows(card)
    assert [part["type"] for part in row["messages"][0]["content"]] == ["image", "text"]
    assert row["messages"][1]["content"][0]["text"] == "this"
    columns = {"caption": "question", "chosen_image": "better", "rejected_image": "image"}
    (row,) = load_rows(card, task="preference", columns=columns)
    assert (row["chosen"], row["rejected"]) == (0, 1)
    assert is_picture(row["images"][0], 1)


@pytest.mark.parametrize("streaming", [False, True])
def test_a_missing_picture_is_an_error_unless_rows_may_be_skipped(tmp_path, caplog, streaming):
    folder = make_llava_folder(tmp_path / "llava", missing=True)
    with pytest.raises(DataError, match=r"llava-pretrain.*'.*00/1.png', which does not exist"):
        list(load_rows("llava-pretrain", path=folder, streaming=streaming))
    with caplog.at_level(logging.WARNING):
        rows = list(load_rows("llava-pretrain", path=folder, streaming=streaming, on_error="skip", shuffle_buffer=0))
    assert [row["id"] for row in rows] == ["000000000", "000000002"]
    assert "skipped, the 1. row in this process" in caplog.text
    assert ("1 of 3 rows" in caplog.text) is not streaming


@pytest.mark.parametrize("streaming", [False, True])
def test_a_damaged_picture_is_an_error_that_names_it_unless_rows_may_be_skipped(tmp_path, streaming):
    folder = make_llava_folder(tmp_path / "llava")
    (folder / "images" / "00" / "1.png").write_bytes(png(1)[:40])
    with pytest.raises(DataError, match=r"the picture '.*/images/00/1.png' does not decode"):
        list(load_rows("llava-pretrain", path=folder, streaming=streaming))
    rows = list(load_rows("llava-pretrain", path=folder, streaming=streaming, on_error="skip", shuffle_buffer=0))
    assert [row["id"] for row in rows] == ["000000000", "000000002"]


def test_a_damaged_picture_within_a_shard_is_named_by_its_row(tmp_path):
    write_shard(tmp_path / "0.tar", [{"jpg": jpeg(1)[:-20], "txt": b"picture 1"}], start=7)
    with pytest.raises(DataError, match="the picture '00007/0' does not decode"):
        list(load_rows("blip3o-60k", path=tmp_path, columns={"id": "__key__"}))


@pytest.mark.parametrize("streaming", [False, True])
def test_rows_of_different_cards_can_be_mixed(tmp_path, streaming):
    Image.new("RGBA", (6, 4), (0, 0, 0, 0)).save(tmp_path / "clear.png")
    (tmp_path / "metadata.jsonl").write_text(json.dumps({"file_name": "clear.png", "text": "picture 0"}))
    sources = {
        "image-folder": load_rows("image_folder", path=tmp_path, streaming=streaming),
        "unimm/shapes": load_rows("shapes", task="questions", resolution=32, num_rows=3, streaming=streaming),
        "photographs": load_rows("photographs", resolution=32, num_rows=3, streaming=streaming),
    }
    for rows in (sources.values(), reversed(sources.values())):
        mixed = list(datasets.interleave_datasets(list(rows), stopping_strategy="all_exhausted"))
        assert {row["source"] for row in mixed} == set(sources)
        for row in mixed:
            validate_row(row)
            (image,) = row["images"]
            assert image.mode == "RGB"
            if row["source"] == "image-folder":
                assert image.getpixel((0, 0)) == (255, 255, 255)


def test_a_picture_that_is_back_is_not_skipped_again(tmp_path):
    folder = make_llava_folder(tmp_path / "llava", missing=True)
    assert len(load_rows("llava-pretrain", path=folder, on_error="skip")) == 2
    (folder / "images" / "00" / "1.png").write_bytes(png(1))
    assert len(load_rows("llava-pretrain", path=folder, on_error="skip")) == 3


def test_nothing_but_wrong_rows_is_an_error_even_when_rows_may_be_skipped(tmp_path):
    folder = write_parquet(tmp_path / "data", 2)
    card = parquet_card(folder, task="class", columns={"image": "photo", "label": "words"}, on_error="skip")
    with pytest.raises(DataError, match="all 2 rows of the split 'train' were skipped"):
        load_rows(card)


def test_splits_are_patterns_of_the_card_or_names_of_files(tmp_path):
    folder = write_parquet(tmp_path / "data", 3, "train-00000.parquet")
    write_parquet(folder, 2, "test-00000.parquet")
    assert len(load_rows(parquet_card(folder))) == 3
    assert len(load_rows(parquet_card(folder), "test")) == 2
    assert len(load_rows(parquet_card(folder, splits={"dev": ["test-*", "train-*"]}), "dev")) == 5
    with pytest.raises(DataError, match=r"no split 'trian' \(did you mean 'train'\?\)"):
        load_rows(parquet_card(folder, splits={"train": "train-*"}), "trian")
    with pytest.raises(DataError, match=r"no file in .* belongs to the split 'validation'"):
        load_rows(parquet_card(folder), "validation")


def test_a_place_that_is_missing_unreadable_or_not_given_is_said(tmp_path):
    with pytest.raises(DataError, match="names no place of its own; give the folder or file as path"):
        load_rows("image_folder")
    with pytest.raises(DataError, match=r"there is no '.*nowhere'"):
        load_rows("image_folder", path=tmp_path / "nowhere")
    (tmp_path / "train.parquet").write_bytes(b"not parquet")
    with pytest.raises(DataError, match=r"'mine': the split 'train' of .* cannot be read as parquet"):
        load_rows(parquet_card(tmp_path))
    with pytest.raises(DataError, match="Bring it into a folder:\nhf download liuhaotian/LLaVA-Pretrain"):
        load_rows("llava-pretrain")
    with pytest.raises(DataError, match=r"there is no option 'colums' \(did you mean 'columns'\?\)"):
        load_rows("image_folder", path=tmp_path, colums={})


def test_without_a_connection_a_hub_card_says_so_and_how_access_is_got():
    with pytest.raises(DataError, match=r"ILSVRC/imagenet-1k.*Without a connection.*Access: gated"):
        load_rows("imagenet-1k")


@pytest.mark.parametrize("streaming", [False, True])
def test_the_built_in_data_sets_give_rows_of_the_schema(streaming):
    shapes = load_rows("shapes", task="questions", resolution=32, num_rows=4, streaming=streaming)
    digits = load_rows("digits", "test", task="caption", num_rows=4, streaming=streaming)
    photographs = load_rows("photographs", resolution=32, num_rows=4, streaming=streaming)
    for rows in (shapes, digits, photographs):
        rows = list(rows)
        assert len(rows) == 4
        for row in rows:
            validate_row(row)
            assert row["images"][0].size == (32, 32)


def test_checking_counts_what_is_right_and_lists_what_is_wrong(tmp_path):
    report = check_card("llava-pretrain", path=make_llava_folder(tmp_path / "whole"))
    assert report.ok
    assert (report.num_rows, report.num_right, report.num_images) == (3, 3, 3)
    assert report.columns == ["id", "image", "conversations"]
    assert report.smallest == report.largest == (6, 4)
    assert report.text_lengths == (9, 13)

    report = check_card("llava-pretrain", path=make_llava_folder(tmp_path / "broken", missing=True))
    assert not report.ok
    assert (report.num_rows, report.num_right, report.num_problems) == (3, 2, 1)
    console = Console(record=True, width=200)
    console.print(report)
    assert "2 of 3 rows are right" in console.export_text()
    assert "which does not exist" in str(report)

    report = check_card("digits", "validation", num_rows=50)
    assert report.ok
    assert sum(report.labels.values()) == 50


def test_checking_reports_a_damaged_shard_instead_of_stopping(tmp_path):
    write_shard(tmp_path / "0.tar", captioned(range(6)))
    content = (tmp_path / "0.tar").read_bytes()
    (tmp_path / "1.tar").write_bytes(content[: len(content) * 3 // 10])
    report = check_card("blip3o-60k", path=tmp_path)
    assert report.num_right >= 6
    assert any("reading stopped" in problem for problem in report.problems)


@pytest.mark.parametrize("format", ["parquet", "json"])
def test_exported_rows_come_back_as_they_were(tmp_path, format):
    options = {"task": "questions", "resolution": 32, "seed": 3}
    path = tmp_path / ("rows.parquet" if format == "parquet" else "rows")
    assert export_rows("shapes", "test", path, num_rows=5, format=format, **options) == 5
    before = load_rows("shapes", "test", num_rows=5, **options)
    for streaming in (False, True):
        after = list(load_rows("exported_rows", path=path, format=format, streaming=streaming, shuffle_buffer=0))
        assert [row["id"] for row in after] == list(before["id"])
        for old, new in zip(before, after, strict=True):
            assert np.array_equal(np.asarray(old["images"][0]), np.asarray(new["images"][0]))
            assert new["messages"][0]["content"][1]["text"] == old["messages"][0]["content"][1]["text"]
            assert (new["label"], new["question_type"]) == (old["label"], old["question_type"])


def test_exported_parquet_is_an_ordinary_data_set_with_pictures(tmp_path):
    export_rows("digits", "validation", tmp_path / "rows.parquet", num_rows=3)
    plain = datasets.load_dataset("parquet", data_files=str(tmp_path / "rows.parquet"), split="train")
    assert plain[0]["images"][0].size == (32, 32)
    assert plain.features["label"].names[3] == "three"


def test_exporting_keeps_the_bytes_of_pictures_and_writes_nothing_when_a_row_is_wrong(tmp_path):
    write_shard(tmp_path / "shards" / "0.tar", captioned([1]))
    card = parquet_card(tmp_path / "shards", format="webdataset", columns={"image": "jpg", "caption": "txt"})
    export_rows(card, "train", tmp_path / "rows.parquet")
    exported = datasets.load_dataset("parquet", data_files=str(tmp_path / "rows.parquet"), split="train").with_format(
        "arrow"
    )
    assert exported[0]["images"].to_pylist()[0][0]["bytes"] == jpeg(1)

    folder = make_llava_folder(tmp_path / "llava", missing=True)
    broken = parquet_card(folder, format="json", task="conversation", columns={}, image_root="images")
    for format in ("parquet", "json"):
        with pytest.raises(DataError, match="does not exist"):
            export_rows(broken, "train", tmp_path / "out" / format, format=format)
        assert list((tmp_path / "out").iterdir()) == []
        assert export_rows(broken, "train", tmp_path / "out" / format, format=format, on_error="skip") == 2
        for path in (tmp_path / "out").iterdir():
            path.rename(tmp_path / f"kept-{format}")
    with pytest.raises(DataError, match="cannot be exported as 'csv'"):
        export_rows("digits", "train", tmp_path / "x", format="csv")
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(OutputError, match="cannot write"):
        export_rows("digits", "validation", tmp_path / "file" / "rows.parquet", num_rows=1)
