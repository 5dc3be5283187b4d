"""The harness behind `unimm verify`: a released-layout checkpoint in, one row per reference number out."""

from __future__ import annotations

import contextlib
import fnmatch
import importlib
import json
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from transformers import AutoModel, PreTrainedModel

from ..errors import CheckpointError
from ..systems import System, get_system, load_released

ABSOLUTE_SLACK = 1e-6
# What the config.json of every case says.
_FIELDS = ("system", "constructor", "tolerance")


@dataclass(frozen=True)
class Row:
    """One compared tensor.

    Args:
        system: name of the system.
        case: name of the case.
        tensor: what was compared.
        error: largest absolute difference over the largest expected magnitude (for integers: share of wrong entries).
        tolerance: what is allowed.
        ok: within the tolerance.
        note: why not, where there is more to say.
    """

    system: str
    case: str
    tensor: str
    error: float
    tolerance: float
    ok: bool
    note: str = ""


@dataclass(frozen=True)
class Case:
    """One folder of reference numbers.

    Args:
        path: the folder.
        config: its `config.json`.
        inputs: the `in.*` tensors, without the prefix.
        expected: the `out.*` tensors, without the prefix.
        weights: the released state dict.
    """

    path: Path
    config: Mapping[str, Any]
    inputs: Mapping[str, torch.Tensor]
    expected: Mapping[str, torch.Tensor]
    weights: Mapping[str, torch.Tensor]

    @classmethod
    def load(cls, path: Path) -> Case:
        """Reads a folder.

        Raises:
            CheckpointError: a file is missing or is no JSON or safetensors.
        """
        for name in ("config.json", "io.safetensors", "weights.safetensors"):
            if not (path / name).is_file():
                raise CheckpointError(f"'{path}' is no case of reference numbers: it has no {name}")
        try:
            config = cls.load_config(path)
            tensors = load_file(path / "io.safetensors")
            weights = load_file(path / "weights.safetensors")
        except CheckpointError:
            raise
        except Exception as error:
            raise CheckpointError(f"'{path}' cannot be read: {error}") from error
        return cls(path, config, _with_prefix(tensors, "in."), _with_prefix(tensors, "out."), weights)

    @staticmethod
    def load_config(path: Path) -> dict[str, Any]:
        """The `config.json` of a folder.

        Raises:
            CheckpointError: no JSON, or without the fields that every case has.
        """
        try:
            config = json.loads((path / "config.json").read_text())
        except (OSError, ValueError) as error:
            raise CheckpointError(f"'{path / 'config.json'}' cannot be read: {error}") from error
        missing = [name for name in _FIELDS if not isinstance(config, dict) or name not in config]
        if missing:
            raise CheckpointError(
                f"'{path}' is no case of reference numbers: its config.json lacks {', '.join(missing)}"
            )
        return config

    @property
    def name(self) -> str:
        return self.path.name

    @property
    def settings(self) -> Mapping[str, Any]:
        """The reference's constructor arguments."""
        return self.config["constructor"]

    def tolerance(self, tensor: str) -> float:
        """The tolerance of an `out.*` tensor, given without the prefix."""
        for pattern, value in self.config.get("tolerances", {}).items():
            if fnmatch.fnmatch(f"out.{tensor}", pattern) or fnmatch.fnmatch(tensor, pattern):
                return float(value)
        return float(self.config["tolerance"])


def _with_prefix(tensors: Mapping[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


class Probe:
    """What a replay may look at beside the results of public methods: outputs of submodules, and gradients.

    Args:
        model: the loaded model.
        to_released: turns our state dict into the released one, names and shapes.
    """

    def __init__(self, model: PreTrainedModel, to_released: Callable[[Mapping[str, torch.Tensor]], Mapping[str, Any]]):
        self.model = model
        self._to_released = to_released

    @contextlib.contextmanager
    def watch(self, **modules: str) -> Iterator[dict[str, torch.Tensor]]:
        """Records the first output of submodules while the block runs: `watch(block0="backbone.layers.0")`."""
        seen: dict[str, torch.Tensor] = {}

        def record(name: str) -> Callable[..., None]:
            def hook(module: Any, inputs: Any, output: Any) -> None:
                seen.setdefault(name, (output[0] if isinstance(output, tuple) else output).detach())

            return hook

        handles = [self.model.get_submodule(path).register_forward_hook(record(name)) for name, path in modules.items()]
        try:
            yield seen
        finally:
            for handle in handles:
                handle.remove()

    @contextlib.contextmanager
    def watch_calls(self, module: str) -> Iterator[list[torch.Tensor]]:
        """Records the outputs of all calls of a submodule while the block runs, in order."""
        outputs: list[torch.Tensor] = []
        handle = self.model.get_submodule(module).register_forward_hook(
            lambda module, inputs, output: outputs.append(getattr(output, "last_hidden_state", output).detach())
        )
        try:
            yield outputs
        finally:
            handle.remove()

    def gradients(self, loss: torch.Tensor) -> dict[str, torch.Tensor]:
        """Gradients of a loss by released name; parameters that the loss does not reach are left out."""
        named = {name: parameter for name, parameter in self.model.named_parameters() if parameter.requires_grad}
        gradients = torch.autograd.grad(loss, list(named.values()), retain_graph=True, allow_unused=True)
        return dict(
            self._to_released(
                {name: gradient for name, gradient in zip(named, gradients, strict=True) if gradient is not None}
            )
        )


Replay = Callable[[PreTrainedModel, Case, Probe], Mapping[str, torch.Tensor]]


def find_cases(paths: Sequence[str | Path]) -> list[tuple[System, Path]]:
    """All cases in and below the given folders, with their systems.

    Raises:
        CheckpointError: a path that does not exist, or a folder without any case.
    """
    found: list[tuple[System, Path]] = []
    if not isinstance(paths, Sequence) or isinstance(paths, str) or not paths:
        raise CheckpointError(f"cases are given as a list of at least one folder, given {paths!r}")
    for path in map(Path, paths):
        if not path.exists():
            raise CheckpointError(f"'{path}' does not exist")
        configs = sorted(path.rglob("config.json"))
        cases = [config.parent for config in configs if (config.parent / "io.safetensors").is_file()]
        if not cases:
            raise CheckpointError(
                f"no reference numbers in '{path}': a case is a folder with config.json, io.safetensors and "
                "weights.safetensors"
            )
        for case in cases:
            found.append((get_system(Case.load_config(case)["system"]), case))
    return found


def verify_case(system: System, path: Path) -> list[Row]:
    """Loads a case's weights, saves and reloads the model, replays it and compares every expected tensor.

    Rows named `weights`, `reload` and `export` say whether every key found its place, whether saving and loading changed
    nothing, and whether the released state dict comes back bit for bit.
    """
    case = Case.load(path)
    replay: Replay = importlib.import_module(f"unimm.verification.{system.name}").replay

    def row(tensor: str, ok: bool, note: str = "", error: float | None = None, tolerance: float = 0.0) -> Row:
        measured = (0.0 if ok else float("inf")) if error is None else error
        return Row(system.name, case.name, tensor, measured, tolerance, ok, note)

    config = system.config_from_reference(case.settings)
    try:
        loaded = load_released(system, config, case.weights)
    except CheckpointError as misfit:
        return [row("weights", False, str(misfit))]
    rows = [row("weights", True)]
    converter = system.converter(config)
    with tempfile.TemporaryDirectory() as folder:
        loaded.save_pretrained(folder)
        model = AutoModel.from_pretrained(folder).eval()
    before, after = loaded.state_dict(), model.state_dict()
    changed = [name for name in before.keys() | after.keys() if not _same(before.get(name), after.get(name))]
    rows.append(row("reload", not changed, ", ".join(sorted(changed))))
    exported = converter.to_released(after)
    kept = {name: tensor for name, tensor in case.weights.items() if not converter.is_ignored(name)}
    differing = [name for name in exported.keys() | kept.keys() if not _same(exported.get(name), kept.get(name))]
    rows.append(row("export", not differing, ", ".join(sorted(differing))))

    results = replay(model, case, Probe(model, converter.to_released))
    for name in sorted(case.expected.keys() | results.keys()):
        if name not in results:
            rows.append(row(name, False, "the replay does not give it"))
        elif name not in case.expected:
            rows.append(row(name, False, "the reference has no such number"))
        else:
            error, ok, note = compare(results[name], case.expected[name], case.tolerance(name))
            rows.append(row(name, ok, note, error, case.tolerance(name)))
    return rows


def compare(result: torch.Tensor, expected: torch.Tensor, tolerance: float) -> tuple[float, bool, str]:
    """Error, whether it is within the tolerance, and a note.

    Integers must be equal. Floats: `max |a - b| <= tolerance * max |expected| + 1e-6`, NaN and infinities in the same
    places.
    """
    result = result.detach()
    if tuple(result.shape) != tuple(expected.shape):
        return float("inf"), False, f"shape {tuple(result.shape)}, expected {tuple(expected.shape)}"
    if not expected.is_floating_point():
        wrong = (result.to(expected.dtype) != expected).double().mean().item() if expected.numel() else 0.0
        return wrong, wrong == 0.0 and not result.is_floating_point(), ""
    result, expected = result.double(), expected.double()
    special = ~expected.isfinite()
    if not torch.equal(special, ~result.isfinite()) or not torch.equal(
        result[special].nan_to_num(nan=7.0), expected[special].nan_to_num(nan=7.0)
    ):
        return float("inf"), False, "NaN or infinities in other places"
    result, expected = result[~special], expected[~special]
    if expected.numel() == 0:
        return 0.0, True, ""
    difference, scale = (result - expected).abs().max().item(), expected.abs().max().item()
    return difference / max(scale, 1e-30), difference <= tolerance * scale + ABSOLUTE_SLACK, ""


def _same(first: torch.Tensor | None, second: torch.Tensor | None) -> bool:
    return first is not None and second is not None and first.dtype == second.dtype and torch.equal(first, second)
