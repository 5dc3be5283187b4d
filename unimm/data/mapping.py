"""From a data set's own columns to rows of the one schema."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from .. import __version__
from ..dependencies import needed_for
from ..errors import DataError, ImageError, nearest
from .cards import TASKS, DataCard
from .images import decode_image, picture_name, read_encoded
from .rows import (
    ROW_FIELDS,
    Row,
    caption_row,
    class_row,
    conversation_row,
    edit_row,
    image_row,
    preference_row,
    question_row,
    row_features,
    validate_row,
)
from .sources import image_base

if TYPE_CHECKING:
    from datasets import Features

logger = logging.getLogger(__name__)


class RowMapper:
    """Makes rows of the one schema; given to `Dataset.map` in batches, or called for one example.

    Args:
        card: says which column plays which role.
        columns: the columns that the data has.
        features: their types, where they are known.
        decode: rows have PIL pictures; else encoded ones, `{"bytes", "path"}`.
        verify: encoded pictures are decoded once, to see whether they are whole.

    Raises:
        DataError: a needed column is missing.
    """

    def __init__(
        self,
        card: DataCard,
        columns: Sequence[str],
        features: Mapping[str, Any] | None = None,
        *,
        decode: bool = False,
        verify: bool = False,
    ):
        self.card = card
        self.decode = decode
        self.verify = verify
        self.columns = _columns_of_roles(card, columns)
        self.image_base = image_base(card)
        self.source_types = dict(features or {})
        self.extra_columns = [name for name in columns if name not in ROW_FIELDS] if card.task == "row" else []
        self.num_skipped = 0
        # The hash of this object names cached results: another version of the package may map otherwise.
        self.version = __version__

    @property
    def features(self) -> Features:
        """The column types of the rows with encoded pictures."""
        with needed_for("data sets"):
            from datasets import ClassLabel, Features, Value

        if self.card.task == "row":
            types = {name: self.source_types[name] for name in self.columns.values()}
            types |= {name: self.source_types[name] for name in self.extra_columns}
            return Features({**types, **{name: row_features()[name] for name in ("id", "images")}})
        label = None
        if "label" in self.columns and not self._is_captioned:
            label = self.source_types.get(self.columns["label"])
            if self.card.class_names:
                label = ClassLabel(names=list(self.card.class_names))
            elif not isinstance(label, ClassLabel):
                label = Value("int64")
        return row_features(label, preference=self.card.task == "preference")

    def __call__(self, batch: Mapping[str, Sequence[Any]]) -> dict[str, list[Any]]:
        names = list(batch)
        rows = []
        for values in zip(*batch.values(), strict=True):
            try:
                rows.append(self.row(dict(zip(names, values, strict=True))))
            except DataError as error:
                if self.card.on_error != "skip":
                    raise
                self.num_skipped += 1
                logger.warning("skipped, the %d. row in this process: %s", self.num_skipped, error)
        fields = list(self.features) if not rows else list(rows[0])
        return {name: [row[name] for row in rows] for name in fields}

    def row(self, example: Mapping[str, Any]) -> Row:
        """One row.

        Raises:
            DataError: the example does not make a right row; names the card and the row.
        """
        try:
            row = self._build(example)
            for number, image in enumerate(row["images"]):
                if image["bytes"]:
                    image["path"] = f"{row['id']}/{number}"
                if self.decode or self.verify:
                    decoded = decode_image(read_encoded(image), name=picture_name(image))
                    row["images"][number] = decoded if self.decode else image
        except (DataError, ImageError) as error:
            raise DataError(f"data card '{self.card.name}': {error}") from error
        return row

    @property
    def _is_captioned(self) -> bool:
        return self.card.task == "image" and "caption" in self.columns

    def _build(self, example: Mapping[str, Any]) -> Row:
        task = self.card.task
        if task == "row":
            return self._schema_row(example)
        row_id = self._value(example, "id") if "id" in self.columns else None
        about: dict[str, Any] = {"row_id": None if row_id is None else str(row_id), "source": self.card.name}
        if task == "conversation":
            return conversation_row(self._pictures(example, "image"), self._turns(example), **about)
        if task == "preference":
            pictures = (self._picture(example, "chosen_image"), self._picture(example, "rejected_image"))
            return preference_row(self._text(example, "caption"), *pictures, **about)
        if task == "edit":
            before = self._pictures(example, "source_image")
            if not before:
                raise DataError(f"{self._place('source_image')} has no picture; expected one or more")
            return edit_row(before, self._text(example, "instruction"), self._picture(example, "image"), **about)
        image = self._picture(example, "image")
        if task == "question":
            return question_row(image, self._text(example, "question"), self._text(example, "answer"), **about)
        if task == "caption" or self._is_captioned:
            return caption_row(image, self._text(example, "caption"), **about)
        if task == "class" or "label" in self.columns:
            return class_row(image, self._label(example), **about)
        return image_row(image, **about)

    def _schema_row(self, example: Mapping[str, Any]) -> Row:
        row = {role: self._value(example, role) for role in self.columns}
        row["id"] = str(row["id"])
        row["images"] = self._pictures(example, "images")
        row |= {name: example[name] for name in self.extra_columns}
        validate_row(row)
        return row

    def _value(self, example: Mapping[str, Any], role: str) -> Any:
        column = self.columns[role]
        if column in example:
            return example[column]
        name, *keys = column.split(".")
        value = example[name]
        for key in keys:
            if not isinstance(value, Mapping) or key not in value:
                has = f"the keys {', '.join(map(str, value))}" if isinstance(value, Mapping) else repr(value)
                raise DataError(f"column '{name}' has no key '{key}' for the role '{role}', it has {has}")
            value = value[key]
        return value

    def _text(self, example: Mapping[str, Any], role: str) -> str:
        value = self._value(example, role)
        if not isinstance(value, str) or not value.strip():
            raise DataError(f"{self._place(role)} is {value!r}; expected a text that is not empty")
        return value.strip()

    def _turns(self, example: Mapping[str, Any]) -> list[Mapping[str, Any]]:
        value = self._value(example, "conversations")
        if not isinstance(value, list) or not value or not all(isinstance(turn, Mapping) for turn in value):
            raise DataError(f"{self._place('conversations')} is {value!r}; expected a list of one or more turns")
        return value

    def _label(self, example: Mapping[str, Any]) -> int:
        value = self._value(example, "label")
        if isinstance(value, str):
            names = self.card.class_names
            if value not in names:
                what = "is no class" if names else "is a text: list the names of all classes as class_names"
                raise DataError(f"{self._place('label')} is {value!r}, which {what}{nearest(value, names)}")
            return names.index(value)
        if not isinstance(value, int) or isinstance(value, bool) or value < 0:
            raise DataError(f"{self._place('label')} is {value!r}; expected a class number of 0 or more")
        return value

    def _picture(self, example: Mapping[str, Any], role: str) -> dict[str, Any]:
        pictures = self._pictures(example, role)
        if len(pictures) != 1:
            raise DataError(f"{self._place(role)} has {len(pictures)} pictures; expected one")
        return pictures[0]

    def _pictures(self, example: Mapping[str, Any], role: str) -> list[dict[str, Any]]:
        value = self._value(example, role)
        values = value if isinstance(value, list) else [] if value is None else [value]
        return [self._encoded(one, role) for one in values]

    def _encoded(self, value: Any, role: str) -> dict[str, Any]:
        if isinstance(value, Mapping) and value.get("bytes"):
            return {"bytes": value["bytes"], "path": None}
        if isinstance(value, bytes) and value:
            return {"bytes": value, "path": None}
        path = value.get("path") if isinstance(value, Mapping) else value
        if not isinstance(path, str) or not path:
            raise DataError(f"{self._place(role)} is {value!r}; expected an encoded picture or its path")
        if "://" not in path:
            path = path if os.path.isabs(path) else f"{self.image_base}/{path}"
        if "://" not in path and not os.path.isfile(path):
            raise DataError(f"{self._place(role)} names the picture '{path}', which does not exist")
        return {"bytes": None, "path": path}

    def _place(self, role: str) -> str:
        return f"column '{self.columns[role]}' (the {role})"


def _columns_of_roles(card: DataCard, columns: Sequence[str]) -> dict[str, str]:
    task = TASKS[card.task]
    found = {}
    for role in (*task.needed, *task.optional):
        column = card.columns.get(role, role)
        if column in columns or column.split(".")[0] in columns:
            found[role] = column
        elif role in task.needed or (role in card.columns and card.task != "image"):
            raise DataError(
                f"data card '{card.name}': the task '{card.task}' needs the column '{column}' for the role '{role}', "
                f"but the data has only {', '.join(columns)}. Map it in the card: columns: {{{role}: NAME}}"
            )
    unused = [
        name
        for name in columns
        if name not in {column.split(".")[0] for column in found.values()} | set(found.values())
    ]
    if card.task == "image" and "caption" not in found and unused:
        logger.warning(
            "data card '%s': nothing is made of the columns %s; columns={'caption': NAME} would make captions of one",
            card.name, ", ".join(unused),
        )  # fmt: skip
    return found
