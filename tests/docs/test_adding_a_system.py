"""The page on adding a system, done as it says: two files and a folder, and no edit elsewhere."""

from __future__ import annotations

import ast
import importlib
import json
import re
import shutil
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModel
from typer.testing import CliRunner

import unimm.systems
import unimm.verification
from unimm.cli import app

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "adding-a-system.md").read_text()
FILES = dict(re.findall(r"^```python (unimm/[\w/]+\.py)\n(.*?)^```$", PAGE, flags=re.DOTALL | re.MULTILINE))


@pytest.fixture
def example(tmp_path, monkeypatch):
    """The page's files where the package looks for systems and replays, for the time of a test."""
    for name, text in FILES.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True)
        path.write_text(text)
    monkeypatch.setattr(unimm.systems, "__path__", [*unimm.systems.__path__, str(tmp_path / "unimm/systems")])
    monkeypatch.setattr(
        unimm.verification, "__path__", [*unimm.verification.__path__, str(tmp_path / "unimm/verification")]
    )
    unimm.systems.system_names.cache_clear()
    importlib.invalidate_caches()
    yield unimm.systems.get_system("example")
    for name in ("unimm.systems.example", "unimm.verification.example"):
        sys.modules.pop(name, None)
    unimm.systems.system_names.cache_clear()


@pytest.fixture
def case(tmp_path) -> Path:
    """LlamaGen's numbers, those that the page's replay gives."""
    source, target = ROOT / "tests/parity/llamagen/c2i", tmp_path / "tests/parity/example/generator"
    shutil.copytree(source, target)
    config = json.loads((source / "config.json").read_text())
    (target / "config.json").write_text(json.dumps({**config, "system": "example"}))
    given = re.findall(r'"((?:forward|loss|sample)\.\w+)"', FILES["unimm/verification/example.py"])
    tensors = load_file(source / "io.safetensors")
    kept = {name: tensor for name, tensor in tensors.items() if name.startswith("in.") or name[4:] in given}
    assert sum(name.startswith("out.") for name in kept) == 6
    save_file(kept, target / "io.safetensors")
    return target


def test_the_page_holds_the_two_files():
    assert list(FILES) == ["unimm/systems/example.py", "unimm/verification/example.py"]


def test_the_pages_system_reproduces_the_reference(example, case):
    result = CliRunner().invoke(app, ["verify", str(case.parents[0])])
    assert result.exit_code == 0, result.output
    assert "9 of 9 rows within tolerance" in result.output


def test_a_wrong_rule_of_the_page_would_fail(example, case):
    weights = load_file(case / "weights.safetensors")
    first, second = "layers.0.feed_forward.w1.weight", "layers.0.feed_forward.w3.weight"
    save_file({**weights, first: weights[second], second: weights[first]}, case / "weights.safetensors")
    result = CliRunner().invoke(app, ["verify", str(case)])
    assert result.exit_code == 1
    assert re.search(r"[4-8] of 9 rows within tolerance", result.output)


def test_the_pages_system_is_found_listed_and_counted(example):
    assert "example" in CliRunner().invoke(app, ["list"]).output
    preset = example.preset("b-256")
    with torch.device("meta"):
        model = AutoModel.from_config(preset.config())
    millions = sum(parameter.numel() for parameter in model.parameters()) / 1e6
    assert millions == pytest.approx(preset.parameters, rel=0.01)
    released = example.converter(preset.config()).to_released(model.state_dict())
    assert example.converter(preset.config()).to_ours(released).keys() == model.state_dict().keys()


def test_the_pages_replay_keeps_its_own_rules():
    tree = ast.parse(FILES["unimm/verification/example.py"])
    (function,) = (node for node in tree.body if isinstance(node, ast.FunctionDef))
    assert (function.end_lineno or 0) - function.lineno < 60
    names = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    assert not names & {"nn", "weight", "bias", "data", "state_dict", "parameters"}
