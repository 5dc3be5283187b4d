"""One run over two processes, for `torchrun`; ends at once before the step given, as a kill would.

torchrun --nproc_per_node 2 tests/training/two_processes.py TRAINER FOLDER STEP
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import torch
from kill_resume import tiny_arguments, tiny_model, tiny_rows, tokenizer_trainer
from transformers import TrainerCallback

from unimm.training.trainer import UniMMTrainer


class EndAt(TrainerCallback):
    def __init__(self, step: int):
        self.step = step

    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            os._exit(9)


def main() -> None:
    kind, folder, last = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
    torch.set_num_threads(1)
    if kind == "transformers":
        arguments = tiny_arguments(folder, ema_decay=0.9, eval_strategy="steps", eval_steps=6)
        trainer = UniMMTrainer(
            tiny_model(), arguments, train_dataset=tiny_rows(), eval_dataset=tiny_rows(8), callbacks=[EndAt(last)]
        )
        trainer.train()
        trainer.save_model(str(folder / "final"))
    else:
        trainer = tokenizer_trainer(folder, ema_decay=0.9)
        take_step = trainer._optimizer_step

        def step(batches):
            if trainer.step == last:
                os._exit(9)
            take_step(batches)

        trainer._optimizer_step = step
        trainer.train()
        if trainer.accelerator.is_main_process:
            trainer.unwrapped.save_pretrained(folder / "final")
    trainer.accelerator.wait_for_everyone()
    trainer.accelerator.end_training()


if __name__ == "__main__":
    main()
