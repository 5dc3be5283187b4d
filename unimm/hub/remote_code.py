"""Loading with `trust_remote_code=True`: a saved folder names its classes in `auto_map`, and a stub imports them from unimm.

transformers copies a remote module alone, without the package around it: the stub therefore holds no code of its own,
and on a machine without unimm transformers answers with `pip install unimm`.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from transformers.models.auto import modeling_auto

from ..files import atomic_file

STUB = "modeling_unimm"
STUB_FILE = f"{STUB}.py"
STUB_CODE = '''"""For `from_pretrained(…, trust_remote_code=True)`. The classes are those of the package: pip install unimm"""

import unimm


def __getattr__(name):
    if not hasattr(unimm, name):
        raise AttributeError(f"unimm {unimm.__version__} has no '{name}': pip install --upgrade unimm")
    return getattr(unimm, name)
'''


def write_stub(folder: str | os.PathLike) -> None:
    """Writes the module that `auto_map` refers to.

    Raises:
        OutputError: the folder cannot be written.
    """
    with atomic_file(Path(folder) / STUB_FILE) as file:
        file.write(STUB_CODE)


def is_own_class(cls: type) -> bool:
    """Whether a class comes with this package, so that the stub can import it."""
    return cls.__module__.partition(".")[0] == "unimm"


def auto_map_of(config: Any) -> dict[str, str]:
    """The entries of `auto_map` for a config: its own class, and the model class behind every Auto class that knows it.

    Entries that somebody else put there stay. A config class from elsewhere gets none of ours.
    """
    kept = {
        name: reference
        for name, reference in (getattr(config, "auto_map", None) or {}).items()
        if not str(reference).split("--")[-1].startswith(f"{STUB}.")
    }
    if not is_own_class(type(config)):
        return kept
    entries = {"AutoConfig": f"{STUB}.{type(config).__name__}"}
    for name, auto in vars(modeling_auto).items():
        mapping = getattr(auto, "_model_mapping", None) if name.startswith("Auto") else None
        if mapping is not None and type(config) in mapping and is_own_class(mapping[type(config)]):
            entries[name] = f"{STUB}.{mapping[type(config)].__name__}"
    return entries | kept


class RemoteCodeMixin:
    """Keeps transformers from copying this class's source file when it was loaded through the stub."""

    @classmethod
    def register_for_auto_class(cls, auto_class: Any = None) -> None:
        """Does nothing for classes of this package, whose saved folders have the stub; others are copied as usual."""
        if not is_own_class(cls):
            chosen = () if auto_class is None else (auto_class,)
            super().register_for_auto_class(*chosen)  # type: ignore[misc]
