"""Models and processors from a folder or the Hub, with an error that says what is wrong with the folder."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from transformers import AutoConfig, AutoModel, AutoProcessor, PreTrainedConfig, PreTrainedModel

from ..errors import CheckpointError, ConfigError, UniMMError
from ..hub.errors import hub_errors

_CONFIGS = ("config.json", "adapter_config.json")


def load_model(path: str | os.PathLike, *, partial: bool = False, **options: Any) -> PreTrainedModel:
    """A model in evaluation mode.

    Args:
        path: folder, or Hub id of the form owner/name.
        partial: let missing keys be initialised and extra ones left out, as a warm start under a changed config needs it.
        options: of `from_pretrained` (dtype, device_map, quantization_config, …).

    Raises:
        ConfigError: neither a folder nor a Hub id, or a folder that is no model.
        CheckpointError: a folder whose config or weights cannot be read, or weights with missing or extra keys.
    """
    name = _checked_place(path)
    with _told(f"the model at '{name}'"), hub_errors(name):
        model, info = AutoModel.from_pretrained(name, output_loading_info=True, ignore_mismatched_sizes=True, **options)
    if partial:
        info = info | {"missing_keys": (), "unexpected_keys": ()}
    problems = [f"missing {_listed(info['missing_keys'])}"] if info["missing_keys"] else []
    problems += [f"left over {_listed(info['unexpected_keys'])}"] if info["unexpected_keys"] else []
    problems += [
        f"{key} is {tuple(given)}, expected {tuple(wanted)}"
        for key, given, wanted in sorted(info["mismatched_keys"])[:4]
    ]
    if problems:
        raise CheckpointError(f"the weights at '{name}' do not fit its config.json: {'; '.join(problems)}")
    return model.eval()


def load_config(path: str | os.PathLike) -> PreTrainedConfig:
    """A model's config, without its weights.

    Args:
        path: folder, or Hub id of the form owner/name.

    Raises:
        ConfigError: neither a folder nor a Hub id, or a folder that is no model.
        CheckpointError: a config that cannot be read.
    """
    name = _checked_place(path)
    with _told(f"the config at '{name}'"), hub_errors(name):
        return AutoConfig.from_pretrained(name)


def load_processor(path: str | os.PathLike) -> Any:
    """The processor that was saved with a model.

    Raises:
        CheckpointError: there is none, or it cannot be read.
    """
    with _told(f"a processor at '{os.fspath(path)}' (saved there by processor.save_pretrained)"):
        return AutoProcessor.from_pretrained(path)


def _checked_place(path: Any) -> str:
    if not isinstance(path, str | os.PathLike):
        raise ConfigError(f"a model is given as a folder or a Hub id, given {path!r}")
    name = os.fspath(path)
    if not Path(name).exists() and ("/" not in name or name.startswith((".", "/"))):
        raise ConfigError(f"'{name}' is neither a folder here nor a Hub id of the form owner/name")
    if Path(name).is_file():
        raise ConfigError(f"'{name}' is a file; a model is a folder with a config.json, or convert the file first")
    if Path(name).is_dir() and not any((Path(name) / config).is_file() for config in _CONFIGS):
        raise ConfigError(f"the folder '{name}' is no model: it has no config.json")
    return name


def _listed(keys: Iterable[str]) -> str:
    names = sorted(keys)
    return ", ".join(names[:4]) + (f", … ({len(names)} in all)" if len(names) > 4 else "")


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
