"""Checkpoints that a kill at any moment cannot tear: written beside, marked complete, renamed, and only then rotated."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import re
import shutil
from collections.abc import Callable, Collection, Iterator
from pathlib import Path

from ..files import as_output_error, output_error, write_json

logger = logging.getLogger(__name__)

MARK = "complete.json"
STAGING = ".partial"
RETIRED = ".retired"
_NAME = re.compile(r"checkpoint-(\d+)")


class CheckpointStore:
    """The checkpoints of one run folder.

    A checkpoint is written into `.partial/checkpoint-N`. When all its files are on the disk, `complete.json` lists
    them with their sizes, the folder is renamed to `checkpoint-N`, and older ones may go. Whatever a kill leaves of
    this is either complete or recognised as torn.

    Args:
        folder: the run folder.
        is_main: whether this process is the first of all.
        is_local_main: whether this process is the first on its machine (machines may not share the disk).
        wait: returns when all processes have called it.
    """

    def __init__(
        self,
        folder: str | os.PathLike,
        *,
        is_main: bool = True,
        is_local_main: bool = True,
        wait: Callable[[], None] = lambda: None,
    ):
        self.folder = Path(folder)
        self.is_main = is_main
        self.is_local_main = is_local_main
        self.wait = wait

    def complete(self) -> list[Path]:
        """Complete checkpoints, oldest step first."""
        return sorted((path for path in self._numbered(self.folder) if is_complete(path)), key=step_of)

    def newest(self) -> Path | None:
        """The complete checkpoint of the latest step."""
        found = self.complete()
        return found[-1] if found else None

    def clean(self) -> None:
        """Removes what an interrupted write or deletion left; a write that only lacked its renaming is finished.

        Raises:
            OutputError: the folder cannot be changed.
        """
        for takes_part in self._turns():
            if takes_part and self.folder.is_dir():
                self._clean()
            self.wait()

    @contextlib.contextmanager
    def write(self, step: int) -> Iterator[Path]:
        """Gives an empty folder; what is in it when the block ends becomes the checkpoint of `step`.

        Every process calls this and may write its own files.

        Raises:
            OutputError: the disk is full or the folder cannot be written; earlier checkpoints stay as they were.
        """
        staged = self.folder / STAGING / f"checkpoint-{step}"
        try:
            if self.is_main:
                shutil.rmtree(staged, ignore_errors=True)
            self.wait()
            staged.mkdir(parents=True, exist_ok=True)
            self.wait()
            yield staged
            for takes_part in self._turns():
                self.wait()
                if takes_part and staged.is_dir():
                    mark_complete(staged, step)
                    self._publish(staged)
            self.wait()
        except BaseException as error:
            shutil.rmtree(staged, ignore_errors=True)
            refused = as_output_error(self.folder / staged.name, error)
            if refused is not None:
                raise refused from error
            raise

    def rotate(self, limit: int | None, keep: Collection[str | os.PathLike | None] = ()) -> None:
        """Deletes the oldest complete checkpoints until `limit` are left; never the newest, nor one of `keep`.

        Args:
            limit: how many to keep; None or 0 keeps all.
            keep: checkpoints that stay, such as the best one.
        """
        if self.is_main and limit:
            found = self.complete()
            protected = {path.resolve() for path in [*found[-1:], *(Path(one) for one in keep if one is not None)]}
            surplus = len(found) - limit
            for path in [path for path in found if path.resolve() not in protected][: max(surplus, 0)]:
                logger.info("deleting %s: %d checkpoints are kept", path, limit)
                self._remove(path)
        self.wait()

    def _turns(self) -> tuple[bool, bool]:
        """The first process acts first; on a disk that is not shared, one process of every other machine after it."""
        return self.is_main, self.is_local_main and not self.is_main

    def _clean(self) -> None:
        try:
            for path in self._numbered(self.folder):
                if not is_complete(path):
                    logger.warning("%s is torn (it was never completed, or files are missing): removing it", path)
                    self._remove(path)
            for staged in self._numbered(self.folder / STAGING):
                if is_complete(staged) and not (self.folder / staged.name).exists():
                    logger.info("%s is complete but for its renaming: finishing it", staged)
                    self._publish(staged)
            for leftover in (STAGING, RETIRED):
                if (self.folder / leftover).exists():
                    shutil.rmtree(self.folder / leftover)
        except OSError as error:
            raise output_error(self.folder, error) from error

    def _publish(self, staged: Path) -> None:
        target = self.folder / staged.name
        if target.exists():
            self._remove(target)
        os.replace(staged, target)
        sync_folder(self.folder)
        with contextlib.suppress(OSError):
            staged.parent.rmdir()

    def _remove(self, path: Path) -> None:
        # Renamed first: a deletion that is interrupted never leaves a checkpoint with some of its files.
        retired = self.folder / RETIRED
        retired.mkdir(exist_ok=True)
        shutil.rmtree(retired / path.name, ignore_errors=True)
        os.replace(path, retired / path.name)
        shutil.rmtree(retired, ignore_errors=True)

    @staticmethod
    def _numbered(folder: Path) -> list[Path]:
        if not folder.is_dir():
            return []
        return [path for path in folder.iterdir() if _NAME.fullmatch(path.name) and path.is_dir()]


def step_of(checkpoint: str | os.PathLike) -> int:
    """The step that a checkpoint's name gives."""
    found = _NAME.fullmatch(Path(checkpoint).name)
    if found is None:
        raise ValueError(f"'{checkpoint}' is not named like a checkpoint (checkpoint-STEP)")
    return int(found[1])


def is_complete(checkpoint: str | os.PathLike) -> bool:
    """Whether a checkpoint has its mark and every file that the mark lists, with its size."""
    try:
        listed = json.loads((Path(checkpoint) / MARK).read_text())["files"]
        return all((Path(checkpoint) / name).stat().st_size == size for name, size in listed.items())
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False


def mark_complete(checkpoint: Path, step: int) -> None:
    """Brings all files of a checkpoint to the disk, then writes the mark that lists them."""
    files = {}
    for path in sorted(checkpoint.rglob("*")):
        if path.is_dir():
            sync_folder(path)
            continue
        with open(path, "rb") as file:
            os.fsync(file.fileno())
        files[path.relative_to(checkpoint).as_posix()] = path.stat().st_size
    write_json(checkpoint / MARK, {"step": step, "files": files})
    sync_folder(checkpoint)


def sync_folder(path: str | os.PathLike) -> None:
    """Brings a folder's entries to the disk, where the system can (it cannot on Windows)."""
    if not hasattr(os, "O_DIRECTORY"):
        return
    handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
