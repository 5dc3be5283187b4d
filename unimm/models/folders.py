"""Models and processors from a folder or the Hub, with an error that says what is wrong with the folder."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from transformers import AutoModel, AutoProcessor, PreTrainedModel

from ..errors import CheckpointError, ConfigError, UniMMError
from ..hub.errors import hub_errors

_CONFIGS = ("config.json", "adapter_config.json")


def load_model(path: str | os.PathLike, **options: Any) -> PreTrainedModel:
    """A model in evaluation mode.

    Args:
        path: folder, or Hub id of the form owner/name.
        options: of `from_pretrained` (dtype, device_map, quantization_config, …).

    Raises:
        ConfigError: neither a folder nor a Hub id, or a folder that is no model.
        CheckpointError: a folder whose config or weights cannot be read.
    """
    name = os.fspath(path)
    if not Path(name).exists() and ("/" not in name or name.startswith((".", "/"))):
        raise ConfigError(f"'{name}' is neither a folder here nor a Hub id of the form owner/name")
    if Path(name).is_file():
        raise ConfigError(f"'{name}' is a file; a model is a folder with a config.json, or convert the file first")
    if Path(name).is_dir() and not any((Path(name) / config).is_file() for config in _CONFIGS):
        raise ConfigError(f"the folder '{name}' is no model: it has no config.json")
    with _told(f"the model at '{name}'"), hub_errors(name):
        return AutoModel.from_pretrained(name, **options).eval()


def load_processor(path: str | os.PathLike) -> Any:
    """The processor that was saved with a model.

    Raises:
        CheckpointError: there is none, or it cannot be read.
    """
    with _told(f"a processor at '{os.fspath(path)}' (saved there by processor.save_pretrained)"):
        return AutoProcessor.from_pretrained(path)


@contextlib.contextmanager
def _told(what: str) -> Iterator[None]:
    try:
        yield
    except (UniMMError, ImportError):
        raise
    # What damaged files raise is up to their readers: safetensors, json, torch and transformers have nothing in common.
    except Exception as error:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise CheckpointError(f"{what} cannot be loaded: {lines[0]}") from error
