"""Whether the parallel engine that was asked for is the one that runs."""

from __future__ import annotations

import os

from accelerate import Accelerator, DistributedType

from ..errors import RecipeError

_ASKED = {"ACCELERATE_USE_FSDP": DistributedType.FSDP, "ACCELERATE_USE_DEEPSPEED": DistributedType.DEEPSPEED}


def check_engine(accelerator: Accelerator) -> None:
    """Refuses a run whose engine did not start: Accelerate falls back to plain or data-parallel training without a word,
    on the CPU for one.

    Args:
        accelerator: as it was built.

    Raises:
        RecipeError: FSDP or DeepSpeed was asked for, and another engine runs.
    """
    for variable, engine in _ASKED.items():
        asked = os.environ.get(variable, "").lower() in ("1", "true", "yes", "on")
        if asked and accelerator.distributed_type != engine:
            raise RecipeError(
                f"{engine.value} was asked for ({variable}), but {accelerator.distributed_type.value} runs: launch with "
                "`accelerate launch --config_file …` on a machine that has what the engine needs, or ask for another one"
            )
