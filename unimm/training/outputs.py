"""The folder of one run: which recipe it belongs to, whether it is finished, who is writing, and its metrics."""

from __future__ import annotations

import contextlib
import json
import math
import os
import shutil
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from ..errors import OutputError, RecipeError
from ..files import atomic_file, output_error, write_json
from .checkpoints import CheckpointStore

RECIPE = "recipe.yaml"
METRICS = "metrics.jsonl"
FINISHED = "finished.json"
FINAL = "final"
SAMPLES = "samples"
TENSORBOARD = "tensorboard"
_LOCK = ".lock"
_TIMING = ("seconds", "_runtime", "_per_second")


class RunFolder:
    """Where a run writes `recipe.yaml`, `metrics.jsonl`, `tensorboard/`, `samples/`, checkpoints and `final/`.

    Args:
        path: the folder; created when the run starts.
    """

    def __init__(self, path: str | os.PathLike):
        self.path = Path(path)
        self.recipe = self.path / RECIPE
        self.metrics = self.path / METRICS
        self.final = self.path / FINAL
        self.samples = self.path / SAMPLES
        self.tensorboard = self.path / TENSORBOARD

    @contextlib.contextmanager
    def lock(self, patience: float = 15.0) -> Iterator[None]:
        """Keeps a second process from writing into the same folder; a killed process leaves no lock behind.

        Args:
            patience: seconds to wait for the other process.

        Raises:
            OutputError: another process is writing here, or the folder cannot be written.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            handle = os.open(self.path / _LOCK, os.O_RDWR | os.O_CREAT, 0o666)
        except OSError as error:
            raise output_error(self.path, error) from error
        try:
            # Data workers of a killed run hold its lock until they notice, which takes them some seconds.
            deadline = time.monotonic() + patience
            while not _try_lock(handle):
                if time.monotonic() < deadline:
                    time.sleep(0.1)
                    continue
                raise OutputError(
                    f"another process is training into '{self.path}': wait for it, stop it, or choose another output_dir"
                )
            yield
        finally:
            os.close(handle)

    def start(self, recipe: Mapping[str, Any], *, free: frozenset[str] = frozenset(), header: str = "") -> None:
        """Writes the resolved recipe, or checks that it is the one that this folder was started with.

        Args:
            recipe: plain values, as YAML can hold them.
            free: dotted names of fields that may differ between starts, because they change no result.
            header: comment lines for the file's top.

        Raises:
            RecipeError: the folder belongs to another recipe; the message names the first field that differs.
            OutputError: the folder cannot be written.
        """
        if self.recipe.exists():
            earlier = yaml.safe_load(self.recipe.read_text()) or {}
            for name, before, now in differences(earlier, recipe):
                if name not in free:
                    raise RecipeError(
                        f"'{self.path}' holds a run of another recipe: {name} was {before!r} there and is {now!r} now. "
                        "Choose another output_dir, put the field back, or start over with --overwrite"
                    )
        elif self.metrics.exists() or CheckpointStore(self.path).complete():
            raise RecipeError(
                f"'{self.path}' holds metrics or checkpoints but no {RECIPE}: choose another output_dir, or start over "
                "with --overwrite"
            )
        with atomic_file(self.recipe) as file:
            file.write("".join(f"# {line}\n" for line in header.splitlines()))
            yaml.safe_dump(dict(recipe), file, sort_keys=False, allow_unicode=True, width=100)

    def clear(self) -> None:
        """Removes what an earlier run wrote here, and nothing else.

        Raises:
            OutputError: something cannot be removed.
        """
        if not self.path.is_dir():
            return
        try:
            # The mark goes first: a clearing that is interrupted must not leave a folder that looks finished.
            for path in [self.path / FINISHED, self.recipe, self.metrics]:
                path.unlink(missing_ok=True)
            for path in [self.final, self.samples, self.tensorboard, *self.path.glob("checkpoint-*")]:
                if path.exists():
                    shutil.rmtree(path)
        except OSError as error:
            raise output_error(self.path, error) from error

    @property
    def finished(self) -> dict[str, Any] | None:
        """What the run reported when it finished, None while it has not."""
        try:
            return json.loads((self.path / FINISHED).read_text())
        except FileNotFoundError:
            return None

    def finish(self, record: Mapping[str, Any]) -> None:
        """Marks the run as finished; written last."""
        write_json(self.path / FINISHED, dict(record))


class MetricsLog:
    """`metrics.jsonl`: one JSON object per line, flushed as it is written.

    Args:
        path: the file.
    """

    def __init__(self, path: str | os.PathLike):
        self.path = Path(path)

    @property
    def num_lines(self) -> int:
        """Complete lines in the file."""
        return len(self._lines())

    def append(self, values: Mapping[str, Any]) -> None:
        """Adds a line.

        Raises:
            OutputError: the disk is full or the file cannot be written.
        """
        line = json.dumps(dict(values), allow_nan=False) + "\n"
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with open(self.path, "a") as file:
                file.write(line)
        except OSError as error:
            raise output_error(self.path, error) from error

    def keep(self, num_lines: int) -> None:
        """Drops all lines after the first `num_lines`, in one step.

        Raises:
            OutputError: the file has fewer lines: it is not the file that the checkpoint was written with.
        """
        lines = self._lines()
        if len(lines) < num_lines:
            raise OutputError(
                f"'{self.path}' has {len(lines)} lines, the checkpoint was written after line {num_lines}: put the file "
                "back, or start over with --overwrite"
            )
        if self.path.exists():
            with atomic_file(self.path) as file:
                file.writelines(lines[:num_lines])

    def sync(self) -> None:
        """Brings the lines to the disk."""
        if self.path.exists():
            with open(self.path, "rb") as file:
                os.fsync(file.fileno())

    def read(self) -> list[dict[str, Any]]:
        """All lines."""
        return [json.loads(line) for line in self._lines()]

    def _lines(self) -> list[str]:
        try:
            text = self.path.read_text()
        except FileNotFoundError:
            return []
        # A kill may leave the beginning of a line.
        return [line for line in text.splitlines(keepends=True) if line.endswith("\n")]


def without_timing(values: Mapping[str, Any]) -> dict[str, Any]:
    """A line of metrics without the fields that depend on the machine's speed."""
    return {key: value for key, value in values.items() if not key.endswith(_TIMING)}


def check_finite(values: Mapping[str, Any], step: int) -> None:
    """Refuses a loss that is not a number.

    Raises:
        FloatingPointError: a value is infinite or not a number.
    """
    for name, value in values.items():
        if isinstance(value, float) and not math.isfinite(value):
            raise FloatingPointError(
                f"{name} is {value} at step {step}: lower learning_rate, lengthen warmup_steps, or clip harder "
                "(max_grad_norm)"
            )


def differences(before: Any, now: Any, name: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Dotted names at which two nested values differ, with both values; a missing one is None."""
    if isinstance(before, Mapping) and isinstance(now, Mapping):
        for key in [*before, *(key for key in now if key not in before)]:
            yield from differences(before.get(key), now.get(key), f"{name}.{key}" if name else str(key))
    elif before != now:
        yield name, before, now


def _try_lock(handle: int) -> bool:
    try:
        import fcntl
    except ImportError:  # Windows has no advisory locks of this kind.
        return True
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
