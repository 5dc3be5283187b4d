from __future__ import annotations

import os

import pytest

from unimm.data.cards import TASKS, DataCard, card_folder, card_names, load_card
from unimm.errors import DataError

HEADER = {"pretty_name": "Mine", "license": "mit", "task": "caption", "hub": "me/mine", "splits": "{train: train}"}


def write_card(folder, text: str | None = None, **changes):
    header = {key: value for key, value in {**HEADER, **changes}.items() if value is not None}
    lines = "\n".join(f"{key}: {value}" for key, value in header.items())
    path = folder / "mine.md"
    path.write_text(f"---\n{lines}\n---\n# Mine\n\nWords.\n" if text is None else text)
    return path


@pytest.mark.parametrize("name", card_names())
def test_every_card_of_the_package_parses_and_says_what_a_reader_needs(name):
    card = load_card(name)
    assert card.name == name
    assert card.pretty_name
    assert card.size
    assert card.stage
    assert card.text.startswith("# ")
    assert card.task in TASKS
    for role in TASKS[card.task].needed:
        assert card.columns.get(role, role)
    if card.license in ("unknown", "other"):
        assert "icence" in card.text
    if card.hub:
        assert card.splits
        assert card.hub in card.text or card.download


def test_the_cards_that_are_promised_exist():
    promised = {
        "shapes",
        "digits",
        "photographs",
        "image-folder",
        "imagenet-1k",
        "blip3o-pretrain-long-caption",
        "blip3o-pretrain-short-caption",
        "blip3o-pretrain-journeydb",
        "blip3o-60k",
        "sharegpt-4o-image",
        "text-to-image-2m",
        "llava-pretrain",
    }
    assert promised <= set(card_names())


def test_headers_of_public_cards_are_valid_hub_metadata():
    from huggingface_hub import DatasetCard

    for path in sorted(card_folder().glob("*.md")):
        data = DatasetCard(path.read_text()).data
        assert data.license == load_card(path).license
        assert data.pretty_name == load_card(path).pretty_name


def test_a_name_may_have_underscores_and_capitals():
    assert load_card("Image_Folder") is load_card("image-folder")
    assert load_card(card_folder() / "digits.md").options == load_card("digits").options


def test_an_unknown_name_is_answered_with_the_nearest():
    with pytest.raises(DataError, match=r"no data card 'imagenet' \(did you mean 'imagenet-1k'\?\)"):
        load_card("imagenet")
    with pytest.raises(DataError, match="expected a Markdown file, or one of blip3o-60k"):
        load_card(f"nowhere{os.sep}mine.md")


def test_a_card_of_one_s_own_is_read_from_its_path(tmp_path):
    card = load_card(write_card(tmp_path, columns="{caption: prompt}", streaming="true", shuffle_buffer="7"))
    assert card.name == "mine"
    assert card.format == "hub"
    assert card.splits == {"train": ("train",)}
    assert card.columns == {"caption": "prompt"}
    assert card.streaming is True
    assert card.shuffle_buffer == 7
    assert card.text == "# Mine\n\nWords."


def test_a_relative_path_starts_at_the_card(tmp_path):
    path = write_card(tmp_path, hub=None, splits=None, path="pictures", format="imagefolder")
    assert load_card(path).path == str((tmp_path / "pictures").resolve())


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"licence": "mit"}, r"no field 'licence' \(did you mean 'license'\?\)"),
        ({"license": None}, "'license' is missing; write 'unknown' where none is known"),
        ({"license": "''"}, "'license' is empty; write 'unknown'"),
        ({"task": "captions"}, r"'task' is 'captions' \(did you mean 'caption'\?\)"),
        ({"task": "[caption]"}, r"'task' is \['caption'\]; expected a text"),
        (
            {"columns": "{captoin: text}"},
            r"maps 'captoin', which the task 'caption' has not \(did you mean 'caption'\?\)",
        ),
        ({"columns": "{caption: 3}"}, "'columns' is .* expected a mapping of texts to texts"),
        ({"splits": "[train]"}, "'splits' is .* expected a mapping of names to texts or lists of texts"),
        ({"streaming": "'yes'"}, "'streaming' is 'yes'; expected true or false"),
        ({"shuffle_buffer": "true"}, "'shuffle_buffer' is True; expected a whole number"),
        ({"shuffle_buffer": "-1"}, "'shuffle_buffer' is -1; expected 0 or more rows"),
        ({"on_error": "ignore"}, "'on_error' is 'ignore'"),
        ({"path": "here"}, "has hub and path; expected exactly one"),
        ({"hub": None}, "has no place"),
        ({"hub": "mine"}, "'hub' is 'mine'; expected the form owner/name"),
        ({"hub": None, "builtin": "shape"}, r"'builtin' is 'shape' \(did you mean 'shapes'\?\)"),
        ({"hub": None, "path": "here"}, "'format' is None"),
        ({"hub": None, "path": "here", "format": "hub"}, "format cannot be 'hub'"),
        ({"format": "parket"}, r"'format' is 'parket' \(did you mean 'parquet'\?\)"),
    ],
)
def test_a_wrong_header_is_refused_with_the_card_and_the_field(tmp_path, changes, problem):
    with pytest.raises(DataError, match=f"data card 'mine'.*{problem}"):
        load_card(write_card(tmp_path, **changes))


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("# Mine\n", "has no YAML header"),
        ("---\npretty_name: [\n---\n", "header that is no YAML"),
        ("---\n- a\n- b\n---\n", "header that is list; expected a mapping"),
    ],
)
def test_a_file_that_is_no_card_is_refused(tmp_path, text, problem):
    with pytest.raises(DataError, match=problem):
        load_card(write_card(tmp_path, text))


def test_options_change_fields_and_a_path_takes_the_place_of_the_hub(tmp_path):
    card = load_card("llava-pretrain").with_options({"path": tmp_path, "columns": {"image": "picture"}})
    assert (card.hub, card.download, card.path) == (None, None, str(tmp_path))
    assert card.columns == {"id": "id", "image": "picture", "conversations": "conversations"}
    assert load_card("llava-pretrain").hub == "liuhaotian/LLaVA-Pretrain"
    with pytest.raises(DataError, match="with 'path', say the 'format' too"):
        load_card("imagenet-1k").with_options({"path": tmp_path})
    with pytest.raises(DataError, match="'on_error' is 'never'"):
        card.with_options({"on_error": "never"})


def test_another_task_keeps_the_columns_that_it_knows():
    card = load_card("image-folder")
    assert card.with_options({"task": "caption"}).columns == {"image": "image", "caption": "text"}
    assert card.with_options({"task": "class"}).columns == {"image": "image"}


def test_a_card_can_be_made_in_code():
    card = DataCard(name="mine", pretty_name="Mine", license="unknown", task="class", path="/data", format="parquet")
    assert load_card(card) is card
