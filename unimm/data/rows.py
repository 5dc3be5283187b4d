"""The one row schema of every data set: what a row has, how to build one, how to check one.

    {"id", "images": [..], "messages": [{"role", "content": [{"type": "text", "text"} | {"type": "image"}]}],
     "label"?, "chosen"?/"rejected"?, "source"}

Image entries of the messages stand for the row's pictures, in reading order. A picture in an assistant's message is
drawn, in a user's message it is shown. Further columns may travel along.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np
from PIL import Image

from ..dependencies import needed_for
from ..errors import DataError, nearest

if TYPE_CHECKING:
    from datasets import Features

Row = dict[str, Any]

ROLES = ("system", "user", "assistant")
NEEDED_FIELDS = ("id", "images", "messages", "source")
OPTIONAL_FIELDS = ("label", "chosen", "rejected")
ROW_FIELDS = (*NEEDED_FIELDS, *OPTIONAL_FIELDS)

#: What stands for a picture in the texts of LLaVA-style conversations.
IMAGE_MARK = "<image>"
_SPEAKERS = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "system": "system"}


def message(role: str, *parts: str | None) -> dict[str, Any]:
    """A message of texts and, for every None, a picture."""
    content = [{"type": "image"} if part is None else {"type": "text", "text": part} for part in parts]
    return {"role": role, "content": content}


def caption_row(image: Any, text: str, *, row_id: str | None = None, source: str = "") -> Row:
    """A picture and the text that it is to be drawn from.

    Args:
        image: a PIL picture, a uint8 array `(height, width, 3)`, or an encoded one, `{"bytes", "path"}`.
        text: the caption.
        row_id: by default a digest of the content, so that the same content has the same id anywhere.
        source: where the row is from.
    """
    return _row([image], [message("user", text), message("assistant", None)], row_id, source)


def question_row(image: Any, question: str, answer: str, *, row_id: str | None = None, source: str = "") -> Row:
    """A picture, a question about it, and the answer; arguments as in `caption_row`."""
    return _row([image], [message("user", None, question), message("assistant", answer)], row_id, source)


def image_row(image: Any, *, row_id: str | None = None, source: str = "") -> Row:
    """A picture alone, drawn without a prompt; arguments as in `caption_row`."""
    return _row([image], [message("assistant", None)], row_id, source)


def class_row(image: Any, label: int, *, row_id: str | None = None, source: str = "") -> Row:
    """A picture and the number of its class; arguments as in `caption_row`."""
    return _row([image], [message("assistant", None)], row_id, source, label=label)


def edit_row(
    before: Sequence[Any], instruction: str, after: Any, *, row_id: str | None = None, source: str = ""
) -> Row:
    """Pictures, an instruction, and the picture that it leads to; arguments as in `caption_row`."""
    messages = [message("user", *[None] * len(before), instruction), message("assistant", None)]
    return _row([*before, after], messages, row_id, source)


def preference_row(text: str, chosen: Any, rejected: Any, *, row_id: str | None = None, source: str = "") -> Row:
    """A caption and two pictures of it, the better one first; `chosen` and `rejected` are their numbers."""
    return _row([chosen, rejected], [message("user", text)], row_id, source, chosen=0, rejected=1)


def conversation_row(
    images: Sequence[Any], turns: Sequence[Mapping[str, Any]], *, row_id: str | None = None, source: str = ""
) -> Row:
    """A conversation in LLaVA's form, with `<image>` where a picture stands.

    Args:
        images: pictures in reading order, as in `caption_row`.
        turns: `[{"from": "human" | "gpt" | "system", "value": text}]`, or the same with `role` and `content`.
        row_id: as in `caption_row`.
        source: where the row is from.

    Raises:
        DataError: an unknown speaker, no text, or another number of `<image>` than of pictures.
    """
    messages = [_turn(turn, number, row_id) for number, turn in enumerate(turns)]
    num_marks = sum(part["type"] == "image" for one in messages for part in one["content"])
    if num_marks != len(images):
        raise DataError(
            f"{_name(row_id)}: its conversation has {num_marks} '{IMAGE_MARK}' but the row has {len(images)} pictures; "
            "expected one mark per picture"
        )
    return _row(list(images), messages, row_id, source)


def validate_row(row: Mapping[str, Any]) -> Mapping[str, Any]:
    """Gives the row back when it has the schema.

    Args:
        row: pictures are PIL pictures, uint8 arrays `(height, width, 3)`, or encoded, `{"bytes", "path"}`.

    Raises:
        DataError: names the row, the field, what was given and what was expected.
    """
    name = _name(row.get("id"))
    for field in NEEDED_FIELDS:
        if field not in row:
            others = [other for other in row if other not in ROW_FIELDS]
            raise DataError(f"{name}: field '{field}' is missing{nearest(field, others) if others else ''}")
    for field in ("id", "source"):
        if not isinstance(row[field], str) or (field == "id" and not row[field]):
            _refuse(name, field, row[field], "a text" + (" that is not empty" if field == "id" else ""))
    if not isinstance(row["images"], Sequence) or isinstance(row["images"], str | bytes):
        _refuse(name, "images", row["images"], "a list of pictures")
    for number, image in enumerate(row["images"]):
        _check_image(name, f"images[{number}]", image)
    if not row["messages"]:
        _refuse(name, "messages", row["messages"], "at least one message")
    num_mentioned = _check_messages(name, "messages", row["messages"])
    num_mentioned += _check_preference(name, row)
    if num_mentioned != len(row["images"]):
        _refuse(
            name,
            "images",
            row["images"],
            f"{num_mentioned}, as many as its messages, `chosen` and `rejected` mention",
            described=f"a list of {len(row['images'])} pictures",
        )
    label = row.get("label")
    if label is not None and not (_is_whole(label) and label >= 0) and not (isinstance(label, str) and label):
        _refuse(name, "label", label, "a class number of 0 or more, or a text")
    return row


def row_features(label: Any = None, preference: bool = False) -> Features:
    """The column types of rows for `datasets`, which stores encoded pictures and decodes them when they are read.

    Args:
        label: type of the column `label` (`Value`, `ClassLabel`); None for none.
        preference: with columns `chosen` and `rejected`.
    """
    with needed_for("data sets"):
        from datasets import Features, List, Value

    from .pictures import PictureFeature

    content = {"type": Value("string"), "text": Value("string")}
    types: dict[str, Any] = {
        "id": Value("string"),
        "images": List(PictureFeature()),
        "messages": List({"role": Value("string"), "content": List(content)}),
    }
    if label is not None:
        types["label"] = label
    if preference:
        types |= {"chosen": Value("int64"), "rejected": Value("int64")}
    return Features({**types, "source": Value("string")})


def content_id(images: Sequence[Any], messages: Any, *more: Any) -> str:
    """16 hexadecimal digits that depend on a row's content alone."""
    digest = hashlib.blake2b(repr((_plain(messages), more)).encode(), digest_size=8)
    for image in images:
        digest.update(b"|")
        if isinstance(image, Mapping):
            digest.update(image.get("bytes") or str(image.get("path")).encode())
        elif isinstance(image, Image.Image):
            digest.update(f"{image.mode}{image.size}".encode() + image.tobytes())
        else:
            array = np.asarray(image)
            digest.update(f"{array.dtype}{array.shape}".encode() + array.tobytes())
    return digest.hexdigest()


def _row(images: list[Any], messages: list[dict[str, Any]], row_id: str | None, source: str, **more: Any) -> Row:
    row_id = content_id(images, messages, *more.items()) if row_id is None else row_id
    row = {"id": row_id, "images": images, "messages": messages, **more, "source": source}
    validate_row(row)
    return row


def _plain(messages: Any) -> Any:
    return [(one["role"], [(part["type"], part.get("text")) for part in one["content"]]) for one in messages]


def _turn(turn: Mapping[str, Any], number: int, row_id: str | None) -> dict[str, Any]:
    speaker = turn.get("from", turn.get("role"))
    text = turn.get("value", turn.get("content"))
    if speaker not in _SPEAKERS:
        raise DataError(
            f"{_name(row_id)}: turn {number} is from {speaker!r}; expected one of {', '.join(sorted(_SPEAKERS))}"
        )
    if not isinstance(text, str):
        raise DataError(f"{_name(row_id)}: turn {number} says {_shown(text)}; expected a text")
    parts: list[str | None] = []
    for piece in re.split(f"({re.escape(IMAGE_MARK)})", text):
        if piece == IMAGE_MARK:
            parts.append(None)
        elif piece.strip():
            parts.append(piece.strip())
    return message(_SPEAKERS[speaker], *parts)


def _check_messages(name: str, field: str, messages: Any) -> int:
    if not isinstance(messages, Sequence) or isinstance(messages, str):
        _refuse(name, field, messages, "a list of messages")
    num_images = 0
    for number, one in enumerate(messages):
        where = f"{field}[{number}]"
        if not isinstance(one, Mapping) or not {"role", "content"} <= set(one):
            _refuse(name, where, one, "a mapping with 'role' and 'content'")
        if one["role"] not in ROLES:
            _refuse(name, f"{where}.role", one["role"], f"one of {', '.join(ROLES)}")
        if not isinstance(one["content"], Sequence) or isinstance(one["content"], str) or not one["content"]:
            _refuse(name, f"{where}.content", one["content"], "a list of one or more texts and pictures")
        for place, part in enumerate(one["content"]):
            kind = part.get("type") if isinstance(part, Mapping) else None
            if kind not in ("text", "image"):
                _refuse(name, f"{where}.content[{place}]", part, "a mapping with 'type' 'text' or 'image'")
            if kind == "text" and not (isinstance(part.get("text"), str) and part["text"].strip()):
                _refuse(name, f"{where}.content[{place}].text", part.get("text"), "a text that is not empty")
            num_images += kind == "image"
    return num_images


def _check_preference(name: str, row: Mapping[str, Any]) -> int:
    chosen, rejected = row.get("chosen"), row.get("rejected")
    if (chosen is None) != (rejected is None):
        given, missing = ("chosen", "rejected") if rejected is None else ("rejected", "chosen")
        _refuse(name, missing, None, f"a value, since '{given}' has one")
    if chosen is None:
        return 0
    both: tuple[tuple[str, Any], ...] = (("chosen", chosen), ("rejected", rejected))
    if all(_is_whole(value) for _, value in both):
        for field, value in both:
            if not 0 <= value < len(row["images"]):
                _refuse(name, field, value, f"the number of one of the row's {len(row['images'])} pictures")
        if chosen == rejected:
            _refuse(name, "rejected", rejected, "another picture than the chosen one")
        return 2
    for field, value in both:
        if isinstance(value, str) or not isinstance(value, Sequence) or not value:
            _refuse(name, field, value, "the number of a picture, or a list of messages, in both fields alike")
    return _check_messages(name, "chosen", chosen) + _check_messages(name, "rejected", rejected)


def _check_image(name: str, field: str, image: Any) -> None:
    if isinstance(image, Image.Image):
        return
    if isinstance(image, np.ndarray):
        if image.dtype == np.uint8 and image.ndim == 3 and image.shape[2] == 3:
            return
        described = f"a {image.dtype} array {image.shape}"
        _refuse(name, field, image, "a uint8 array (height, width, 3)", described=described)
    if isinstance(image, Mapping) and (image.get("bytes") or image.get("path")):
        return
    _refuse(name, field, image, "a PIL picture, a uint8 array, or a mapping with 'bytes' or 'path'")


def _is_whole(value: Any) -> bool:
    return isinstance(value, int | np.integer) and not isinstance(value, bool)


def _name(row_id: Any) -> str:
    return f"row {row_id!r}" if row_id is not None else "a row without id"


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 120 else text[:117] + "..."


def _refuse(name: str, field: str, given: Any, expected: str, *, described: str | None = None) -> NoReturn:
    raise DataError(f"{name}: field '{field}' is {described or _shown(given)}; expected {expected}")
