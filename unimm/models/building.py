"""From a description (a path, a system's preset, or a config) to a config or a model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from transformers import AutoConfig, AutoModel, PreTrainedConfig, PreTrainedModel

from ..errors import ConfigError, nearest
from ..tokenizers.base import VisualTokenizer
from .folders import load_config, load_model

_SECTION_KEYS = ("path", "system", "preset", "overrides", "config")


def build_config(section: Mapping[str, Any]) -> PreTrainedConfig:
    """The config that a recipe's model section describes.

    Args:
        section: `{path}`, `{system, preset, overrides}` or `{config}`; overrides are nested by part
            (`{"backbone_config": {"hidden_size": 64}}`).

    Raises:
        CheckpointError: a path whose config cannot be read.
        ConfigError: an unknown key, none or several of path, system and config, or fields that do not exist.
    """
    if not isinstance(section, Mapping):
        raise ConfigError(f"the model section must be a mapping, given {section!r}")
    for key in section:
        if key not in _SECTION_KEYS:
            raise ConfigError(f"the model section has no key '{key}'{nearest(key, _SECTION_KEYS)}")
    if sum(key in section for key in ("path", "system", "config")) != 1:
        raise ConfigError(f"the model section needs exactly one of path, system and config, given {sorted(section)}")
    if "path" in section:
        config = load_config(section["path"])
    elif "system" in section:
        from ..systems import get_system

        config = get_system(section["system"]).preset(section.get("preset", "")).config()
    else:
        if not isinstance(section["config"], Mapping):
            raise ConfigError(f"the model section's config must be a mapping of fields, given {section['config']!r}")
        fields = dict(section["config"])
        model_type = fields.pop("model_type", None)
        if model_type is None:
            raise ConfigError("the model section's config needs a model_type, such as 'unimm_image_generation'")
        try:
            config = AutoConfig.for_model(model_type, **fields)
        except ValueError as error:
            if isinstance(error, ConfigError):
                raise
            raise ConfigError(f"the model section's config: {error}") from error
    return override_config(config, section.get("overrides") or {})


def override_config(config: PreTrainedConfig, overrides: Mapping[str, Any]) -> PreTrainedConfig:
    """A copy of a config with some (nested) fields replaced.

    Raises:
        ConfigError: a field that does not exist, or parts that no longer fit.
    """
    if not isinstance(overrides, Mapping):
        raise ConfigError(f"overrides must be a mapping of fields to values, given {overrides!r}")
    if not overrides:
        return config
    fields = config.to_dict()
    _merge(fields, overrides, type(config).__name__)
    return replace_fields(config, **fields)


def replace_fields(config: PreTrainedConfig, **fields: Any) -> PreTrainedConfig:
    """A copy of a config with whole fields replaced, nested parts too.

    Raises:
        ConfigError: a field that does not exist, or parts that no longer fit.
    """
    merged = config.to_dict() | fields
    return type(config)(
        **{key: value for key, value in merged.items() if key not in ("model_type", "transformers_version")}
    )


def _merge(fields: dict[str, Any], overrides: Mapping[str, Any], where: str) -> None:
    for key, value in overrides.items():
        if key not in fields:
            raise ConfigError(f"{where} has no field '{key}'{nearest(key, fields)}")
        replaced_part = isinstance(value, Mapping) and value.get("model_type", None) not in (
            None,
            fields[key].get("model_type") if isinstance(fields[key], dict) else None,
        )
        if isinstance(value, Mapping) and isinstance(fields[key], dict) and not replaced_part:
            _merge(fields[key], value, f"{where}.{key}")
        else:
            fields[key] = value


def build_model(section: Mapping[str, Any], tokenizer_path: str | None = None) -> PreTrainedModel:
    """The model that a recipe's model section describes, with a trained visual tokenizer put in where one is given.

    Args:
        section: as `build_config`.
        tokenizer_path: folder or Hub id of a visual tokenizer; its config replaces the section's `tokenizer_config`.

    Raises:
        ConfigError: as `build_config`; or a tokenizer's folder that holds something else.
        CheckpointError: weights that cannot be read or do not fit.
    """
    tokenizer = None if tokenizer_path is None else load_model(tokenizer_path)
    if not isinstance(tokenizer, VisualTokenizer | None):
        raise ConfigError(f"'{tokenizer_path}' holds a {type(tokenizer).__name__}, which is no visual tokenizer")
    config = build_config(section)
    if tokenizer is None and "path" in section and not section.get("overrides"):
        return load_model(section["path"])
    if tokenizer is not None:
        config = replace_fields(config, tokenizer_config=tokenizer.config.to_dict())
    model = (
        load_model(section["path"], partial=True, config=config) if "path" in section else AutoModel.from_config(config)
    )
    if tokenizer is not None:
        model.tokenizer.load_state_dict(tokenizer.state_dict())
    return model
