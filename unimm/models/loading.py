"""What loading does for both models: quantized weights, parts on the CPU or on disk."""

from __future__ import annotations

import copy
import logging
from typing import Any, Literal

import torch
from transformers import BitsAndBytesConfig, PreTrainedModel
from transformers.quantizers.base import get_keys_to_not_convert

from ..dependencies import missing_dependency, needed_for
from ..errors import ConfigError

logger = logging.getLogger(__name__)

#: Names of the kinds of quantization that `quantization_config` knows.
QUANTIZATIONS = ("int8", "nf4")


class UniMMPreTrainedModel(PreTrainedModel):
    """A model of several parts, some of which lose too much in 8 or 4 bits, and some of which may lie on disk.

    `_full_precision_modules` of a model and of its parts names the modules whose linear layers stay as they are when
    bitsandbytes quantizes the others; `llm_int8_skip_modules` of a `BitsAndBytesConfig` replaces that choice.
    """

    _full_precision_modules: tuple[str, ...] = ()

    @classmethod
    def from_pretrained(cls, *args: Any, quantization_config: Any = None, **kwargs: Any) -> Any:
        """As transformers' `from_pretrained`; parts that land on disk are told of once.

        Raises:
            MissingDependencyError: a quantized model without bitsandbytes.
            ConfigError: 4-bit layers of a shape that bitsandbytes cannot run on this CPU.
        """
        if quantization_config is not None:
            # The skipped modules are written into it; the caller's object may serve other models too.
            kwargs["quantization_config"] = copy.deepcopy(quantization_config)
        try:
            loaded = super().from_pretrained(*args, **kwargs)
        except ImportError as error:
            if "bitsandbytes" not in str(error):
                raise
            raise missing_dependency("bitsandbytes", "a model in 8 or 4 bits") from error
        model = loaded[0] if isinstance(loaded, tuple) else loaded
        if getattr(model, "is_loaded_in_4bit", False):
            _check_cpu_kernel(model)
        if isinstance(getattr(model.config, "quantization_config", None), BitsAndBytesConfig):
            # Saved with the model, so that its folder loads alike whatever the default becomes.
            model.config.quantization_config.llm_int8_skip_modules = sorted(model.hf_quantizer.modules_to_not_convert)
        _warn_about_disk(model)
        return loaded

    def post_init(self) -> None:
        super().post_init()
        wanted = getattr(self.config, "quantization_config", None)
        if isinstance(wanted, BitsAndBytesConfig) and wanted.llm_int8_skip_modules is None:
            # Where the quantizer looks; set for quantized models alone, since others may be in half precision throughout.
            self._keep_in_fp32_modules.update(full_precision_modules(self))

    @property
    def device(self) -> torch.device:
        """Where inputs belong: the first parameter's device, or the one that offloaded parts are brought to."""
        where = getattr(getattr(self, "_hf_hook", None), "execution_device", None)
        return super().device if where is None else torch.device(where)


def full_precision_modules(model: PreTrainedModel) -> list[str]:
    """Names and patterns of the modules that quantization leaves alone: tied weights, output embeddings, and what the
    model and its parts name in `_full_precision_modules`."""
    names = set(get_keys_to_not_convert(model))
    for name, module in model.named_modules():
        prefix = f"{name}." if name else ""
        names.update(prefix + own for own in getattr(module, "_full_precision_modules", ()))
    return sorted(names)


def quantization_config(kind: Literal["int8", "nf4"], compute_dtype: torch.dtype = torch.float32) -> BitsAndBytesConfig:
    """bitsandbytes' settings for one of the usual kinds.

    Args:
        kind: `int8` (https://huggingface.co/papers/2208.07339) or `nf4` (https://huggingface.co/papers/2305.14314).
        compute_dtype: of the matrix products with 4-bit weights.

    Raises:
        MissingDependencyError: bitsandbytes is not installed.
    """
    with needed_for(f"weights in {kind}"):
        import bitsandbytes  # noqa: F401
    if kind == "int8":
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type=kind, bnb_4bit_compute_dtype=compute_dtype)


def _check_cpu_kernel(model: PreTrainedModel) -> None:
    """bitsandbytes repacks 4-bit weights for CPUs with AVX512-BF16 in whole blocks of a row, 32 rows at a time."""
    misfits = [
        name
        for name, module in model.named_modules()
        if getattr(module, "support_avx512bf16_for_cpu", False)
        and module.weight.device.type == "cpu"
        and (module.in_features % module.weight.blocksize or module.out_features % 32)
    ]
    if misfits:
        raise ConfigError(
            "on this CPU bitsandbytes runs 4-bit layers whose inputs are a multiple of 64 and outputs a multiple of 32; "
            f"{len(misfits)} layers of this model are not: {', '.join(misfits[:4])}{', …' if len(misfits) > 4 else ''}. "
            "Load it in 8 bits, or on a GPU, or leave these layers out with llm_int8_skip_modules"
        )


def _warn_about_disk(model: PreTrainedModel) -> None:
    placed = getattr(model, "hf_device_map", None) or {}
    names = [name for name, device in placed.items() if device == "disk"]
    if not names:
        return
    size = sum(
        tensor.numel() * tensor.element_size()
        for key, tensor in model.named_parameters()
        if any(name == "" or key == name or key.startswith(f"{name}.") for name in names)
    )
    shown = ", ".join(name or "the whole model" for name in names[:4])
    shown += f" and {len(names) - 4} more" if len(names) > 4 else ""
    logger.warning(
        "%s (%s MB) lie on disk and are read anew whenever they run, which makes every step as slow as the disk. To keep "
        "them in memory: load in fewer bytes (dtype=torch.bfloat16, or quantization_config), give the CPU more room "
        "(max_memory={'cpu': …}), or choose a smaller preset",
        shown,
        f"{size / 1e6:,.1f}",
    )
