"""Every page of the documentation: its Python runs, its commands parse, its links and pictures exist."""

from __future__ import annotations

import ast
import contextlib
import re
import shlex
import sys
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import pytest
import typer
import yaml
from transformers import AutoModel

from unimm.training.recipes import RECIPES

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
# `python` runs; `python fragment` is part of a file, or needs the network or a GPU, and only has to parse;
# `python unimm/…/NAME.py` is a file, which test_adding_a_system.py writes down and uses.
KINDS = r"(python( fragment| unimm/[\w/]+\.py)?|bash|yaml|text)?"
NEEDS = {
    "docs/data.md": ("datasets",),
    "docs/memory.md": ("bitsandbytes",),
    "docs/shapes.md": ("datasets",),
}
#: What a page's blocks print.
SAYS = {
    "README.md": ["torch.Size([2, 3, 256, 256]) 10"],
    "docs/conditions.md": ["torch.Size([2, 8, 16]) tensor([4, 8])", "torch.Size([2, 3, 16, 16])"],
    "docs/generation.md": ["4 (16, 16) torch.Size([4, 85])", "step 4 of 4, 85 tokens", "generated_image"],
    "docs/hub.md": ["Nothing was sent"],
}


@dataclass(frozen=True)
class Block:
    """A fenced block: the words behind its fence, its text, and the line that it begins at."""

    kind: str
    text: str
    line: int


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def blocks_of(text: str) -> list[Block]:
    blocks: list[Block] = []
    opened: tuple[str, int] | None = None
    lines = text.splitlines()
    for number, line in enumerate(lines, start=1):
        if not line.startswith("```"):
            continue
        if opened is None:
            opened = (line[3:].strip(), number)
        else:
            assert line == "```", f"line {number}: a fence inside of the block that line {opened[1]} opens"
            blocks.append(Block(opened[0], "\n".join(lines[opened[1] : number - 1]) + "\n", opened[1] + 1))
            opened = None
    assert opened is None, f"the block of line {opened[1]} has no end"
    return blocks


def prose_of(text: str) -> str:
    """The page without its fenced blocks."""
    return re.sub(r"^```.*?^```$", "", text, flags=re.DOTALL | re.MULTILINE)


def pages_with(kind: str) -> list[object]:
    found = [path for path in PAGES if any(block.kind == kind for block in blocks_of(path.read_text()))]
    return [
        pytest.param(path, id=name_of(path), marks=pytest.mark.needs(*NEEDS.get(name_of(path), ()))) for path in found
    ]


def run_block(block: Block, page: str, names: dict[str, object]) -> None:
    """Runs a block; what is beside a comment that is a literal, as in `print(1 + 2)  # 3`, has to give that."""
    # Blank lines ahead, so that a traceback names the page's own line.
    source = "\n" * (block.line - 1) + block.text
    lines = source.splitlines()
    for statement in ast.parse(source, filename=page).body:
        if not isinstance(statement, ast.Expr):
            exec(compile(ast.Module([statement], []), page, "exec"), names)
            continue
        shown = statement.value
        prints = isinstance(shown, ast.Call) and ast.unparse(shown.func) == "print" and len(shown.args) == 1
        value = eval(compile(ast.Expression(shown.args[0] if prints else shown), page, "eval"), names)
        if prints:
            print(value)
        _, _, comment = lines[(statement.end_lineno or 1) - 1][statement.end_col_offset or 0 :].partition("# ")
        with contextlib.suppress(ValueError, SyntaxError):
            stated = ast.literal_eval(comment)
            assert value == stated, f"{page}:{statement.end_lineno} gives {value!r} instead of {stated!r}"


def folder_of_a_small_var(folder: Path) -> None:
    """What the page on memory calls `models/var-d16`, small; sides are what 4-bit layers can take on every CPU."""
    from factories import ADALN, scale_config

    config = scale_config(backbone_config={**ADALN, "hidden_size": 64, "intermediate_size": 128})
    AutoModel.from_config(config).save_pretrained(folder / "models" / "var-d16")


PREPARATIONS = {"docs/memory.md": folder_of_a_small_var}


@pytest.mark.parametrize("path", pages_with("python"))
def test_the_python_of_a_page_runs_from_top_to_bottom(path, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    if prepare := PREPARATIONS.get(name_of(path)):
        prepare(tmp_path)
    # A module, because config classes look their annotations up in the module that they are from.
    page = ModuleType("page")
    monkeypatch.setitem(sys.modules, "page", page)
    for block in blocks_of(path.read_text()):
        if block.kind == "python":
            run_block(block, name_of(path), vars(page))
    printed = capsys.readouterr().out
    for expected in SAYS.get(name_of(path), ()):
        assert expected in printed


@pytest.mark.parametrize("path", PAGES, ids=name_of)
def test_every_block_is_of_a_known_kind_and_fragments_parse(path):
    for block in blocks_of(path.read_text()):
        assert re.fullmatch(KINDS, block.kind), f"{name_of(path)}:{block.line}: '{block.kind}'"
        if block.kind.startswith("python"):
            ast.parse(block.text, filename=f"{name_of(path)}:{block.line}")
        elif block.kind == "yaml":
            yaml.safe_load(block.text)


def test_what_is_expected_of_a_page_is_expected_of_a_page_that_exists():
    known = {name_of(path) for path in PAGES}
    assert {*SAYS, *NEEDS, *PREPARATIONS} <= known


def commands_of(text: str) -> list[list[str]]:
    """The simple commands of a shell block, as words, without assignments before them."""
    found = []
    for line in text.replace("\\\n", " ").splitlines():
        words = shlex.split(line, comments=True)
        while words and re.fullmatch(r"[A-Z_]+=.*", words[0]):
            words = words[1:]
        if words:
            found.append(words)
    return found


def parse_command(words: list[str]) -> None:
    """Parses the words after `unimm` as the command line does, without running anything; a recipe's fields too."""
    command, given = typer.main.get_command(app()), list(words)
    names = []
    while hasattr(command, "commands"):
        assert given, f"unimm {' '.join(words)}: a command is missing"
        assert given[0] in command.commands, f"there is no command 'unimm {' '.join([*names, given[0]])}'"
        names.append(given.pop(0))
        command = command.commands[names[-1]]
    if names[0] in RECIPES:
        RECIPES[names[0]].parse(given)
    else:
        # The group's settings, such as `_` for `-` in options, come down to a command through its parent.
        parent = typer.main.get_command(app()).context_class(typer.main.get_command(app()), info_name="unimm")
        parent.token_normalize_func = app().info.context_settings["token_normalize_func"]
        command.make_context(" ".join(names), given, parent=parent)


def app() -> typer.Typer:
    from unimm.cli import app

    return app


def make_targets() -> set[str]:
    return set(re.findall(r"^([a-z][a-z-]*):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))


@pytest.mark.parametrize("path", pages_with("bash"))
def test_the_commands_of_a_page_exist_and_take_what_they_are_given(path, monkeypatch):
    monkeypatch.chdir(ROOT)
    for block in blocks_of(path.read_text()):
        if block.kind != "bash":
            continue
        for words in commands_of(block.text):
            program = Path(words[0]).name
            if program == "unimm":
                parse_command(words[1:])
            elif program == "make":
                targets = [word for word in words[1:] if "=" not in word]
                assert set(targets) <= make_targets(), words
            elif program == "python":
                assert (ROOT / words[1]).is_file(), words
            else:
                assert program in ("pip", "hf", "pre-commit", "accelerate"), f"{name_of(path)}: who knows '{words[0]}'?"


@pytest.mark.parametrize("path", PAGES, ids=name_of)
def test_commands_and_targets_in_running_text_exist(path):
    commands = typer.main.get_command(app()).commands
    for code in re.findall(r"`([^`\n]+)`", prose_of(path.read_text())):
        words = code.split()
        if words[0] == "make" and len(words) > 1:
            targets = {word for word in shlex.split(code)[1:] if "=" not in word and not word.isupper()}
            assert targets <= make_targets(), code
        elif words[0] == "unimm" and len(words) > 1:
            assert words[1].rstrip(",") in commands, code
            if hasattr(commands[words[1]], "commands") and len(words) > 2:
                assert words[2] in commands[words[1]].commands, code


@pytest.mark.parametrize("path", PAGES, ids=name_of)
def test_paths_in_running_text_exist(path):
    for code in re.findall(r"`([^`\s]+)`", prose_of(path.read_text())):
        if re.fullmatch(r"(unimm|tests|recipes|docs|examples|benchmarks|data_cards)(/[\w.-]+)+/?", code):
            names = re.search(r"[A-Z]{3,}|example", code)
            assert names or (ROOT / code).exists(), f"{name_of(path)} speaks of {code}"


def slug(heading: str) -> str:
    """The anchor that GitHub gives a heading."""
    plain = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", heading).replace("`", "").strip().lower()
    return re.sub(r"[^\w\- ]", "", plain).replace(" ", "-")


@pytest.mark.parametrize("path", PAGES, ids=name_of)
def test_relative_links_and_pictures_lead_somewhere(path):
    for target in re.findall(r"\]\(([^)\s]+)\)", prose_of(path.read_text())):
        if re.match(r"[a-z]+:", target):
            continue
        file, _, anchor = target.partition("#")
        place = path if not file else path.parent / file
        assert place.exists(), f"{name_of(path)} links to {target}"
        if anchor:
            headings = re.findall(r"^#+ (.+)$", prose_of(place.read_text()), flags=re.MULTILINE)
            assert anchor in {slug(heading) for heading in headings}, f"{name_of(path)} links to {target}"


def test_every_page_can_be_reached_from_the_readme():
    seen: set[Path] = set()
    waiting = [ROOT / "README.md"]
    while waiting:
        page = waiting.pop()
        if page in seen or page.suffix != ".md" or not page.is_file():
            continue
        seen.add(page)
        links = re.findall(r"\]\(([^)\s#]+)", prose_of(page.read_text()))
        waiting += [(page.parent / link).resolve() for link in links if not re.match(r"[a-z]+:", link)]
    assert set(PAGES) <= seen, [name_of(path) for path in set(PAGES) - seen]
