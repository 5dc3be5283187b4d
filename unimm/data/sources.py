"""Opening what a data card points at, with pictures left encoded."""

from __future__ import annotations

import glob
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..dependencies import needed_for
from ..errors import DataError, nearest
from .cards import DataCard

if TYPE_CHECKING:
    from datasets import Dataset, IterableDataset

SPLITS = ("train", "validation", "test")
_ENDINGS = {"parquet": (".parquet",), "webdataset": (".tar",), "json": (".jsonl", ".json")}


def open_source(card: DataCard, split: str, streaming: bool) -> Dataset | IterableDataset:
    """The data set behind a card with its own columns; pictures stay `{"bytes", "path"}`.

    Args:
        card: a card with a place that is not built in.
        split: name of a split.
        streaming: an `IterableDataset`, which reads as it goes.

    Raises:
        DataError: no such split, no files, or a place that cannot be read.
    """
    with needed_for("data sets"):
        from datasets import load_dataset

    arguments: dict[str, Any] = {"split": split, "streaming": streaming}
    if card.hub:
        if card.download:
            raise DataError(
                f"data card '{card.name}' cannot be read in place. Bring it into a folder:\n{card.download.rstrip()}\n"
                "and give that folder as path"
            )
        own_split = _patterns(card, split)
        if card.format == "hub":
            if len(own_split) != 1:
                raise DataError(f"data card '{card.name}': the split '{split}' is {list(own_split)}; expected one name")
            arguments |= {"path": card.hub, "name": card.config_name, "split": own_split[0], "revision": card.revision}
        else:
            place = f"hf://datasets/{card.hub}@{card.revision}"
            arguments |= {"path": card.format, "data_files": {split: [f"{place}/{one}" for one in own_split]}}
    else:
        arguments |= {"path": card.format, "data_files": _local_files(card, split)}
    try:
        source = load_dataset(**arguments)
    except Exception as error:  # what the readers and the Hub's client raise is as varied as they are
        raise DataError(_failure(card, split, error)) from error
    return _with_encoded_pictures(source)


def image_base(card: DataCard) -> str:
    """The folder or address that relative paths of a card's pictures start from."""
    if card.hub:
        base = f"hf://datasets/{card.hub}@{card.revision}"
    else:
        path = Path(card.path or ".")
        base = str(path if path.is_dir() else path.parent)
    return f"{base}/{card.image_root}" if card.image_root else base


def _patterns(card: DataCard, split: str) -> tuple[str, ...]:
    if not card.splits:
        return (split,)
    if split not in card.splits:
        raise DataError(f"data card '{card.name}' has no split '{split}'{nearest(split, card.splits)}")
    return card.splits[split]


def _local_files(card: DataCard, split: str) -> dict[str, list[str]]:
    if card.path is None:
        raise DataError(f"data card '{card.name}' names no place of its own; give the folder or file as path")
    place = Path(card.path)
    if not place.exists():
        raise DataError(f"data card '{card.name}': there is no '{place}'")
    if card.format == "imagefolder":
        return _image_folders(card, split, place)
    if place.is_file():
        if card.splits or split != "train":
            raise DataError(f"data card '{card.name}': '{place}' is a file, which has the split 'train' alone")
        return {split: [_literal(place)]}
    if card.splits:
        patterns = _patterns(card, split)
        found = sorted({file for pattern in patterns for file in place.glob(pattern) if file.is_file()})
        searched = " and ".join(f"'{pattern}'" for pattern in patterns)
    else:
        found = _files_of_split(place, split, _ENDINGS[str(card.format)])
        searched = " or ".join(f"'{split}/**/*{ending}', '{split}*{ending}'" for ending in _ENDINGS[str(card.format)])
    if not found:
        raise DataError(
            f"data card '{card.name}': no file in '{place}' belongs to the split '{split}' (searched {searched})"
        )
    return {split: [_literal(file) for file in found]}


def _files_of_split(place: Path, split: str, endings: tuple[str, ...]) -> list[Path]:
    """Files in a folder of the split's name, else files whose names begin with it, else, for `train`, all files.

    All files count only where no folder or file is named after any split.
    """

    def files(folder: Path, pattern: str) -> list[Path]:
        return sorted(file for file in folder.glob(pattern) if file.suffix in endings and file.is_file())

    by_split = {name: files(place / name, "**/*") or files(place, f"{name}*") for name in SPLITS}
    if split not in by_split:
        return files(place / split, "**/*") or files(place, f"{split}*")
    return by_split[split] if any(by_split.values()) or split != "train" else files(place, "**/*")


def _image_folders(card: DataCard, split: str, place: Path) -> dict[str, list[str]]:
    # All splits are given to the reader, even though one is wanted: the classes are numbered over all of them, so that
    # a class that one split lacks does not shift the others' numbers.
    if card.splits:
        files = {name: [f"{_literal(place)}/{one}" for one in patterns] for name, patterns in card.splits.items()}
    else:
        named = [name for name in SPLITS if (place / name).is_dir()]
        files = {name: [f"{_literal(place / name)}/**"] for name in named} or {"train": [f"{_literal(place)}/**"]}
    if split not in files:
        raise DataError(
            f"data card '{card.name}': '{place}' has no split '{split}', only {', '.join(files)}; "
            "a split is a folder of its name"
        )
    return files


def _literal(path: Path) -> str:
    return glob.escape(os.path.abspath(path))


def _with_encoded_pictures(source: Any) -> Any:
    with needed_for("data sets"):
        from datasets import Image, List

    for name, feature in (source.features or {}).items():
        if isinstance(feature, Image):
            source = source.cast_column(name, Image(decode=False))
        elif isinstance(feature, List) and isinstance(feature.feature, Image):
            source = source.cast_column(name, List(Image(decode=False)))
    return source


def _failure(card: DataCard, split: str, error: Exception) -> str:
    place = card.hub or card.path
    reason = f"{type(error).__name__}: {error}"
    if error.__cause__ is not None:
        reason += f" ({type(error.__cause__).__name__}: {error.__cause__})"
    message = f"data card '{card.name}': the split '{split}' of '{place}' cannot be read as {card.format}. {reason}"
    if card.hub:
        message += ". Without a connection, download it and give its folder as path and its format"
        if card.access:
            message += f". Access: {card.access}"
    return message
