"""transformers' Trainer, made to survive a kill at any moment: the resumed run logs what an undisturbed one would have."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import broadcast_object_list
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import TrainOutput

from ..errors import CheckpointError, RecipeError
from .arguments import UniMMTrainingArguments
from .averages import RunningMeans
from .callbacks import AverageCallback, CheckpointedCallback, MetricsCallback, TensorBoardCallback
from .checkpoints import CheckpointStore, is_complete
from .engines import check_engine
from .optimizers import MuonWithAdamW
from .outputs import RunFolder

logger = logging.getLogger(__name__)


class ResumableTrainer(Trainer):
    """Checkpoints written beside and renamed, automatic resume, and the logged averages carried over.

    Weights, optimizer, schedule, random states and the position in the data are the Trainer's own. What a batch holds
    must follow from the rows alone: a collator or data set that draws from a global random state could not repeat
    itself, whatever is restored.

    Also a base for TRL's trainers: `class MyTrainer(ResumableTrainer, DPOTrainer)`.
    """

    def __init__(self, *args: Any, **kwargs: Any):
        self._staging: Path | None = None
        self._checkpoint: Path | None = None
        super().__init__(*args, **kwargs)
        check_engine(self.accelerator)
        self.checkpoints = CheckpointStore(
            self.args.output_dir,
            is_main=self.is_world_process_zero(),
            is_local_main=self.is_local_process_zero(),
            wait=self.accelerator.wait_for_everyone,
        )
        # Last in the list: what the others begin with at the start of training is replaced by what was saved.
        self.add_callback(_RestoreCallback(self._restore))

    def train(self, resume_from_checkpoint: str | bool | None = None, **kwargs: Any) -> TrainOutput:
        """Trains; goes on from the newest complete checkpoint where the arguments say `resume`.

        Args:
            resume_from_checkpoint: a checkpoint to go on from instead; False starts at the beginning.
            kwargs: further arguments of `Trainer.train`.

        Raises:
            CheckpointError: the given checkpoint is torn, or was not written by this package.
            RecipeError: the folder holds checkpoints that must not be resumed from.
            OutputError: the folder cannot be written.
        """
        self.checkpoints.clean()
        self._checkpoint = self._choose_checkpoint(resume_from_checkpoint)
        if self._checkpoint is not None:
            logger.info("resuming from %s", self._checkpoint)
            # Otherwise a resumed run would evaluate, and log it, once more.
            self.args.eval_on_start = False
        chosen = None if self._checkpoint is None else str(self._checkpoint)
        output = super().train(resume_from_checkpoint=chosen, **kwargs)
        return TrainOutput(output.global_step, self._mean_training_loss(), output.metrics)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if "train_loss" in logs:
            # The Trainer divides by the steps since the last start.
            logs["train_loss"] = self._mean_training_loss()
        super().log(logs, start_time)

    def progress(self) -> dict[str, Any]:
        """What this process has averaged since the last log; subclasses add what they average."""
        return {
            "running_loss": self._tr_loss.item(),
            "total_loss": self._total_loss_scalar,
            "last_logged_step": self._globalstep_last_logged,
        }

    def restore_progress(self, progress: dict[str, Any]) -> None:
        """Takes `progress` up again."""
        self._tr_loss = torch.tensor(progress["running_loss"], device=self.args.device)
        self._total_loss_scalar = progress["total_loss"]
        self._globalstep_last_logged = progress["last_logged_step"]

    def _choose_checkpoint(self, asked: str | bool | None) -> Path | None:
        resume = getattr(self.args, "resume", True) if asked is None else asked is not False
        if isinstance(asked, str):
            if not is_complete(asked):
                raise CheckpointError(
                    f"'{asked}' is no complete checkpoint of this package (its complete.json is missing, or files that it "
                    "lists are): choose another one"
                )
            return Path(asked)
        newest = [self.checkpoints.newest() if self.is_world_process_zero() else None]
        broadcast_object_list(newest)
        if newest[0] is not None and not resume:
            raise RecipeError(
                f"resume is off and '{self.args.output_dir}' holds {newest[0].name}: choose another output_dir, or start "
                "over with --overwrite"
            )
        return newest[0]

    def _mean_training_loss(self) -> float:
        return self._total_loss_scalar / max(self.state.global_step, 1)

    def _restore(self, state: TrainerState) -> None:
        stateful = [one for one in self.callback_handler.callbacks if isinstance(one, CheckpointedCallback)]
        if self._checkpoint is None:
            for callback in stateful:
                callback.start_fresh(self.model)
            return
        path = self._checkpoint / self._progress_name()
        if not path.is_file():
            raise CheckpointError(
                f"'{self._checkpoint}' has no {path.name}: it was written by another number of processes. Resume with that "
                "number, or start over in another folder"
            )
        self.restore_progress(json.loads(path.read_text()))
        for callback in stateful:
            callback.load_checkpoint(self._checkpoint)

    def _progress_name(self) -> str:
        return f"progress_{self.args.process_index}.json"

    # ---- transformers' own methods, which write in place ----

    def _get_output_dir(self, trial: Any) -> str:
        return super()._get_output_dir(trial) if self._staging is None else str(self._staging)

    def _save_checkpoint(self, model: torch.nn.Module, trial: Any) -> None:
        step = self.state.global_step
        with self.checkpoints.write(step) as staged:
            self._staging = staged.parent
            try:
                super()._save_checkpoint(model, trial)
            finally:
                self._staging = None
            (staged / self._progress_name()).write_text(json.dumps(self.progress()))
            if self.args.should_save:
                self._note_best_checkpoint(staged)
                for callback in self.callback_handler.callbacks:
                    if isinstance(callback, CheckpointedCallback):
                        callback.save_checkpoint(staged)
        self.checkpoints.rotate(self.args.save_total_limit, keep=[self.state.best_model_checkpoint])

    def _note_best_checkpoint(self, staged: Path) -> None:
        """Puts the best checkpoint's final name in the place of its name while it was written."""
        if not self.state.best_global_step:
            return
        best = self.checkpoints.folder / f"checkpoint-{self.state.best_global_step}"
        if best.name == staged.name or best.is_dir():
            self.state.best_model_checkpoint = str(best)
            self.state.save_to_json(str(staged / TRAINER_STATE_NAME))

    def init_hf_repo(self, token: str | None = None, private: bool | None = None) -> None:
        raise RecipeError(
            "a trainer publishes nothing, because a card and a licence belong to it: run the stage with --push_to_hub, or push "
            "the saved folder with `unimm push FOLDER owner/name`"
        )

    def _run_epoch(self, *args: Any, **kwargs: Any) -> None:
        # A checkpoint of the last step: the Trainer would take one more step before it looks at the count.
        if self.state.global_step >= self.state.max_steps:
            self.control.should_training_stop = True
            return
        super()._run_epoch(*args, **kwargs)


class UniMMTrainer(ResumableTrainer):
    """The trainer of the likelihood stages: every run writes metrics, TensorBoard events and sample grids.

    Loss terms that the model returns beside `loss` (fields of its output that end in `_loss`) are averaged and logged.

    Args:
        model: a model whose forward returns a loss.
        args: arguments; metrics go into their `output_dir`.
        callbacks: further callbacks.
        kwargs: further arguments of `Trainer`.

    Raises:
        RecipeError: a moving average is asked for where the weights are sharded.
    """

    args: UniMMTrainingArguments
    optimizer: Any

    def __init__(
        self,
        model: Any = None,
        args: UniMMTrainingArguments | None = None,
        *,
        callbacks: list[TrainerCallback] | None = None,
        **kwargs: Any,
    ):
        if not isinstance(args, UniMMTrainingArguments):
            raise RecipeError(f"UniMMTrainer needs UniMMTrainingArguments, given {type(args).__name__}")
        folder = RunFolder(args.output_dir or "")
        own: list[TrainerCallback] = [MetricsCallback(folder.metrics)]
        if args.tensorboard:
            own.append(TensorBoardCallback(folder.tensorboard))
        self.average = AverageCallback(args.ema_decay) if args.ema_decay is not None else None
        if self.average is not None:
            own.append(self.average)
        super().__init__(model=model, args=args, callbacks=[*own, *(callbacks or [])], **kwargs)
        self.means = RunningMeans(self.accelerator)
        if args.muon_learning_rate is not None and (self.is_fsdp_enabled or self.is_deepspeed_enabled):
            raise RecipeError(
                "muon_learning_rate needs whole matrices in every process: leave it out under FSDP and DeepSpeed"
            )
        if self.average is not None and (self.is_fsdp_enabled or self.is_deepspeed_enabled):
            raise RecipeError("ema_decay needs whole weights in every process: leave it out under FSDP and DeepSpeed")

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        if self.args.muon_learning_rate is None or self.optimizer is not None:
            return super().create_optimizer(model)
        self.optimizer = MuonWithAdamW(
            self.model if model is None else model,
            learning_rate=self.args.learning_rate,
            muon_learning_rate=self.args.muon_learning_rate,
            betas=(self.args.adam_beta1, self.args.adam_beta2),
            eps=self.args.adam_epsilon,
            weight_decay=self.args.weight_decay,
        )
        return self.optimizer

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        loss, outputs = super().compute_loss(model, inputs, return_outputs=True, num_items_in_batch=num_items_in_batch)
        if model.training and isinstance(outputs, dict):
            for name, value in outputs.items():
                if name.endswith("_loss") and isinstance(value, torch.Tensor) and value.numel() == 1:
                    self.means.add(name, value)
        return (loss, outputs) if return_outputs else loss

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if "loss" in logs:
            logs |= self.means.take()
        super().log(logs, start_time)

    def progress(self) -> dict[str, Any]:
        return super().progress() | {"means": self.means.state()}

    def restore_progress(self, progress: dict[str, Any]) -> None:
        super().restore_progress(progress)
        self.means.load(progress["means"])


class _RestoreCallback(TrainerCallback):
    def __init__(self, restore: Callable[[TrainerState], None]):
        self.restore = restore

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.restore(state)
