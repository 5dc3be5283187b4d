"""A model's parts, axis by axis, and the bytes of its weights; from the config alone, so that nothing has to be loaded."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedConfig

# The fields of a part's config that say how large it is, and of which kind.
_SHOWN = (
    "block",
    "form",
    "norm",
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "intermediate_size",
    "vocab_size",
    "num_classes",
    "feature_size",
    "length",
    "levels",
    "codebook_size",
    "code_channels",
    "base_channels",
    "channel_multipliers",
    "image_size",
    "patch_size",
)
# Modules whose name is not that of their config.
_MODULES = {"text": "language_model", "vision": "vision_encoder"}
_AXES = {"text": "backbone", "vision": "vision encoder"}


@dataclass(frozen=True)
class Part:
    """The choice on one axis.

    Args:
        axis: which axis.
        choice: `model_type` of the part's config.
        sizes: its sizes in words.
        num_parameters: of the module.
    """

    axis: str
    choice: str
    sizes: str
    num_parameters: int


def skeleton_of(config: PreTrainedConfig) -> Any:
    """The model of a config on the meta device: all names and shapes, no memory."""
    from transformers import AutoModel

    with torch.device("meta"):
        return AutoModel.from_config(config)


def parts_of(model: Any) -> list[Part]:
    """The parts of a model: one per nested config, then the modules that have none of their own.

    Args:
        model: the model, which may be on the meta device.
    """
    parts, seen = [], set()
    for field in type(model.config).sub_configs_defaults:
        config, name = getattr(model.config, field), field.removesuffix("_config")
        if config is None:
            continue
        module = getattr(model, _MODULES.get(name, name), None)
        seen.add(_MODULES.get(name, name))
        parts.append(Part(_AXES.get(name, name), config.model_type, sizes_of(config), count_parameters(module)))
    if not parts:
        return [Part("all", model.config.model_type, sizes_of(model.config), count_parameters(model))]
    for name, module in model.named_children():
        if name not in seen and count_parameters(module):
            parts.append(Part(name.replace("_", " "), type(module).__name__, "", count_parameters(module)))
    return parts


def sizes_of(config: PreTrainedConfig) -> str:
    """The sizes in a part's config, in words."""
    found = ((name, getattr(config, name, None)) for name in _SHOWN)
    return ", ".join(f"{name} {_short(value)}" for name, value in found if value not in (None, "none", ()))


def count_parameters(module: nn.Module | None) -> int:
    """Parameters of a module, shared ones once."""
    return 0 if module is None else sum(one.numel() for one in module.parameters())


def weight_bytes(model: Any, dtype: torch.dtype) -> int:
    """Bytes of parameters and buffers when the model is loaded with `dtype`, which some modules keep in float32."""
    kept = getattr(model, "_keep_in_fp32_modules_strict", None) or ()
    pattern = re.compile("|".join(rf"(^|\.){re.escape(name)}($|\.)" for name in kept) or r"(?!)")
    total = 0
    for name, tensor in _tensors(model):
        stays = not tensor.is_floating_point() or (dtype != torch.float32 and pattern.search(name))
        total += tensor.numel() * (tensor.element_size() if stays else dtype.itemsize)
    return total


def _tensors(model: Any) -> Iterator[tuple[str, torch.Tensor]]:
    yield from model.named_parameters()
    yield from model.named_buffers()


def _short(value: Any) -> str:
    return "×".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
