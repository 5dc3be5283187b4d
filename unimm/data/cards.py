"""Data cards: Markdown files whose YAML header says where a data set is and how its columns become rows.

The header has the fields of a Hugging Face dataset card (`license`, `pretty_name`, `tags`, …) and those that the
loader reads; `DataCard` lists them all.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field, fields, replace
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from ..checks import require_path
from ..errors import DataError, nearest

BUILTIN_SOURCES = ("shapes", "digits", "photographs")
FORMATS = ("hub", "parquet", "imagefolder", "webdataset", "json")


@dataclass(frozen=True)
class Task:
    """What rows a data set gives, and from which roles its columns play.

    Args:
        needed: roles that a column must play.
        optional: roles that a column may play.
    """

    needed: tuple[str, ...]
    optional: tuple[str, ...] = ()


#: Kinds of rows that columns can become. A role's column has the role's own name unless `columns` say otherwise.
TASKS = {
    "image": Task(("image",), ("id", "caption", "label")),
    "class": Task(("image", "label"), ("id",)),
    "caption": Task(("image", "caption"), ("id",)),
    "question": Task(("image", "question", "answer"), ("id",)),
    "edit": Task(("source_image", "instruction", "image"), ("id",)),
    "preference": Task(("caption", "chosen_image", "rejected_image"), ("id",)),
    "conversation": Task(("image", "conversations"), ("id",)),
    "row": Task(("id", "images", "messages", "source"), ("label", "chosen", "rejected")),
}


@dataclass(frozen=True)
class DataCard:
    """A data set: where it is, what may be done with it, and how its columns become rows of the one schema.

    Exactly one of `builtin`, `hub` and `path` is the place, except that a card with `hub` and `download` is given a
    `path` when it is loaded.

    Args:
        name: the card's name, its file's stem.
        pretty_name: the data set's name for readers.
        license: identifier as on the Hub; `unknown` where none is known, `other` where it has terms of its own.
        license_name: name of the terms when `license` is `other`.
        license_link: where the terms stand.
        language: codes of the texts' languages.
        tags: words for search.
        size_categories: as on the Hub.
        task_categories: as on the Hub.
        size: rows and bytes, for readers.
        stage: stages of training that the data set serves.
        access: how to get permission, where it takes one.
        builtin: one of `BUILTIN_SOURCES`.
        hub: Hub id, `owner/name`.
        path: a folder or file; relative to the card's folder, or to the current one when given at loading.
        revision: branch, tag or commit of the Hub repository.
        config_name: name of the Hub data set's configuration.
        format: one of `FORMATS`; `hub` lets the Hub repository's own card decide.
        download: commands that bring the data into a folder, where it cannot be read in place.
        splits: split names to the place's own split names (`hub`) or file patterns; by default the split's own name, or
            the files of a folder, or with a name, of the split.
        task: one of `TASKS`.
        columns: roles to column names; `a.b` is the key `b` of the column `a`.
        class_names: names of the classes, where labels are names.
        image_root: folder that relative paths of pictures start from, within the place.
        streaming: read as it goes instead of preparing it first.
        shuffle_buffer: rows among which a streamed training split is shuffled, beside its shards; 0 for neither.
        on_error: `raise`, or `skip` rows that are wrong, counted and logged.
        options: defaults of the arguments of a built-in data set.
        text: the card below the header.
    """

    name: str
    pretty_name: str
    license: str
    task: str
    license_name: str | None = None
    license_link: str | None = None
    language: tuple[str, ...] = ()
    tags: tuple[str, ...] = ()
    size_categories: tuple[str, ...] = ()
    task_categories: tuple[str, ...] = ()
    size: str = ""
    stage: tuple[str, ...] = ()
    access: str = ""
    builtin: str | None = None
    hub: str | None = None
    path: str | None = None
    revision: str = "main"
    config_name: str | None = None
    format: str | None = None
    download: str | None = None
    splits: dict[str, tuple[str, ...]] = field(default_factory=dict)
    columns: dict[str, str] = field(default_factory=dict)
    class_names: tuple[str, ...] = ()
    image_root: str = ""
    streaming: bool = False
    shuffle_buffer: int = 1000
    on_error: str = "raise"
    options: dict[str, Any] = field(default_factory=dict)
    text: str = ""

    def __post_init__(self) -> None:
        for spec in fields(self):
            object.__setattr__(self, spec.name, self._checked(spec.name, str(spec.type), getattr(self, spec.name)))
        if not self.license:
            raise self._error("'license' is empty; write 'unknown' where none is known")
        self._check_choice("task", TASKS)
        self._check_choice("on_error", ("raise", "skip"))
        if self.shuffle_buffer < 0:
            raise self._error(f"'shuffle_buffer' is {self.shuffle_buffer}; expected 0 or more rows")
        self._check_place()
        task = TASKS[self.task]
        for role in self.columns:
            if role not in (*task.needed, *task.optional):
                raise self._error(
                    f"'columns' maps '{role}', which the task '{self.task}' has not"
                    f"{nearest(role, (*task.needed, *task.optional))}"
                )

    def with_options(self, options: Mapping[str, Any]) -> DataCard:
        """The card with other values in some fields; a `path` takes the place of the Hub.

        Raises:
            DataError: no such field, or a value that does not fit.
        """
        known = {spec.name for spec in fields(self)} - {"name", "text", "hub", "builtin"}
        for name in options:
            if name not in known:
                raise self._error(f"there is no option '{name}'{nearest(name, known)}")
        changes = dict(options)
        if "columns" in changes:
            changes["columns"] = {**self.columns, **changes["columns"]}
            changes["columns"] = {role: column for role, column in changes["columns"].items() if column is not None}
        task = TASKS.get(changes.get("task", self.task))
        if task is not None and "columns" not in options:
            roles = (*task.needed, *task.optional)
            changes["columns"] = {role: column for role, column in self.columns.items() if role in roles}
        if changes.get("path") is not None:
            changes |= {"hub": None, "download": None, "path": os.path.abspath(os.path.expanduser(changes["path"]))}
            if changes.get("format", self.format) in (None, "hub"):
                raise self._error("with 'path', say the 'format' too: parquet, imagefolder, webdataset or json")
        return replace(self, **changes)

    def _check_place(self) -> None:
        places = [name for name in ("builtin", "hub", "path") if getattr(self, name)]
        if len(places) > 1:
            raise self._error(f"has {' and '.join(places)}; expected exactly one of builtin, hub and path")
        if not places and self.format not in ("parquet", "imagefolder", "webdataset", "json"):
            raise self._error(
                "has no place: expected one of builtin, hub and path, or a format for a path given at loading"
            )
        if self.builtin:
            self._check_choice("builtin", BUILTIN_SOURCES)
        elif self.format is None and self.hub:
            object.__setattr__(self, "format", "hub")
        if self.hub and not re.fullmatch(r"[\w.-]+/[\w.-]+", self.hub):
            raise self._error(f"'hub' is '{self.hub}'; expected the form owner/name")
        if not self.builtin:
            self._check_choice("format", FORMATS)
        if self.path and self.format == "hub":
            raise self._error(
                "has a path, so its format cannot be 'hub'; expected parquet, imagefolder, webdataset or json"
            )

    def _check_choice(self, name: str, known: Any) -> None:
        if getattr(self, name) not in known:
            given = getattr(self, name)
            raise self._error(f"'{name}' is {given!r}{nearest(str(given), known)}")

    def _checked(self, name: str, annotation: str, value: Any) -> Any:
        if value is None and annotation.endswith("| None"):
            return None
        annotation = annotation.removesuffix(" | None")
        if annotation == "tuple[str, ...]":
            texts = [value] if isinstance(value, str) else value
            if isinstance(texts, list | tuple) and all(isinstance(text, str) for text in texts):
                return tuple(texts)
        elif annotation == "dict[str, tuple[str, ...]]":
            if isinstance(value, dict) and all(isinstance(key, str) for key in value):
                return {key: self._checked(f"{name}.{key}", "tuple[str, ...]", item) for key, item in value.items()}
        elif annotation == "dict[str, str]":
            if isinstance(value, dict) and all(isinstance(item, str) for pair in value.items() for item in pair):
                return dict(value)
        elif annotation == "dict[str, Any]":
            if isinstance(value, dict) and all(isinstance(key, str) for key in value):
                return dict(value)
        elif type(value).__name__ == annotation:
            return value
        raise self._error(f"'{name}' is {value!r}; expected {_WORDS[annotation]}")

    def _error(self, problem: str) -> DataError:
        return DataError(f"data card '{self.name}': {problem}")


_WORDS = {
    "tuple[str, ...]": "a text or a list of texts",
    "dict[str, tuple[str, ...]]": "a mapping of names to texts or lists of texts",
    "dict[str, str]": "a mapping of texts to texts",
    "dict[str, Any]": "a mapping",
    "str": "a text",
    "int": "a whole number",
    "bool": "true or false",
}


def card_folder() -> Path:
    """The folder of the package's own cards: inside an installed package, or `data_cards/` of the source tree.

    Raises:
        DataError: an incomplete installation.
    """
    package = Path(__file__).parents[1]
    for folder in (package / "_data_cards", package.parent / "data_cards"):
        if folder.is_dir():
            return folder
    raise DataError(f"the data cards are missing beside '{package}'; install unimm again")


def card_names() -> list[str]:
    """Names of the package's own cards."""
    return sorted(path.stem for path in card_folder().glob("*.md"))


def load_card(name_or_path: str | os.PathLike | DataCard) -> DataCard:
    """Reads a card.

    Args:
        name_or_path: the name of one of the package's own cards (`_` and capitals do not matter), or the path of a
            Markdown file.

    Raises:
        DataError: no such card, no YAML header, or a header with unknown, missing or wrong fields.
    """
    if isinstance(name_or_path, DataCard):
        return name_or_path
    given = require_path(name_or_path, "a data card", error=DataError)
    if given.endswith(".md") or os.sep in given:
        path = Path(given).expanduser()
        if not path.is_file():
            raise DataError(
                f"there is no data card '{given}'; expected a Markdown file, or one of {', '.join(card_names())}"
            )
        return _read_card(path)
    name = given.lower().replace("_", "-")
    if name not in card_names():
        raise DataError(
            f"there is no data card '{given}'{nearest(name, card_names())}; a card of your own is given by its path"
        )
    return _own_card(name)


@cache
def _own_card(name: str) -> DataCard:
    return _read_card(card_folder() / f"{name}.md")


def _read_card(path: Path) -> DataCard:
    try:
        content = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"data card '{path}' cannot be read: {error}") from error
    match = re.match(r"---\s*\n(.*?)\n---\s*(?:\n|$)", content, flags=re.DOTALL)
    if match is None:
        raise DataError(f"data card '{path}' has no YAML header: expected it between two lines '---' at the top")
    try:
        header = yaml.safe_load(match[1])
    except yaml.YAMLError as error:
        raise DataError(f"data card '{path}' has a header that is no YAML: {error}") from error
    if not isinstance(header, dict):
        raise DataError(
            f"data card '{path}' has a header that is {type(header).__name__}; expected a mapping of fields"
        )
    specs = {spec.name: spec for spec in fields(DataCard) if spec.name not in ("name", "text")}
    for key in header:
        if key not in specs:
            raise DataError(f"data card '{path.stem}': there is no field '{key}'{nearest(str(key), specs)}")
    for name, spec in specs.items():
        if name not in header and spec.default is MISSING and spec.default_factory is MISSING:
            hint = "; write 'unknown' where none is known" if name == "license" else ""
            raise DataError(f"data card '{path.stem}': the field '{name}' is missing{hint}")
    if isinstance(header.get("path"), str):
        header["path"] = str((path.parent / Path(header["path"]).expanduser()).resolve())
    return DataCard(name=path.stem, text=content[match.end() :].strip(), **header)
