"""Published systems: presets, checkpoint converters, and the few lines that no other system shares."""

from __future__ import annotations

import importlib
import pkgutil
from functools import cache

from ..conversion.base import Converter, Preset, Rename, System, load_released
from ..errors import ConfigError, nearest

__all__ = ["Converter", "Preset", "Rename", "System", "get_system", "load_released", "system_names"]


@cache
def system_names() -> tuple[str, ...]:
    """Names of all systems: one per module of this package."""
    return tuple(sorted(module.name for module in pkgutil.iter_modules(__path__)))


def get_system(name: str) -> System:
    """The system of that name.

    Raises:
        ConfigError: with the nearest known name.
    """
    if name not in system_names():
        raise ConfigError(f"there is no system '{name}'{nearest(name, system_names())}")
    return importlib.import_module(f"{__name__}.{name}").SYSTEM
