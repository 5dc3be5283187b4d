"""Checks of what a user hands to the package's entrances: kinds, shapes and ranges, before anything is computed."""

from __future__ import annotations

import os
from numbers import Integral
from typing import Any

import torch

from .errors import CodebookError, ConfigError, LayoutError, UniMMError

_ID_DTYPES = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)


def described(value: Any) -> str:
    """What a value is, in a few words: dtype and shape of a tensor or array, the type's name otherwise."""
    if hasattr(value, "dtype") and hasattr(value, "shape"):
        kind = "" if isinstance(value, torch.Tensor) else f"{type(value).__name__} of "
        return f"{kind}{str(value.dtype).removeprefix('torch.')} of shape {tuple(value.shape)}"
    return f"{value!r}" if isinstance(value, str | int | float | bool | None) else f"a {type(value).__name__}"


def require_count(value: Any, name: str, least: int = 1, *, error: type[UniMMError] = ConfigError) -> int:
    """Refuses everything but a whole number of at least `least`.

    Raises:
        UniMMError: of the given class.
    """
    if isinstance(value, bool) or not isinstance(value, Integral) or value < least:
        raise error(f"{name} must be {least} or more, given {value!r}")
    return int(value)


def require_path(value: Any, name: str, *, error: type[UniMMError]) -> str:
    """Refuses everything but a path.

    Raises:
        UniMMError: of the given class.
    """
    if not isinstance(value, str | os.PathLike):
        raise error(f"{name} must be a path, given {value!r}")
    return os.fspath(value)


def require_tensor(
    value: Any,
    name: str,
    shape: str,
    num_dimensions: int | tuple[int, ...] | None = None,
    *,
    error: type[UniMMError] = LayoutError,
) -> torch.Tensor:
    """Refuses everything but a tensor.

    Args:
        value: what the user gave.
        name: what the message calls it.
        shape: the shape that is wanted, in words.
        num_dimensions: that it may have; None for any.
        error: the class to raise.

    Raises:
        UniMMError: of the given class.
    """
    wanted = (num_dimensions,) if isinstance(num_dimensions, int) else num_dimensions
    if not isinstance(value, torch.Tensor) or (wanted is not None and value.dim() not in wanted):
        raise error(f"{name} must be a tensor of shape {shape}, given {described(value)}")
    return value


def require_ids(
    value: Any,
    name: str,
    shape: str,
    num_dimensions: int | tuple[int, ...] | None = None,
    *,
    error: type[UniMMError] = LayoutError,
) -> torch.Tensor:
    """Integers as int64; the arguments are those of `require_tensor`.

    Raises:
        UniMMError: no tensor, another number of dimensions, or no integers.
    """
    tensor = require_tensor(value, name, f"{shape} of integers", num_dimensions, error=error)
    if tensor.dtype not in _ID_DTYPES:
        raise error(f"{name} must be integers of shape {shape}, given {described(value)}")
    return tensor.long()


def check_range(ids: torch.Tensor, size: int, name: str, hint: str) -> None:
    """Refuses ids outside of `[0, size)`. Waits for the device once: for the border of the package, not for its loops.

    Raises:
        CodebookError: with the range that was found.
    """
    if ids.numel() == 0:
        return
    low, high = torch.stack(torch.aminmax(ids)).tolist()
    if low < 0 or high >= size:
        raise CodebookError(f"{name} must lie in [0, {size - 1}], found values from {low} to {high}: {hint}")
