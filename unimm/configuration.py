"""The base of every config in the package: typed fields, nested typed parts, and no silent unknown keys."""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Callable
from dataclasses import fields
from typing import Any

from huggingface_hub.dataclasses import strict
from huggingface_hub.errors import StrictDataclassError
from transformers import AutoConfig, GenerationConfig, PreTrainedConfig
from transformers.configuration_utils import SubConfigSpec
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from .errors import ConfigError, nearest
from .hub.remote_code import RemoteCodeMixin, auto_map_of, write_stub

# What transformers itself adds to, or reads from, a config beside its dataclass fields.
_HUGGING_FACE_KEYS = frozenset(
    {
        "name_or_path",
        "_name_or_path",
        "_commit_hash",
        "_attn_implementation_internal",
        "_experts_implementation_internal",
        "attn_implementation",
        "experts_implementation",
        "output_attentions",
        "torch_dtype",
        "num_labels",
        "model_type",
        "auto_map",
        "quantization_config",
        "transformers_version",
        "architectures",
        "unimm_version",
        # The Trainer sets it on the config of the model that it trains.
        "use_cache",
    }
)


def check_part(owner: PreTrainedConfig, name: str, what: str, fits: Callable[[Any], bool]) -> None:
    """Refuses a nested config of another kind, such as a plan in the place of a head.

    Args:
        owner: the config that it is a part of.
        name: the field.
        what: what belongs there, in words.
        fits: whether a config belongs there.

    Raises:
        ConfigError: it does not.
    """
    part = getattr(owner, name)
    if part is not None and not fits(part):
        raise ConfigError(f"{type(owner).__name__}.{name} must be {what}, given {getattr(part, 'model_type', part)!r}")


def check_size(owner: PreTrainedConfig, name: str = "image_size") -> None:
    """Refuses what is neither a side nor `(height, width)` in positive whole pixels.

    Raises:
        ConfigError: with the value.
    """
    value = getattr(owner, name)
    sides = [value] if isinstance(value, int) else list(value)
    if len(sides) != (1 if isinstance(value, int) else 2) or not all(isinstance(one, int) and one > 0 for one in sides):
        raise ConfigError(f"{type(owner).__name__}.{name} must be a side or (height, width) above 0, given {value!r}")


def any_config(model_type: str, *, optional: bool = False) -> SubConfigSpec:
    """A nested config of any registered type, `model_type` when none is given."""
    return SubConfigSpec(AutoConfig, model_type=model_type, optional=optional)


class UniMMConfig(RemoteCodeMixin, PreTrainedConfig):
    """Base config: every field is typed and checked, lists become tuples, an unknown field is an error.

    Subclasses annotate their fields as in a dataclass and name nested parts in `sub_configs_defaults`.

    Raises:
        ConfigError: an unknown field (with the nearest known one), a value of the wrong type, or parts that do not fit.
    """

    def __init_subclass__(cls, *args: Any, **kwargs: Any) -> None:
        super().__init_subclass__(*args, **kwargs)
        namespace = vars(sys.modules[cls.__module__])
        for field in fields(cls):
            # Postponed annotations are strings, which the type check would wave through.
            if isinstance(field.type, str):
                field.type = eval(field.type, namespace)
        strict(cls)
        checked_init = cls.__init__

        @functools.wraps(checked_init)
        def __init__(self: UniMMConfig, *args: Any, **kwargs: Any) -> None:
            try:
                checked_init(self, *args, **kwargs)
            except StrictDataclassError as error:
                cause = error.__cause__ or error
                if isinstance(cause, ConfigError):
                    raise cause from None
                raise ConfigError(f"{type(self).__name__}: {cause}") from error

        cls.__init__ = __init__  # type: ignore[assignment, method-assign]

    def __post_init__(self, **kwargs: Any) -> None:
        known = {field.name for field in fields(self)}
        generation_keys = set(GenerationConfig._get_default_generation_params())
        for name in kwargs:
            if name in _HUGGING_FACE_KEYS:
                continue
            if name in generation_keys:
                raise ConfigError(
                    f"{type(self).__name__}: '{name}' steers generation and belongs in generation_config.json, "
                    "not in the model's config"
                )
            raise ConfigError(f"{type(self).__name__} has no field '{name}'{nearest(name, known)}")
        for key, spec in type(self).sub_configs_defaults.items():
            value = getattr(self, key)
            if isinstance(value, dict):
                value = dict(value)
                # Only the outermost config of a folder says where its classes are.
                value.pop("auto_map", None)
                model_type = value.setdefault("model_type", spec.model_type)
                if not isinstance(model_type, str) or model_type not in CONFIG_MAPPING:
                    raise ConfigError(
                        f"{type(self).__name__}.{key}: no config of type '{model_type}' is registered"
                        f"{nearest(str(model_type), [name for name in CONFIG_MAPPING if name.startswith('unimm')])}"
                    )
                setattr(self, key, value)
        super().__post_init__(**kwargs)
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, list) and "tuple" in str(field.type):
                setattr(self, field.name, _as_tuple(value))

    def save_pretrained(self, save_directory: str | os.PathLike, push_to_hub: bool = False, **kwargs: Any) -> None:
        """As transformers', with the stub that lets `trust_remote_code=True` load the folder."""
        self.auto_map = auto_map_of(self)
        write_stub(os.fspath(save_directory))
        super().save_pretrained(save_directory, push_to_hub=push_to_hub, **kwargs)


def _as_tuple(value: Any) -> Any:
    return tuple(_as_tuple(item) for item in value) if isinstance(value, list | tuple) else value
