"""Whether the parallel engine that was asked for is there, and is the one that runs."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Mapping
from typing import Any

from accelerate import Accelerator, DistributedType

from ..dependencies import missing_dependency
from ..errors import RecipeError

_ASKED = {"ACCELERATE_USE_FSDP": DistributedType.FSDP, "ACCELERATE_USE_DEEPSPEED": DistributedType.DEEPSPEED}


def require_engine(training: Mapping[str, Any]) -> None:
    """Refuses a run that asks for DeepSpeed where it is not installed.

    Args:
        training: the recipe's training arguments.

    Raises:
        MissingDependencyError: with the extra that brings it.
    """
    asked = training.get("deepspeed") or _is_set("ACCELERATE_USE_DEEPSPEED")
    if asked and importlib.util.find_spec("deepspeed") is None:
        raise missing_dependency("deepspeed", "the engine that this run asks for")


def check_engine(accelerator: Accelerator) -> None:
    """Refuses a run whose engine did not start: Accelerate falls back to plain or data-parallel training without a word,
    on the CPU for one.

    Args:
        accelerator: as it was built.

    Raises:
        RecipeError: FSDP or DeepSpeed was asked for, and another engine runs.
    """
    for variable, engine in _ASKED.items():
        if _is_set(variable) and accelerator.distributed_type != engine:
            raise RecipeError(
                f"{engine.value} was asked for ({variable}), but {accelerator.distributed_type.value} runs: launch with "
                "`accelerate launch --config_file …` on a machine that has what the engine needs, or ask for another one"
            )


def _is_set(variable: str) -> bool:
    return os.environ.get(variable, "").lower() in ("1", "true", "yes", "on")
