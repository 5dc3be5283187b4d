"""Writing so that a reader never sees half a file: beside the target first, then renamed over it."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from .errors import OutputError

_REASONS = {
    errno.EACCES: "permission denied",
    errno.EPERM: "operation not permitted",
    errno.EROFS: "the file system is read-only",
    errno.ENOSPC: "the disk is full",
    errno.EDQUOT: "the disk quota is used up",
    errno.ENOTDIR: "a part of the path is a file, not a folder",
    errno.EEXIST: "a file of that name is in the way",
    errno.EISDIR: "a folder of that name is in the way",
    errno.ENOTEMPTY: "the folder holds other files, which would be lost",
}


def output_error(path: str | os.PathLike, error: OSError) -> OutputError:
    """An `OutputError` that says which path could not be written and why."""
    reason = _REASONS.get(error.errno or 0, error.strerror or str(error))
    return OutputError(
        error.errno,
        f"cannot write '{path}': {reason}. Choose another output folder or make room; nothing was left half-written",
    )


def as_output_error(path: str | os.PathLike, error: BaseException) -> OutputError | None:
    """The `OutputError` behind a failed write, or None where the failure has another cause.

    safetensors and torch report a full disk as errors of their own, without an `errno`.
    """
    if isinstance(error, OutputError):
        return error
    if isinstance(error, OSError):
        return output_error(path, error)
    text = str(error)
    if isinstance(error, SafetensorError) and (found := re.search(r"\(os error (\d+)\)", text)):
        number = int(found[1])
        return output_error(path, OSError(number, os.strerror(number)))
    if isinstance(error, RuntimeError) and re.search(
        r"PytorchStreamWriter failed|inline_container|iostream error", text
    ):
        return output_error(path, OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)))
    return None


def check_output(path: str | os.PathLike) -> None:
    """Refuses a file that could not be written, before the work whose result it is for.

    Raises:
        OutputError: a folder is in the way, or the place is no folder that can be written.
    """
    path = Path(path)
    if path.is_dir():
        raise output_error(path, IsADirectoryError(errno.EISDIR, "Is a directory"))
    place = path.absolute().parent
    while not place.exists():
        place = place.parent
    if not place.is_dir():
        raise output_error(path, NotADirectoryError(errno.ENOTDIR, "Not a directory"))
    if not os.access(place, os.W_OK | os.X_OK):
        raise output_error(path, PermissionError(errno.EACCES, "Permission denied"))


@contextlib.contextmanager
def atomic_file(path: str | os.PathLike, mode: str = "w") -> Iterator[Any]:
    """Opens a temporary file beside `path`; renames it over `path` when the block ends, removes it when it fails.

    Raises:
        OutputError: the folder cannot be written or the disk is full.
    """
    path = Path(path)
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        os.close(handle)
        with open(temporary, mode) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(temporary, 0o666 & ~umask)
        os.replace(temporary, path)
    except BaseException as error:
        if temporary is not None:
            with contextlib.suppress(OSError):
                os.unlink(temporary)
        refused = as_output_error(path, error)
        if refused is None or refused is error:
            raise
        raise refused from error


@contextlib.contextmanager
def atomic_folder(path: str | os.PathLike, *, mark: str | None = None) -> Iterator[Path]:
    """Gives a temporary folder beside `path`; renames it to `path` when the block ends (replacing an older one).

    Args:
        path: the folder.
        mark: a file that an older folder must hold to be replaced, so that nobody's other files are lost.

    Raises:
        OutputError: the folder cannot be written, the disk is full, or the folder is not empty and without the mark.
    """
    path = Path(path)
    temporary = None
    try:
        if mark is not None and path.is_dir() and not (path / mark).is_file() and any(path.iterdir()):
            raise OSError(errno.ENOTEMPTY, "Directory not empty", str(path))
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists() and not path.is_dir():
            raise FileExistsError(errno.EEXIST, "File exists", str(path))
        temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o777 & ~umask)
        yield temporary
        if path.exists():
            retired = Path(tempfile.mkdtemp(prefix=f".{path.name}.old.", dir=path.parent))
            os.replace(path, retired / "folder")
            os.replace(temporary, path)
            shutil.rmtree(retired, ignore_errors=True)
        else:
            os.replace(temporary, path)
    except BaseException as error:
        if temporary is not None:
            shutil.rmtree(temporary, ignore_errors=True)
        refused = as_output_error(path, error)
        if refused is None or refused is error:
            raise
        raise refused from error


@contextlib.contextmanager
def staged_files(folder: str | os.PathLike) -> Iterator[Path]:
    """Gives a temporary folder; what the block writes there moves into `folder` when it ends, over older files.

    Other files of `folder` stay. When the block fails nothing has changed.

    Raises:
        OutputError: the folder cannot be written, or the disk is full.
    """
    folder = Path(folder)
    is_new, staging = not folder.exists(), None
    try:
        folder.mkdir(parents=True, exist_ok=True)
        staging = Path(tempfile.mkdtemp(prefix=".saving.", dir=folder))
        yield staging
        for path in sorted(staging.rglob("*")):
            target = folder / path.relative_to(staging)
            if path.is_dir():
                target.mkdir(exist_ok=True)
            else:
                os.replace(path, target)
    except BaseException as error:
        refused = as_output_error(folder, error)
        if staging is not None:
            shutil.rmtree(staging, ignore_errors=True)
        if is_new:
            with contextlib.suppress(OSError):
                folder.rmdir()
        if refused is None or refused is error:
            raise
        raise refused from error
    shutil.rmtree(staging, ignore_errors=True)


def write_json(path: str | os.PathLike, value: Any) -> None:
    """Writes `value` as indented JSON, atomically."""
    with atomic_file(path) as file:
        json.dump(value, file, indent=2)
        file.write("\n")
