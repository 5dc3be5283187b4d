"""transformers' TrainingArguments with this package's defaults and what an exact resume asks of them."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field

import torch
from transformers import TrainingArguments
from transformers.trainer_utils import HubStrategy, IntervalStrategy, SaveStrategy, SchedulerType

from ..errors import RecipeError

logger = logging.getLogger(__name__)


def computes_in_bfloat16(on_cpu: bool) -> bool:
    """Whether the CPU (or else the accelerator) computes in bfloat16 instead of emulating it."""
    if on_cpu:
        found = torch.cpu.get_capabilities()
        return bool(found.get("avx512_bf16") or found.get("amx_bf16") or found.get("bf16"))
    return not torch.cuda.is_available() or torch.cuda.is_bf16_supported(including_emulation=False)


@dataclass
class UniMMTrainingArguments(TrainingArguments):
    """Fields of https://huggingface.co/docs/transformers/main_classes/trainer#transformers.TrainingArguments; those below
    are new or have another default.

    Args:
        resume: go on from the newest complete checkpoint of `output_dir`, where there is one.
        ema_decay: keep a moving average of the weights with this decay, saved beside them; None keeps none.
        muon_learning_rate: train the matrices inside of the blocks with Muon at this rate, and the rest with AdamW at
            `learning_rate`; None trains all with `optim`.
        bf16_where_native: autocast to bfloat16 on devices that compute in it, and train in float32 on the others, such as
            CPUs without AVX512-BF16 or AMX, which emulate it many times slower.
        tensorboard: write TensorBoard events (instead of `report_to`, whose events of a resumed run overlap).
        data_seed: order of the data; the seed where not given.
        push_to_hub: push the finished run's `final/` folder, with its card; needs the recipe's `card.license`.
        hub_strategy: `end` alone: a model without its figures is not published.

    Raises:
        RecipeError: a combination that a resumed run could not repeat.
    """

    output_dir: str | None = None
    data_seed: int | None = None
    resume: bool = field(default=True, metadata={"help": "Resume from the newest complete checkpoint."})
    ema_decay: float | None = field(default=None, metadata={"help": "Decay of the moving average of the weights."})
    muon_learning_rate: float | None = field(default=None, metadata={"help": "Learning rate of Muon."})
    bf16_where_native: bool = field(default=False, metadata={"help": "bfloat16 on devices that compute in it."})
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
    hub_strategy: HubStrategy | str = "end"

    def __post_init__(self) -> None:
        if not self.output_dir:
            raise RecipeError("output_dir is missing: the folder of the run, such as --output_dir out/my_run")
        if self.data_seed is None:
            self.data_seed = self.seed
        if not torch.accelerator.is_available():
            self.dataloader_pin_memory = False
        on_cpu = self.use_cpu or not torch.accelerator.is_available()
        if self.bf16_where_native:
            self.bf16 = computes_in_bfloat16(on_cpu)
        elif self.bf16 and on_cpu and not computes_in_bfloat16(on_cpu):
            logger.warning(
                "bf16: this CPU has no bfloat16 arithmetic (AVX512-BF16, AMX) and emulates it many times slower than float32; "
                "bf16_where_native: true in place of bf16 leaves it out here"
            )
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
        if self.push_to_hub and (self.hub_strategy is not HubStrategy.END or self.hub_always_push):
            raise RecipeError(
                "a run is pushed whole, with its card, when it is finished: leave out hub_always_push, and hub_strategy or set "
                f"it to 'end', given '{self.hub_strategy.value}'"
            )
        if self.save_only_model and self.resume and self.save_strategy is not SaveStrategy.NO:
            raise RecipeError("save_only_model leaves out what a resume needs: set resume: false with it")
        if self.enable_jit_checkpoint:
            raise RecipeError(
                "enable_jit_checkpoint writes checkpoints in place, where a kill can tear them: set save_steps"
            )


@dataclass(kw_only=True)
class TokenizerArguments:
    """How a visual tokenizer is trained; the names are those of TrainingArguments.

    Args:
        output_dir: folder of the run.
        max_steps: optimizer steps.
        per_device_train_batch_size: rows per process and micro-batch.
        gradient_accumulation_steps: micro-batches per step.
        learning_rate: highest learning rate of the tokenizer.
        discriminator_learning_rate: of the discriminator; that of the tokenizer when not given.
        adam_beta1: of AdamW.
        adam_beta2: of AdamW.
        adam_epsilon: of AdamW.
        weight_decay: of matrices and convolutions; norms, biases and codes have none.
        max_grad_norm: gradients are clipped to this length; 0 does not clip.
        lr_scheduler_type: a schedule of transformers.
        warmup_steps: steps of linear warm-up.
        bf16: autocast to bfloat16.
        use_cpu: leave accelerators alone.
        seed: of the weights, the data's order and all draws.
        dataloader_num_workers: processes that prepare batches.
        logging_steps: steps between two lines of metrics.
        save_steps: steps between two checkpoints.
        save_total_limit: checkpoints to keep; None keeps all.
        eval_steps: steps between two evaluations; None evaluates at the end only.
        per_device_eval_batch_size: rows per process in evaluation.
        ema_decay: keep a moving average of the weights with this decay.
        resume: go on from the newest complete checkpoint of `output_dir`.
        tensorboard: write TensorBoard events.
        disable_tqdm: show no progress bar.
        push_to_hub: push the finished run's `final/` folder, with its card; needs the recipe's `card.license`.
        hub_model_id: `owner/name`; the name of `output_dir` when not given.
        hub_token: of the Hub; the stored one when not given. It is written nowhere.
        hub_private_repo: whether a new repository is private.
        hub_revision: branch to push to.

    Raises:
        RecipeError: a value out of range.
    """

    output_dir: str
    max_steps: int
    per_device_train_batch_size: int = 8
    gradient_accumulation_steps: int = 1
    learning_rate: float = 1e-4
    discriminator_learning_rate: float | None = None
    adam_beta1: float = 0.9
    adam_beta2: float = 0.95
    adam_epsilon: float = 1e-8
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0
    lr_scheduler_type: SchedulerType = SchedulerType.COSINE
    warmup_steps: int = 0
    bf16: bool = False
    use_cpu: bool = False
    seed: int = 42
    dataloader_num_workers: int = 0
    logging_steps: int = 10
    save_steps: int = 500
    save_total_limit: int | None = 2
    eval_steps: int | None = None
    per_device_eval_batch_size: int = 8
    ema_decay: float | None = None
    resume: bool = True
    tensorboard: bool = True
    disable_tqdm: bool = False
    push_to_hub: bool = False
    hub_model_id: str | None = None
    hub_token: str | None = None
    hub_private_repo: bool | None = None
    hub_revision: str | None = None

    def __post_init__(self) -> None:
        for name in (
            "max_steps",
            "per_device_train_batch_size",
            "per_device_eval_batch_size",
            "gradient_accumulation_steps",
            "logging_steps",
            "save_steps",
        ):
            if getattr(self, name) < 1:
                raise RecipeError(f"{name} must be 1 or more, given {getattr(self, name)}")
        if self.learning_rate <= 0 or (self.discriminator_learning_rate or 1) <= 0:
            raise RecipeError("learning_rate and discriminator_learning_rate must be positive")
        if self.eval_steps is not None and self.eval_steps < 1:
            raise RecipeError(f"eval_steps must be 1 or more, or null, given {self.eval_steps}")
        if self.ema_decay is not None and not 0 < self.ema_decay < 1:
            raise RecipeError(f"ema_decay must lie between 0 and 1, given {self.ema_decay}")
