"""Rows of the one schema from any data card: built-in worlds, local files, or the Hub."""

from __future__ import annotations

import io
import itertools
import json
import logging
import os
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from PIL import Image
from rich.text import Text

from ..checks import require_count
from ..dependencies import needed_for
from ..errors import DataError, nearest
from ..files import atomic_file, atomic_folder, check_output
from .cards import DataCard, load_card
from .images import read_encoded
from .mapping import RowMapper
from .rows import Row, row_features
from .sources import open_source
from .transforms import encode_png

if TYPE_CHECKING:
    from datasets import Dataset, Features, IterableDataset

logger = logging.getLogger(__name__)

EXPORT_FORMATS = ("parquet", "json")


def load_rows(
    card: str | os.PathLike | DataCard,
    split: str = "train",
    *,
    streaming: bool | None = None,
    num_rows: int | None = None,
    seed: int = 0,
    **options: Any,
) -> Dataset | IterableDataset:
    """The rows of a data set, whose pictures are decoded when they are read.

    A missing or damaged picture is a `DataError` that names the row, unless the card or an option says
    `on_error="skip"`: then such rows are left out, counted and logged.

    Args:
        card: a data card, or its name or path.
        split: name of a split.
        streaming: read as it goes (shards and `shuffle_buffer` rows of the training split are shuffled), instead of a
            prepared data set with random access; by default as the card says.
        num_rows: at most so many rows, from the start; a drawn data set (Shapes, …) draws so many.
        seed: of streaming's shuffling, and of drawn data sets.
        **options: arguments of a built-in data set (`task`, `resolution`, …), else fields of the card to change
            (`path`, `format`, `columns`, `splits`, `task`, `on_error`, `shuffle_buffer`, …).

    Raises:
        DataError: an unknown option or split, a place that cannot be read, or a needed column that is missing.
    """
    card = load_card(card)
    streaming = card.streaming if streaming is None else streaming
    if num_rows is not None:
        require_count(num_rows, "num_rows", error=DataError)
    require_count(seed, "seed", least=0, error=DataError)
    if not isinstance(streaming, bool):
        raise DataError(f"streaming must be True or False, given {streaming!r}")
    if card.builtin:
        return _builtin_rows(card, split, streaming, num_rows, seed, options)
    card = card.with_options(options)
    source = open_source(card, split, streaming)
    if streaming:
        return _streamed_rows(card, split, source, num_rows, seed)
    return _prepared_rows(card, split, source, num_rows)


def _builtin_rows(
    card: DataCard, split: str, streaming: bool, num_rows: int | None, seed: int, options: Mapping[str, Any]
) -> Dataset | IterableDataset:
    arguments = {**card.options, **options, "split": _source_split(card, split), "seed": seed, "streaming": streaming}
    if num_rows is not None:
        arguments["num_rows"] = num_rows
    if card.builtin == "shapes":
        from .shapes import shapes_dataset

        rows = shapes_dataset(**arguments)
        return rows.cast_column("images", row_features()["images"])
    if card.builtin == "digits":
        from .digits import digits_dataset

        return digits_dataset(**arguments)
    from .photographs import photographs_dataset

    return photographs_dataset(**arguments)


def _source_split(card: DataCard, split: str) -> str:
    if split not in card.splits:
        raise DataError(f"data card '{card.name}' has no split '{split}'{nearest(split, card.splits)}")
    return card.splits[split][0]


def _streamed_rows(
    card: DataCard, split: str, source: IterableDataset, num_rows: int | None, seed: int
) -> IterableDataset:
    if num_rows is not None:
        source = source.take(num_rows)
    first = next(iter(source), None)
    if first is None:
        raise DataError(f"data card '{card.name}': the split '{split}' has no rows")
    # Whether a picture is whole can only be known by decoding it, which is done here only if rows may be skipped.
    mapper = RowMapper(card, columns=list(first), features=_types_of(source), verify=card.on_error == "skip")
    if split == "train" and card.shuffle_buffer:
        source = source.shuffle(seed=seed, buffer_size=card.shuffle_buffer)
    rows = source.map(mapper, batched=True, batch_size=8, remove_columns=list(first))
    # Types given to `map` would mean that its rows are decoded already; a cast decodes them when they are read.
    return rows.cast(mapper.features)


def _types_of(source: Dataset | IterableDataset) -> Features:
    """The types of a data set's columns; a stream of JSON has none, so its first rows are looked at."""
    with needed_for("data sets"):
        from datasets import Dataset

    return source.features or Dataset.from_list(list(source.take(100))).features


def _prepared_rows(card: DataCard, split: str, source: Dataset, num_rows: int | None) -> Dataset:
    if len(source) == 0:
        raise DataError(f"data card '{card.name}': the split '{split}' has no rows")
    if num_rows is not None:
        source = source.select(range(min(num_rows, len(source))))
    skip = card.on_error == "skip"
    mapper = RowMapper(card, columns=source.column_names, features=source.features, verify=skip)
    rows = source.map(
        mapper,
        batched=True,
        batch_size=100,
        remove_columns=source.column_names,
        features=mapper.features,
        load_from_cache_file=not skip,
        desc=f"rows of {card.name}",
    )
    if len(rows) < len(source):
        logger.warning(
            "data card '%s': %d of %d rows of the split '%s' were skipped",
            card.name, len(source) - len(rows), len(source), split,
        )  # fmt: skip
    if len(rows) == 0:
        raise DataError(f"data card '{card.name}': all {len(source)} rows of the split '{split}' were skipped")
    return rows


@dataclass
class DataReport:
    """What `check_card` found.

    Args:
        card: the card's name.
        split: the split that was read.
        columns: the data's own columns.
        num_rows: rows that were read.
        num_right: rows that have the schema and whose pictures decode.
        num_images: pictures that decode.
        smallest: width and height of the picture with the fewest pixels.
        largest: width and height of the picture with the most pixels.
        labels: how often each label occurs.
        text_lengths: shortest and longest message text, in characters.
        problems: the first 20 problems.
        num_problems: all problems.
        seconds: time of reading.
    """

    card: str
    split: str
    columns: list[str] = field(default_factory=list)
    num_rows: int = 0
    num_right: int = 0
    num_images: int = 0
    smallest: tuple[int, int] | None = None
    largest: tuple[int, int] | None = None
    labels: Counter = field(default_factory=Counter)
    text_lengths: tuple[int, int] | None = None
    problems: list[str] = field(default_factory=list)
    num_problems: int = 0
    seconds: float = 0.0

    @property
    def ok(self) -> bool:
        """Whether rows were read and none has a problem."""
        return self.num_rows > 0 and self.num_problems == 0

    def add(self, row: Row) -> None:
        """Counts a row that is right."""
        self.num_right += 1
        for image in row["images"]:
            self.num_images += 1
            self.smallest = min(self.smallest or image.size, image.size, key=lambda size: size[0] * size[1])
            self.largest = max(self.largest or image.size, image.size, key=lambda size: size[0] * size[1])
        texts = [part["text"] for one in row["messages"] for part in one["content"] if part["type"] == "text"]
        lengths = [len(text) for text in texts] + list(self.text_lengths or ())
        if lengths:
            self.text_lengths = (min(lengths), max(lengths))
        if row.get("label") is not None:
            self.labels[row["label"]] += 1

    def add_problem(self, problem: Any) -> None:
        """Counts a problem, and keeps it if it is among the first 20."""
        self.num_problems += 1
        if self.num_problems <= 20:
            self.problems.append(str(problem))

    def __str__(self) -> str:
        lines = [
            f"{self.card}, split {self.split}: {self.num_right} of {self.num_rows} rows are right "
            f"({self.seconds:.1f} s)",
            f"columns: {', '.join(self.columns)}",
        ]
        if self.smallest and self.largest:
            sizes = " to ".join(f"{width} x {height}" for width, height in dict.fromkeys((self.smallest, self.largest)))
            lines.append(f"pictures: {self.num_images}, {sizes} pixels (width x height)")
        if self.text_lengths:
            lines.append(f"texts: {self.text_lengths[0]} to {self.text_lengths[1]} characters")
        if self.labels:
            commonest = ", ".join(f"{label!r} {number} times" for label, number in self.labels.most_common(3))
            lines.append(f"labels: {len(self.labels)} different ones, commonest {commonest}")
        lines += [f"problem: {problem}" for problem in self.problems]
        if self.num_problems > len(self.problems):
            lines.append(f"and {self.num_problems - len(self.problems)} more problems")
        return "\n".join(lines)

    def __rich__(self) -> Text:
        return Text(str(self))


def check_card(
    card: str | os.PathLike | DataCard, split: str = "train", num_rows: int = 100, **options: Any
) -> DataReport:
    """Reads the first rows of a data set, decodes their pictures, and collects what is wrong instead of stopping at it.

    Args:
        card: a data card, or its name or path.
        split: name of a split.
        num_rows: rows to read at most.
        **options: as in `load_rows`.

    Raises:
        DataError: the data set cannot be opened, or a needed column is missing.
    """
    card = load_card(card)
    report = DataReport(card.name, split)
    started = time.monotonic()
    _, rows = _read_rows(card, split, num_rows, options, decode=True)
    for columns, row in rows:
        report.columns = columns
        report.num_rows += 1
        if isinstance(row, DataError):
            report.add_problem(row)
        else:
            report.add(row)
    if report.num_rows == 0:
        report.add_problem("there are no rows")
    report.seconds = time.monotonic() - started
    return report


def export_rows(
    card: str | os.PathLike | DataCard,
    split: str = "train",
    path: str | os.PathLike = "rows.parquet",
    num_rows: int | None = None,
    format: str = "parquet",
    **options: Any,
) -> int:
    """Writes rows so that the card `exported-rows` reads them back; the file appears when it is whole, or not at all.

    Args:
        card: a data card, or its name or path.
        split: name of a split.
        path: file to write (`parquet`), or folder (`json`: `rows.jsonl` and `images/`).
        num_rows: rows to write at most; all when not given.
        format: one of `EXPORT_FORMATS`.
        **options: as in `load_rows`.

    Returns:
        The number of rows written.

    Raises:
        DataError: an unknown format, another ending, no rows, or a row that is wrong (unless `on_error` is `skip`).
        OutputError: the file cannot be written.
    """
    if format not in EXPORT_FORMATS:
        raise DataError(f"rows cannot be exported as '{format}'{nearest(format, EXPORT_FORMATS)}")
    if format == "parquet" and os.path.splitext(path)[1] not in (".parquet", ".pq", ""):
        raise DataError(f"Parquet rows go into a file that ends in .parquet, given '{os.fspath(path)}'")
    check_output(path if format == "parquet" else os.path.join(path, "rows.jsonl"))
    card = load_card(card)
    skip = not card.builtin and options.get("on_error", card.on_error) == "skip"
    features, rows = _read_rows(card, split, num_rows, options, decode=False)
    right_rows = _rows_to_export(rows, skip)
    return _write_parquet(right_rows, features, path) if format == "parquet" else _write_json(right_rows, path)


def _read_rows(
    card: DataCard, split: str, num_rows: int | None, options: Mapping[str, Any], decode: bool
) -> tuple[Features, Iterator[tuple[list[str], Row | DataError]]]:
    """The rows' types, and rows one by one with the data's columns; in place of a wrong row, what is wrong with it."""
    if card.builtin:
        rows = load_rows(card, split, num_rows=num_rows, **options)
        return rows.features, ((list(row), row) for row in rows)
    card = card.with_options(options)
    source = open_source(card, split, streaming=True)
    first = next(iter(source), None)
    if first is None:
        return row_features(), iter(())
    columns = list(first)
    mapper = RowMapper(card, columns=columns, features=_types_of(source), decode=decode, verify=not decode)

    def rows_of_source() -> Iterator[tuple[list[str], Row | DataError]]:
        examples = iter(source if num_rows is None else source.take(num_rows))
        while True:
            try:
                example = next(examples, None)
            except Exception as error:  # a damaged shard ends the reading, whatever its reader raises
                yield columns, DataError(f"data card '{card.name}': reading stopped. {type(error).__name__}: {error}")
                return
            if example is None:
                return
            try:
                yield columns, mapper.row(example)
            except DataError as error:
                yield columns, error

    return mapper.features, rows_of_source()


def _rows_to_export(rows: Iterator[tuple[list[str], Row | DataError]], skip: bool) -> Iterator[Row]:
    for _, row in rows:
        if isinstance(row, DataError):
            if not skip:
                raise row
            logger.warning("skipped: %s", row)
        else:
            yield row


def _write_parquet(rows: Iterator[Row], features: Features, path: str | os.PathLike) -> int:
    import pyarrow.parquet as parquet

    with needed_for("data sets"):
        from datasets import Dataset, Features, List
        from datasets import Image as ImageFeature

    written, writer = 0, None
    with atomic_file(path, "wb") as file:
        while chunk := list(itertools.islice(rows, 128)):
            encoded = [
                {**row, "images": [{"bytes": _bytes_of(image), "path": None} for image in row["images"]]}
                for row in chunk
            ]
            if writer is None:
                features = Features({**features, "images": List(ImageFeature())})
                writer = parquet.ParquetWriter(file, features.arrow_schema)
            writer.write_table(Dataset.from_list(encoded, features=features).with_format("arrow")[:])
            written += len(chunk)
        if writer is None:
            raise DataError(f"there are no rows to write to '{path}'")
        writer.close()
    return written


def _bytes_of(image: Any) -> bytes:
    return read_encoded(image) if isinstance(image, Mapping) else encode_png(image)


def _write_json(rows: Iterator[Row], path: str | os.PathLike) -> int:
    written = 0
    with atomic_folder(path, mark="rows.jsonl") as folder:
        (folder / "images").mkdir()
        with (folder / "rows.jsonl").open("w") as file:
            for row in rows:
                names: list[str] = []
                for image in row["images"]:
                    content = _bytes_of(image)
                    with Image.open(io.BytesIO(content)) as picture:
                        name = f"images/{written:08d}-{len(names)}.{str(picture.format).lower()}"
                    (folder / name).write_bytes(content)
                    names.append(name)
                file.write(json.dumps({**row, "images": names}) + "\n")
                written += 1
        if written == 0:
            raise DataError(f"there are no rows to write to '{path}'")
    return written
