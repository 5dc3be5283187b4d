"""From YAML and command-line words to typed values; whatever does not fit is refused with its name and its place."""

from __future__ import annotations

import dataclasses
import enum
import math
import re
import types
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

import yaml

from ..errors import RecipeError, nearest

T = TypeVar("T")
# Says where a dotted name was given: a file or the command line.
Origin = Callable[[str], str]


class RecipeLoader(yaml.SafeLoader):
    """YAML as its users expect it: `1e-4` is a number, and a key may stand only once."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if key in seen and key != "<<":
                raise yaml.constructor.ConstructorError(None, None, f"'{key}' is given twice", key_node.start_mark)
            seen.add(key)
        return super().construct_mapping(node, deep)


RecipeLoader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+"),
    list("-+.0123456789"),
)


def read_yaml(path: str | Path) -> dict[str, Any]:
    """The mapping that a YAML file holds.

    Raises:
        RecipeError: the file does not exist, is no YAML, or holds something else.
    """
    try:
        values = yaml.load(Path(path).read_text(encoding="utf-8"), RecipeLoader)
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"cannot read the recipe '{path}': {error}") from error
    except yaml.YAMLError as error:
        raise RecipeError(f"{path} is no valid YAML: {error}") from error
    if not isinstance(values, dict) or not all(isinstance(key, str) for key in values):
        raise RecipeError(f"{path}: expected fields with values (name: value), given {_short(values)}")
    return values


def parse_words(words: Sequence[str]) -> dict[str, Any]:
    """Dotted names with their values, from command-line words.

    `--a 1`, `--a=1`, `--a.b 2`, `--flag` (true) and `--list x y` are understood, `-` inside of a name is `_`, and values
    are read as YAML.

    Raises:
        RecipeError: a word that belongs to no field, or a field given twice.
    """
    found: dict[str, Any] = {}
    position = 0
    while position < len(words):
        word = words[position]
        if not word.startswith("--") or word == "--":
            raise RecipeError(f"command line: '{word}' belongs to no field; write --field value")
        name, equals, text = word[2:].partition("=")
        name = name.replace("-", "_")
        position += 1
        values = [text] if equals else []
        while position < len(words) and not equals and not words[position].startswith("--"):
            values.append(words[position])
            position += 1
        if name in found:
            raise RecipeError(f"command line: --{name} is given twice")
        parsed = [_parse_word(name, value) for value in values]
        found[name] = True if not parsed else parsed[0] if len(parsed) == 1 else parsed
    return found


def set_dotted(values: dict[str, Any], name: str, value: Any) -> None:
    """Sets `values["a"]["b"]` for the name `a.b`; a number steps into a list.

    Raises:
        RecipeError: the name steps into something that has no parts.
    """
    *path, last = name.split(".")
    target: Any = values
    for depth, key in enumerate(path):
        if isinstance(target, list) and len(target) == 1 and not key.isdigit():
            target = target[0]
        if isinstance(target, list):
            target = target[_index(target, key, name)]
            continue
        if target.get(key) is None:
            target[key] = {}
        target = target[key]
        if not isinstance(target, dict | list):
            raise RecipeError(
                f"command line: --{name} steps into '{'.'.join(path[: depth + 1])}', whose value is {_short(target)}"
            )
    if isinstance(target, list) and len(target) == 1 and not last.isdigit():
        target = target[0]
    if isinstance(target, list):
        target[_index(target, last, name)] = value
    else:
        target[last] = value


def merge(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """`base` with `changes` put in, mapping by mapping."""
    merged = dict(base)
    for key, value in changes.items():
        if isinstance(value, Mapping) and isinstance(merged.get(key), Mapping):
            merged[key] = merge(merged[key], value)
        else:
            merged[key] = value
    return merged


def build(cls: Callable[..., T], values: Mapping[str, Any], origin: Origin, name: str = "") -> T:
    """A dataclass from a mapping, with every field checked against its annotation.

    Args:
        cls: the dataclass.
        values: its fields.
        origin: says where a dotted name was given.
        name: dotted name of the mapping itself.

    Raises:
        RecipeError: an unknown field (with the nearest known one), a missing one, or a value of a wrong type.
    """
    hints = field_types(cls)
    for key in values:
        if key not in hints:
            raise RecipeError(unknown_field(origin, _join(name, key), key, name, hints))
    missing = [
        field.name
        for field in dataclasses.fields(cls)  # type: ignore[arg-type]
        if field.name in hints
        and field.name not in values
        and field.default is dataclasses.MISSING
        and field.default_factory is dataclasses.MISSING
    ]
    if missing:
        raise RecipeError(f"{origin(name)}: {name or 'the recipe'} needs the field '{missing[0]}'")
    converted = {key: convert(value, hints[key], origin, _join(name, key)) for key, value in values.items()}
    return cls(**converted)


def field_types(cls: Any) -> dict[str, Any]:
    """The fields of a dataclass that may be given, with their types."""
    hints = get_type_hints(cls)
    return {field.name: hints[field.name] for field in dataclasses.fields(cls) if field.init}


def unknown_field(origin: Origin, name: str, key: str, section: str, known: Mapping[str, Any]) -> str:
    """The message for a field that does not exist."""
    where = f"'{section}'" if section else "a recipe"
    return f"{origin(name)}: {where} has no field '{key}'{nearest(key, known)}"


def convert(value: Any, expected: Any, origin: Origin, name: str) -> Any:
    """A value as its annotation asks for it: whole numbers serve as floats, `1e5` as a whole number, names as enums.

    Raises:
        RecipeError: it does not fit.
    """
    if get_origin(expected) in (Union, types.UnionType):
        return _convert_to_any_of(value, get_args(expected), origin, name)
    container = get_origin(expected) or expected
    if expected is Any or (expected is None and value is None):
        return value
    if dataclasses.is_dataclass(expected) and isinstance(expected, type):
        if isinstance(value, expected):
            return value
        if isinstance(value, Mapping):
            return build(expected, value, origin, name)
    elif get_origin(expected) is Literal:
        if any(value == choice and type(value) is type(choice) for choice in get_args(expected)):
            return value
        choices = ", ".join(repr(one) for one in get_args(expected))
        raise RecipeError(f"{origin(name)}: {name} must be one of {choices}, given {_short(value)}")
    elif isinstance(expected, type) and issubclass(expected, enum.Enum):
        if isinstance(value, expected):
            return value
        if value in [one.value for one in expected]:
            return expected(value)
        if isinstance(value, str):
            hint = nearest(value, [str(one.value) for one in expected])
            raise RecipeError(f"{origin(name)}: {name} has no choice '{value}'{hint}")
    elif container in (list, tuple, Sequence):
        (item, *_) = get_args(expected) or (Any,)
        if isinstance(value, Mapping) and dataclasses.is_dataclass(item):
            # A single entry need not be written as a list.
            return [convert(value, item, origin, name)]
        if isinstance(value, list | tuple):
            return container_of(expected)(
                convert(one, item, origin, f"{name}.{index}") for index, one in enumerate(value)
            )
    elif container in (dict, Mapping):
        if isinstance(value, Mapping):
            (_, item) = get_args(expected) or (Any, Any)
            return {key: convert(one, item, origin, f"{name}.{key}") for key, one in value.items()}
    elif expected is float:
        if isinstance(value, int | float) and not isinstance(value, bool):
            return float(value)
    elif expected is int:
        if isinstance(value, int) and not isinstance(value, bool):
            return value
        if isinstance(value, float) and math.isfinite(value) and value == int(value):
            return int(value)
    elif isinstance(expected, type) and isinstance(value, expected):
        return value
    raise RecipeError(
        f"{origin(name)}: {name} must be {_described(expected)}, given {_short(value)} ({type(value).__name__})"
    )


def container_of(expected: Any) -> type:
    """`tuple` for an annotated tuple, else `list`."""
    return tuple if get_origin(expected) is tuple else list


def plain(value: Any) -> Any:
    """A value as YAML can hold it: dataclasses as mappings, enums by value, tuples as lists."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, enum.Enum):
        return value.value
    if isinstance(value, Mapping):
        return {key: plain(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [plain(one) for one in value]
    return value


def _convert_to_any_of(value: Any, choices: tuple[Any, ...], origin: Origin, name: str) -> Any:
    if value is None and type(None) in choices:
        return None
    if isinstance(value, str):
        # A named choice is checked before `str` would take any word.
        for choice in choices:
            if isinstance(choice, type) and issubclass(choice, enum.Enum):
                return convert(value, choice, origin, name)
    refused: list[RecipeError] = []
    for choice in choices:
        if choice is not type(None):
            try:
                return convert(value, choice, origin, name)
            except RecipeError as error:
                refused.append(error)
                if _belongs_to(value, choice):
                    raise
    if len(refused) == 1:
        raise refused[0]
    expected = " or ".join(_described(choice) for choice in choices)
    raise RecipeError(f"{origin(name)}: {name} must be {expected}, given {_short(value)} ({type(value).__name__})")


def _belongs_to(value: Any, choice: Any) -> bool:
    """Whether a value's kind leaves no other choice, so that the error inside of it is the one to tell."""
    if dataclasses.is_dataclass(choice) or (get_origin(choice) or choice) in (dict, Mapping):
        return isinstance(value, Mapping)
    return (get_origin(choice) or choice) in (list, tuple) and isinstance(value, list)


def _parse_word(name: str, text: str) -> Any:
    try:
        return yaml.load(text, RecipeLoader)
    except yaml.YAMLError as error:
        raise RecipeError(f"command line: the value of --{name}, '{text}', is no valid YAML: {error}") from error


def _index(values: list[Any], key: str, name: str) -> int:
    if not key.isdigit() or int(key) >= len(values):
        raise RecipeError(f"command line: --{name} steps into a list of {len(values)} entries with '{key}'")
    return int(key)


def _described(expected: Any) -> str:
    names = {
        int: "a whole number",
        float: "a number",
        bool: "true or false",
        str: "a text",
        dict: "a mapping (name: value)",
        list: "a list",
        tuple: "a list",
        type(None): "null",
    }
    if get_origin(expected) in (Union, types.UnionType):
        return " or ".join(_described(one) for one in get_args(expected))
    if get_origin(expected) is Literal:
        return "one of " + ", ".join(repr(one) for one in get_args(expected))
    if dataclasses.is_dataclass(expected):
        return "a mapping (name: value)"
    return names.get(get_origin(expected) or expected, getattr(expected, "__name__", str(expected)))


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


def _join(section: str, key: str) -> str:
    return f"{section}.{key}" if section else key
