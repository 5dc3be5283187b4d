"""Tables that name tests as proofs name tests that exist."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@cache
def names_in(file: str) -> frozenset[str]:
    path = ROOT / file
    assert path.is_file(), f"there is no {file}"
    tree = ast.parse(path.read_text())
    return frozenset(
        node.name for node in tree.body if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")
    )


def rows_of(text: str, last_column: str) -> list[list[str]]:
    """Cells of every row of the tables whose last column has that title."""
    rows, inside = [], False
    for line in text.splitlines():
        cells = [cell.strip() for cell in line.strip().strip("|").split("|")]
        if not line.startswith("|"):
            inside = False
        elif cells[-1] == last_column:
            inside = True
        elif inside and not set(line) <= set("|- "):
            rows.append(cells)
    return rows


def missing(file: str, name: str) -> bool:
    return name not in names_in(file)


CONVENTIONS = rows_of((ROOT / "docs" / "conventions.md").read_text(), "proof")


@pytest.mark.parametrize("row", CONVENTIONS, ids=lambda row: row[0].replace("`", "")[:40])
def test_a_convention_is_proved_by_tests_that_exist_or_says_why_not(row):
    convention, here, proof = row
    assert convention
    named = re.findall(r"`(tests/[\w/]+\.py)::(test_\w+)`", proof)
    if here == "no" or here == "refused as unknown":
        assert proof
        return
    assert named, f"'{convention}' names no test"
    assert proof == ", ".join(f"`{file}::{name}`" for file, name in named)
    assert not [f"{file}::{name}" for file, name in named if missing(file, name)]


def test_the_table_of_conventions_is_read_whole():
    assert len(CONVENTIONS) == len(re.findall(r"^\| (?!convention )", (ROOT / "docs/conventions.md").read_text(), re.M))
    assert len(CONVENTIONS) > 50


def sections_with_tests() -> list[tuple[str, list[list[str]]]]:
    """The file that a section of the page on pictures names, and the rows of its table."""
    parts = re.split(r"^## ", (ROOT / "docs" / "images.md").read_text(), flags=re.MULTILINE)
    found = [(re.search(r"Tests are in `([^`]+)`", part), part) for part in parts]
    return [(file[1], rows_of(part, "test")) for file, part in found if file]


def test_every_kind_of_picture_has_a_test_that_exists():
    sections = sections_with_tests()
    assert [file for file, _ in sections] == ["tests/data/test_images.py", "tests/models/test_picture_forms.py"]
    for file, rows in sections:
        assert len(rows) >= 8
        for row in rows:
            assert not missing(file, row[-1].strip("`")), row


def test_every_test_of_pictures_is_told_on_the_page():
    text = (ROOT / "docs" / "images.md").read_text()
    for file, _ in sections_with_tests():
        silent = {name for name in names_in(file) if name not in text}
        assert silent <= {"test_bytes_paths_and_pictures_give_the_same"}, silent
