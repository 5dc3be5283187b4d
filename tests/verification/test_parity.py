import ast
import inspect
from pathlib import Path

import pytest
import torch

import unimm.verification
from unimm.errors import CheckpointError
from unimm.systems import get_system, system_names
from unimm.verification import Case, compare, find_cases, verify_case

REPLAYS = [Path(unimm.verification.__file__).parent / f"{name}.py" for name in system_names()]


def test_every_number_of_the_reference_is_reproduced(parity_case):
    ((system, path),) = find_cases([parity_case])
    rows = verify_case(system, path)
    assert len(rows) == 3 + len(Case.load(path).expected)
    assert [row for row in rows if not row.ok] == []


@pytest.mark.parametrize("replay", REPLAYS, ids=lambda path: path.stem)
def test_a_replay_calls_public_methods_only(replay):
    tree = ast.parse(replay.read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [alias.name for alias in node.names] + [getattr(node, "module", None) or ""]
            assert not any(name.startswith(("torch.nn", "torch.optim")) for name in names), names
        if isinstance(node, ast.Attribute):
            assert not node.attr.startswith("_"), node.attr
            assert node.attr not in ("nn", "weight", "bias", "data", "state_dict", "parameters"), node.attr


@pytest.mark.parametrize("replay", REPLAYS, ids=lambda path: path.stem)
def test_a_replayed_case_fits_on_sixty_lines(replay):
    functions = [node for node in ast.parse(replay.read_text()).body if isinstance(node, ast.FunctionDef)]
    assert functions
    for function in functions:
        assert function.end_lineno - function.lineno < 60, function.name


@pytest.mark.parametrize("name", system_names())
def test_every_system_has_a_replay_and_says_whose_it_is(name):
    system = get_system(name)
    assert system.name == name
    assert system.paper
    assert system.presets
    assert "replay" in (Path(inspect.getfile(unimm.verification)).parent / f"{name}.py").read_text()


def test_a_wrong_number_fails():
    expected = torch.tensor([1.0, 2.0])
    assert compare(expected + 1e-6, expected, 1e-4)[1]
    assert not compare(expected + 1e-3, expected, 1e-4)[1]
    assert not compare(torch.tensor([1.0]), expected, 1e-4)[1]
    assert not compare(torch.tensor([1, 3]), torch.tensor([1, 2]), 1.0)[1]
    assert not compare(torch.tensor([1.0, 2.0]), torch.tensor([1, 2]), 1.0)[1]
    special = torch.tensor([float("nan"), float("inf"), 1.0])
    assert compare(special, special, 1e-4)[1]
    assert not compare(torch.tensor([0.0, float("inf"), 1.0]), special, 1e-4)[1]
    assert not compare(torch.tensor([float("nan"), float("-inf"), 1.0]), special, 1e-4)[1]


def test_a_folder_without_cases_is_an_error(tmp_path):
    with pytest.raises(CheckpointError, match=r"no reference numbers"):
        find_cases([tmp_path])
    with pytest.raises(CheckpointError, match=r"does not exist"):
        find_cases([tmp_path / "missing"])
