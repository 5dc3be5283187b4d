"""transformers' TrainingArguments with this package's defaults and what an exact resume asks of them."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from transformers import TrainingArguments
from transformers.trainer_utils import IntervalStrategy, SaveStrategy

from ..errors import RecipeError


@dataclass
class UniMMTrainingArguments(TrainingArguments):
    """Fields of https://huggingface.co/docs/transformers/main_classes/trainer#transformers.TrainingArguments; those below
    are new or have another default.

    Args:
        resume: go on from the newest complete checkpoint of `output_dir`, where there is one.
        ema_decay: keep a moving average of the weights with this decay, saved beside them; None keeps none.
        tensorboard: write TensorBoard events (instead of `report_to`, whose events of a resumed run overlap).
        data_seed: order of the data; the seed where not given.

    Raises:
        RecipeError: a combination that a resumed run could not repeat.
    """

    output_dir: str | None = None
    resume: bool = field(default=True, metadata={"help": "Resume from the newest complete checkpoint."})
    ema_decay: float | None = field(default=None, metadata={"help": "Decay of the moving average of the weights."})
    tensorboard: bool = field(default=True, metadata={"help": "Write TensorBoard events."})

    report_to: str | list[str] | None = "none"
    # Rows reach the collator whole: it is the collator that knows the columns.
    remove_unused_columns: bool = False
    prediction_loss_only: bool = True
    logging_steps: float = 10
    logging_first_step: bool = True
    # The filter hides a loss that is not a number behind an average.
    logging_nan_inf_filter: bool = False
    save_total_limit: int | None = 2

    def __post_init__(self) -> None:
        if not self.output_dir:
            raise RecipeError("output_dir is missing: the folder of the run, such as --output_dir out/my_run")
        if self.data_seed is None:
            self.data_seed = self.seed
        if not torch.accelerator.is_available():
            self.dataloader_pin_memory = False
        super().__post_init__()
        if self.ema_decay is not None and not 0 < self.ema_decay < 1:
            raise RecipeError(f"ema_decay must lie between 0 and 1, given {self.ema_decay}")
        if self.save_strategy is SaveStrategy.STEPS:
            for name in ("eval_strategy", "logging_strategy"):
                if getattr(self, name) is IntervalStrategy.EPOCH:
                    raise RecipeError(
                        f"{name}: epoch needs save_strategy: epoch (or 'no'), given 'steps': a checkpoint written just "
                        "before the end of an epoch could not tell a resumed run what is still to come"
                    )
        if self.save_only_model and self.resume and self.save_strategy is not SaveStrategy.NO:
            raise RecipeError("save_only_model leaves out what a resume needs: set resume: false with it")
        if self.enable_jit_checkpoint:
            raise RecipeError("enable_jit_checkpoint writes checkpoints in place, where a kill can tear them: set save_steps")
