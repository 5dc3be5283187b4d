from __future__ import annotations

import socket

import numpy as np
import pytest

from unimm.data.cards import load_card
from unimm.data.photographs import SPLITS, load_photograph, photographs_dataset
from unimm.data.rows import validate_row
from unimm.errors import ConfigError

NAMES = [name for names in SPLITS.values() for name in names]


@pytest.mark.parametrize("name", NAMES)
def test_every_photograph_comes_with_the_installed_packages(name, monkeypatch):
    def refuse(*_):
        raise OSError("a photograph must not need the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    photograph = load_photograph.__wrapped__(name)
    assert photograph.mode == "RGB"
    assert min(photograph.size) >= 300
    assert np.asarray(photograph).std() > 5


def test_the_card_states_split_and_licence_of_every_photograph():
    lines = [line for line in load_card("photographs").text.splitlines() if line.startswith("| `")]
    stated = {line.split("`")[1]: [cell.strip() for cell in line.split("|")] for line in lines}
    assert set(stated) == set(NAMES)
    for split, names in SPLITS.items():
        assert all(stated[name][2] == split and stated[name][4] for name in names)


def test_no_photograph_is_in_two_splits():
    assert len(NAMES) == len(set(NAMES))


@pytest.mark.needs("datasets")
def test_crops_have_the_schema_and_follow_from_seed_and_index():
    rows = photographs_dataset(num_rows=24, resolution=48, seed=1)
    longer = photographs_dataset(num_rows=30, resolution=48, seed=1)
    other = photographs_dataset(num_rows=24, resolution=48, seed=2)
    for number, row in enumerate(rows):
        validate_row(row)
        assert row["images"][0].size == (48, 48)
        assert row["photograph"] == SPLITS["train"][number % 12]
        assert np.array_equal(np.asarray(row["images"][0]), np.asarray(longer[number]["images"][0]))
    assert any(
        np.any(np.asarray(a["images"][0]) != np.asarray(b["images"][0])) for a, b in zip(rows, other, strict=True)
    )
    assert len(set(rows["id"])) == 24


@pytest.mark.needs("datasets")
def test_streamed_crops_are_the_same():
    (row,) = photographs_dataset("test", num_rows=1, resolution=32, streaming=True)
    (again,) = photographs_dataset("test", num_rows=1, resolution=32)
    assert np.array_equal(np.asarray(row["images"][0]), np.asarray(again["images"][0]))


@pytest.mark.needs("datasets")
def test_wrong_arguments_are_refused():
    with pytest.raises(ConfigError, match="no split 'dev'"):
        photographs_dataset("dev")
    with pytest.raises(ConfigError, match=r"resolution must lie in 1 to 300.*given 301"):
        photographs_dataset(resolution=301)
    with pytest.raises(ConfigError, match="num_rows must be 1 or more"):
        photographs_dataset(num_rows=0)
    with pytest.raises(ConfigError, match=r"no photograph 'chelsa' \(did you mean 'chelsea'\?\)"):
        load_photograph("chelsa")
