"""Rows of a recipe: mixtures and streams."""

from __future__ import annotations

from itertools import islice

import pytest
from torch.utils.data import DataLoader

from unimm.errors import DataError, RecipeError
from unimm.training.data import EndlessRows, load_sections
from unimm.training.recipes import DataSection

datasets = pytest.importorskip("datasets")


def shapes(**changes) -> DataSection:
    return DataSection(**{"card": "shapes", "num_rows": 40, "options": {"resolution": 16}} | changes)


def questions(**changes) -> DataSection:
    return shapes(options={"resolution": 16, "task": "questions"}, **changes)


def answers(row) -> bool:
    return row["messages"][0]["content"][0]["type"] == "image"


def numbers(count: int) -> datasets.IterableDataset:
    rows = datasets.Dataset.from_dict({"number": list(range(count))})
    return rows.to_iterable_dataset(num_shards=2).shuffle(seed=1, buffer_size=99)


def test_entries_are_mixed_by_weight_and_the_mixture_is_the_same_every_time():
    mixtures = [load_sections([shapes(weight=3.0), questions(num_rows=400)]) for _ in range(2)]
    kinds = [[answers(row) for row in mixture] for mixture in mixtures]
    assert kinds[0] == kinds[1]
    share = sum(kinds[0]) / len(kinds[0])
    assert 0.19 < share < 0.31
    # No question is left out; captions are repeated.
    assert len(kinds[0]) > 1500


def test_streams_and_prepared_entries_do_not_mix():
    with pytest.raises(RecipeError, match="shapes is streamed and the other entries are not"):
        load_sections([shapes(), questions(streaming=True)])


def test_a_stream_starts_over_in_another_order():
    rows = EndlessRows(numbers(20))
    first, second = ([row["number"] for row in islice(rows, start, start + 20)] for start in (0, 20))
    assert sorted(first) == sorted(second) == list(range(20))
    assert first != second
    assert [row["number"] for row in islice(rows, 40)] == first + second


def test_data_workers_do_not_disturb_each_others_order():
    def read() -> list[int]:
        loader = DataLoader(EndlessRows(numbers(6)), batch_size=2, num_workers=2, multiprocessing_context="fork")
        return [number for batch in islice(loader, 12) for number in batch["number"].tolist()]

    assert read() == read()


def test_an_empty_stream_is_refused_instead_of_read_forever():
    with pytest.raises(DataError, match="no rows for this process"):
        next(iter(EndlessRows(numbers(6).filter(lambda row: False))))


def test_a_streamed_section_is_endless_where_asked():
    rows = load_sections([shapes(streaming=True, num_rows=3)], endless=True)
    assert len(list(islice(rows, 7))) == 7
    assert len(list(load_sections([shapes(streaming=True, num_rows=3)]))) == 3
