"""Released checkpoints to our models and back: reversible renamings, presets, and the files around them."""

from .base import Converter, Join, Preset, Rename, System, load_released

__all__ = ["Converter", "Join", "Preset", "Rename", "System", "load_released"]
