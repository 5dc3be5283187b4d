"""What watches a run: metrics as JSON lines, TensorBoard, sample grids, a moving average of the weights."""

from __future__ import annotations

import json
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from ..data.transforms import save_grid
from ..errors import RecipeError
from .outputs import MetricsLog, check_finite

Sampler = Callable[[Any, int], tuple[Sequence[Image.Image], Sequence[str]]]
# The trainer's estimate counts pixels as tokens.
_MEANINGLESS = ("total_flos",)


class CheckpointedCallback(TrainerCallback, ABC):
    """A callback whose state belongs to the checkpoint.

    The trainer calls `save_checkpoint` while it writes one (in the first process only), and exactly one of
    `load_checkpoint` and `start_fresh` before the first step.
    """

    @abstractmethod
    def save_checkpoint(self, folder: Path) -> None:
        """Writes the state into a checkpoint's folder."""

    @abstractmethod
    def load_checkpoint(self, folder: Path) -> None:
        """Takes the state up from a checkpoint's folder."""

    @abstractmethod
    def start_fresh(self, model: nn.Module) -> None:
        """Begins without a checkpoint."""


class MetricsCallback(CheckpointedCallback):
    """Writes `metrics.jsonl`; after a resume the file goes on where the checkpoint was written.

    Args:
        path: the file.
    """

    _FILE = "metrics.json"

    def __init__(self, path: str | Path):
        self.log = MetricsLog(path)
        self._started = time.monotonic()

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        values = {name: value for name, value in (logs or {}).items() if name not in _MEANINGLESS}
        check_finite(values, state.global_step)
        if state.is_world_process_zero:
            self.write(values, state.global_step)

    def write(self, values: Mapping[str, Any], step: int) -> None:
        """Adds a line.

        Raises:
            OutputError: the file cannot be written.
        """
        self.log.append({"step": step, **values, "seconds": round(self._seconds(), 3)})

    def save_checkpoint(self, folder: Path) -> None:
        self.log.sync()
        record = {"num_lines": self.log.num_lines, "seconds": self._seconds()}
        (folder / self._FILE).write_text(json.dumps(record))

    def load_checkpoint(self, folder: Path) -> None:
        record = json.loads((folder / self._FILE).read_text())
        self.log.keep(record["num_lines"])
        self._started = time.monotonic() - record["seconds"]

    def start_fresh(self, model: nn.Module) -> None:
        self.log.keep(0)
        self._started = time.monotonic()

    def _seconds(self) -> float:
        return time.monotonic() - self._started


class TensorBoardCallback(TrainerCallback):
    """Writes TensorBoard events; a resumed run replaces what a killed one wrote past its checkpoint.

    Args:
        folder: of the event files.
    """

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)
        self.writer: Any = None

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if state.is_world_process_zero:
            self.open(state.global_step)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        self.write(logs or {}, state.global_step)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.close()

    def open(self, step: int) -> None:
        """Starts a file of events after `step`."""
        from torch.utils.tensorboard import SummaryWriter

        self.writer = SummaryWriter(self.folder, purge_step=step + 1)

    def write(self, values: Mapping[str, Any], step: int) -> None:
        """Adds the numbers among `values`."""
        if self.writer is None:
            return
        for name, value in values.items():
            if isinstance(value, int | float) and name not in _MEANINGLESS:
                self.writer.add_scalar(f"eval/{name[5:]}" if name.startswith("eval_") else f"train/{name}", value, step)

    def close(self) -> None:
        """Brings the events to the disk."""
        if self.writer is not None:
            self.writer.close()
            self.writer = None


class SamplesCallback(TrainerCallback):
    """Draws pictures every so many steps into `step-000100.png`, with a caption under each.

    What it draws at random changes nothing of the training's own randomness.

    Args:
        sampler: takes the model and the step, gives pictures and their captions.
        folder: of the PNG files.
        every_steps: between two grids; the last step has one too.
    """

    def __init__(self, sampler: Sampler, folder: str | Path, every_steps: int):
        if every_steps < 1:
            raise RecipeError(f"sample grids are drawn every so many steps, at least 1, given {every_steps}")
        self.sampler = sampler
        self.folder = Path(folder)
        self.every_steps = every_steps
        #: Pictures of the last grid, and the seconds that drawing them took.
        self.drawn = 0
        self.seconds = 0.0

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, model: Any = None, **kwargs: Any
    ) -> None:
        if state.is_world_process_zero and (
            state.global_step % self.every_steps == 0 or state.global_step == state.max_steps
        ):
            self.draw(model, state.global_step)

    def draw(self, model: Any, step: int) -> Path:
        """Draws a grid now.

        Raises:
            OutputError: the folder cannot be written.
        """
        was_training = model.training
        model.eval()
        with torch.random.fork_rng(), torch.no_grad():
            start = time.perf_counter()
            pictures, captions = self.sampler(model, step)
            self.drawn, self.seconds = len(pictures), time.perf_counter() - start
        model.train(was_training)
        path = self.folder / f"step-{step:06d}.png"
        save_grid(pictures, captions, path)
        return path


class AverageCallback(CheckpointedCallback):
    """Keeps `average ← decay · average + (1 - decay) · weights` beside the weights (https://huggingface.co/papers/1806.04498).

    Buffers are copied. In the first steps the decay is `(1 + step) / (10 + step)` where that is smaller, so that the
    initial weights are forgotten soon.

    Args:
        decay: share of the old average that a step keeps.
    """

    _FILE = "average.safetensors"

    def __init__(self, decay: float):
        self.decay = decay
        self.average: dict[str, torch.Tensor] = {}

    def on_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, model: Any = None, **kwargs: Any
    ) -> None:
        # The step that is being taken is not counted yet.
        self.update(model, state.global_step + 1)

    @torch.no_grad()
    def update(self, model: nn.Module, step: int) -> None:
        """Moves the average towards the weights after `step` steps."""
        decay = min(self.decay, (1 + step) / (10 + step))
        moving, targets = [], []
        for name, value in own_state(model).items():
            average = self.average[name] = self.average[name].to(value.device)
            if value.is_floating_point():
                moving.append(average)
                targets.append(value.detach())
            else:
                average.copy_(value)
        torch._foreach_lerp_(moving, targets, 1 - decay)

    def save_checkpoint(self, folder: Path) -> None:
        save_file(self.average, folder / self._FILE)

    def load_checkpoint(self, folder: Path) -> None:
        self.average = load_file(folder / self._FILE)

    def start_fresh(self, model: nn.Module) -> None:
        self.average = {name: value.detach().clone().contiguous() for name, value in own_state(model).items()}


def own_state(model: nn.Module) -> dict[str, torch.Tensor]:
    """Weights and buffers of the model itself, tied ones once, without the wrappers that run it in parallel."""
    from accelerate.utils import extract_model_from_parallel

    seen: set[int] = set()
    state = {}
    for name, value in extract_model_from_parallel(model, keep_torch_compile=False).state_dict().items():
        if value.data_ptr() not in seen or value.numel() == 0:
            state[name] = value
        seen.add(value.data_ptr())
    return state
