"""Released checkpoints to our models and back: reversible renamings, presets, and the files around them."""

from .base import Converter, Preset, Rename, System, load_released

__all__ = ["Converter", "Preset", "Rename", "System", "load_released"]
