"""Kills training runs with SIGKILL, at random times and inside slowed checkpoint writes, and compares what they logged.

    python -m tests.training.kill_resume --kills 20 --inside_checkpoint 5

The stack is imported once; every run is a fork of this process, so that a restart costs a fraction of a second.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import select
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from unittest import mock

import accelerate.utils.other
import torch
from rich.console import Console
from rich.table import Table
from safetensors.torch import load_file
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedModel

from unimm.tokenizers import VQTokenizer, VQTokenizerConfig
from unimm.training import checkpoints
from unimm.training.arguments import TokenizerArguments, UniMMTrainingArguments
from unimm.training.outputs import MetricsLog, without_timing
from unimm.training.recipes import LossSection
from unimm.training.tokenizer_trainer import TokenizerTrainer
from unimm.training.trainer import UniMMTrainer

Announce = Callable[[], None]


def tiny_model() -> GPT2LMHeadModel:
    """Two layers with dropout, so that the losses depend on the random state."""
    torch.manual_seed(1)
    return GPT2LMHeadModel(
        GPT2Config(vocab_size=32, n_positions=16, n_embd=16, n_layer=2, n_head=2, bos_token_id=0, eos_token_id=0)
    )


def tiny_rows(num_rows: int = 90, length: int = 8) -> list[dict[str, list[int]]]:
    ids = torch.randint(32, (num_rows, length), generator=torch.Generator().manual_seed(2)).tolist()
    return [{"input_ids": one, "labels": one} for one in ids]


def tiny_arguments(folder: Path, **changes) -> UniMMTrainingArguments:
    values = {
        "output_dir": str(folder),
        "max_steps": 20,
        "per_device_train_batch_size": 4,
        "gradient_accumulation_steps": 2,
        "learning_rate": 1e-2,
        "warmup_steps": 5,
        "lr_scheduler_type": "cosine",
        "logging_steps": 3,
        "save_steps": 4,
        "save_total_limit": 2,
        "tensorboard": False,
        "disable_tqdm": True,
        "use_cpu": True,
        "log_level": "error",
    }
    return UniMMTrainingArguments(**(values | changes))


def train_tiny(folder: Path, max_steps: int) -> None:
    """The likelihood stages' trainer, with accumulation, evaluation and a moving average."""
    arguments = tiny_arguments(folder, max_steps=max_steps, ema_decay=0.9, eval_strategy="steps", eval_steps=6)
    trainer = UniMMTrainer(tiny_model(), arguments, train_dataset=tiny_rows(), eval_dataset=tiny_rows(8))
    trainer.train()
    trainer.save_model(str(folder / "final"))


def tiny_tokenizer() -> VQTokenizer:
    torch.manual_seed(1)
    return VQTokenizer(
        VQTokenizerConfig(
            base_channels=8,
            channel_multipliers=(1, 2),
            num_residual_blocks=1,
            encoder_channels=8,
            code_channels=4,
            codebook_size=16,
            num_norm_groups=4,
            attention=False,
            usage_window=64,
            revive_after=5,
            dropout=0.1,
        )
    )


def tiny_pictures(num_rows: int = 30) -> list[torch.Tensor]:
    return list(torch.rand(num_rows, 3, 8, 8, generator=torch.Generator().manual_seed(3)) * 2 - 1)


def stacked(rows: list[torch.Tensor]) -> dict[str, torch.Tensor]:
    return {"pixel_values": torch.stack(rows)}


def tiny_tokenizer_arguments(folder: Path, **changes) -> TokenizerArguments:
    values = {
        "output_dir": str(folder),
        "max_steps": 20,
        "per_device_train_batch_size": 4,
        "gradient_accumulation_steps": 2,
        "learning_rate": 1e-3,
        "warmup_steps": 3,
        "logging_steps": 3,
        "save_steps": 4,
        "eval_steps": 6,
        "tensorboard": False,
        "disable_tqdm": True,
        "use_cpu": True,
    }
    return TokenizerArguments(**(values | changes))


def tokenizer_trainer(folder: Path, **changes) -> TokenizerTrainer:
    return TokenizerTrainer(
        tiny_tokenizer(),
        tiny_tokenizer_arguments(folder, **changes),
        train_dataset=tiny_pictures(),
        eval_dataset=tiny_pictures(6),
        collator=stacked,
        loss=LossSection(
            adversarial_weight=0.1,
            adversarial_start_step=6,
            discriminator={"model_type": "unimm_patch_discriminator", "base_channels": 4, "num_layers": 1},
        ),
    )


def train_tiny_tokenizer(folder: Path, max_steps: int) -> None:
    """The tokenizer's loop, with dropout, a discriminator that starts late, revived codes and a moving average."""
    trainer = tokenizer_trainer(folder, max_steps=max_steps, ema_decay=0.9)
    trainer.train()
    trainer.unwrapped.save_pretrained(folder / "final")


class SlowPoint:
    """Slows one act of one checkpoint write, and tells when it has begun.

    Args:
        announce: called when the act has begun.
        number: which checkpoint write of the process, from 0.
        seconds: of the delay.
    """

    def __init__(self, announce: Announce, number: int, seconds: float):
        self.announce = announce
        self.number = number
        self.seconds = seconds
        self.count = 0

    def wait(self) -> None:
        self.announce()
        time.sleep(self.seconds)

    def is_due(self) -> bool:
        self.count += 1
        return self.count == self.number + 1

    @contextlib.contextmanager
    def half_written(self, *names: str) -> Iterator[None]:
        """Leaves half of a file on the disk for some seconds."""
        save, save_pretrained = torch.save, PreTrainedModel.save_pretrained
        save_file = accelerate.utils.other.safe_save_file

        def slow(path: Path) -> None:
            if path.name in names and checkpoints.STAGING in path.parts and self.is_due():
                whole = path.read_bytes()
                path.write_bytes(whole[: len(whole) // 2])
                self.wait()
                path.write_bytes(whole)

        def slow_save(value, path, *args, **kwargs):
            save(value, path, *args, **kwargs)
            slow(Path(path))

        def slow_save_file(value, path, *args, **kwargs):
            save_file(value, path, *args, **kwargs)
            slow(Path(path))

        def slow_save_pretrained(model, folder, *args, **kwargs):
            save_pretrained(model, folder, *args, **kwargs)
            slow(Path(folder) / "model.safetensors")

        with (
            mock.patch.object(torch, "save", slow_save),
            mock.patch.object(accelerate.utils.other, "safe_save_file", slow_save_file),
            mock.patch.object(PreTrainedModel, "save_pretrained", slow_save_pretrained),
        ):
            yield

    @contextlib.contextmanager
    def before(self, target: object, attribute: str) -> Iterator[None]:
        """Waits before an act."""
        original = getattr(target, attribute)

        def slow(*args, **kwargs):
            if self.is_due():
                self.wait()
            return original(*args, **kwargs)

        with mock.patch.object(target, attribute, slow):
            yield


POINTS: dict[str, Callable[[SlowPoint], contextlib.AbstractContextManager]] = {
    "half of the weights": lambda slow: slow.half_written("model.safetensors"),
    "half of the optimizer": lambda slow: slow.half_written("optimizer.pt", "optimizer.bin"),
    "half of the random states": lambda slow: slow.half_written("rng_state.pth", "random_states_0.pkl"),
    "before the mark": lambda slow: slow.before(checkpoints, "mark_complete"),
    "before the renaming": lambda slow: slow.before(checkpoints.CheckpointStore, "_publish"),
    "before a deletion": lambda slow: slow.before(checkpoints.CheckpointStore, "_remove"),
}
RUNS: dict[str, Callable[[Path, int], None]] = {"transformers": train_tiny, "tokenizer": train_tiny_tokenizer}


def fork_run(run: Callable[[], None], log: Path) -> int:
    """Starts `run` in a fork; returns its process id."""
    sys.stdout.flush()
    child = os.fork()
    if child:
        return child
    status = 1
    try:
        with open(log, "a") as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
        run()
        status = 0
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(status)


def wait_for(child: int, log: Path) -> None:
    _, status = os.waitpid(child, 0)
    if status:
        raise RuntimeError(f"a run failed:\n{log.read_text()[-4000:]}")


def kill_randomly(child: int, delay: float) -> bool:
    """Kills after a delay; False if the run was over by then."""
    deadline = time.monotonic() + delay
    while time.monotonic() < deadline:
        if os.waitpid(child, os.WNOHANG)[0]:
            return False
        time.sleep(0.002)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return True


def newest_step(folder: Path) -> int:
    newest = checkpoints.CheckpointStore(folder).newest()
    return 0 if newest is None else checkpoints.step_of(newest)


def compare(reference: Path, folder: Path) -> dict[str, object]:
    """How many lines and weights of two finished runs differ."""
    expected, reached = (
        [without_timing(line) for line in MetricsLog(one / "metrics.jsonl").read()] for one in (reference, folder)
    )
    differing = [index for index, pair in enumerate(zip(expected, reached, strict=False)) if pair[0] != pair[1]]
    weights = [load_file(one / "final" / "model.safetensors") for one in (reference, folder)]
    unequal = [name for name in weights[0] if not torch.equal(weights[0][name], weights[1][name])]
    return {
        "lines": (len(expected), len(reached)),
        "differing": len(differing),
        "tensors": len(weights[0]),
        "unequal": len(unequal),
        "equal": not differing and not unequal and len(expected) == len(reached) > 0,
    }


def kill_and_compare(
    kills: int, inside_checkpoint: int, *, trainer: str = "transformers", max_steps: int = 300, seed: int = 0
) -> tuple[list[dict], dict[str, object]]:
    """Runs once undisturbed and once with kills.

    Returns:
        One record per kill, and the comparison of the two runs.
    """
    draw = random.Random(seed)
    train = RUNS[trainer]
    with tempfile.TemporaryDirectory() as temporary:
        reference, folder, log = (Path(temporary) / name for name in ("reference", "killed", "log.txt"))
        started = time.monotonic()
        child = fork_run(lambda: train(reference, max_steps), log)
        while not (reference / "metrics.jsonl").exists() and time.monotonic() < started + 60:
            time.sleep(0.01)
        startup = time.monotonic() - started
        wait_for(child, log)
        undisturbed = time.monotonic() - started - startup
        kinds = [True] * inside_checkpoint + [False] * (kills - inside_checkpoint)
        draw.shuffle(kinds)
        points = [name for _ in range(inside_checkpoint) for name in POINTS][:inside_checkpoint]
        records: list[dict] = []
        num_missed = 0
        while kinds:
            inside = kinds[-1]
            before = newest_step(folder)
            record = {"kind": "inside a checkpoint" if inside else "random", "resumed_from": before}
            if inside:
                point = points[-1]
                record["where"] = point
                read, write = os.pipe()

                number = draw.randrange(6)

                def slowed(point: str = point, write: int = write, number: int = number) -> None:
                    with POINTS[point](SlowPoint(lambda: os.write(write, b"."), number, 0.5)):
                        train(folder, max_steps)

                child = fork_run(slowed, log)
                os.close(write)
                announced = bool(select.select([read], [], [], 60)[0]) and bool(os.read(read, 1))
                killed = announced and kill_randomly(child, draw.uniform(0.0, 0.4))
                if not announced:
                    os.waitpid(child, 0)
                os.close(read)
            else:
                delay = draw.uniform(0.02, startup + 2 * undisturbed / (kills + 1))
                record["where"] = f"after {delay:.2f} s"
                killed = kill_randomly(fork_run(lambda: train(folder, max_steps), log), delay)
            if not killed:
                # The run was over before the kill came: the remaining kills hit another one.
                num_missed += 1
                if num_missed > kills or not compare(reference, folder)["equal"]:
                    raise RuntimeError(
                        f"{num_missed} runs ended before their kill ({record}):\n{log.read_text()[-4000:]}"
                    )
                shutil.rmtree(folder)
                continue
            kinds.pop()
            if inside:
                points.pop()
            record["left_behind"] = sorted(
                path.relative_to(folder).as_posix()
                for pattern in (".partial/*", ".retired/*")
                for path in folder.glob(pattern)
            )
            records.append(record)
        wait_for(fork_run(lambda: train(folder, max_steps), log), log)
        return records, compare(reference, folder)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--inside_checkpoint", type=int, default=5)
    parser.add_argument("--trainer", choices=sorted(RUNS), nargs="+", default=sorted(RUNS))
    parser.add_argument("--max_steps", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    results = [report(trainer, arguments) for trainer in arguments.trainer]
    sys.exit(0 if all(results) else 1)


def report(trainer: str, arguments: argparse.Namespace) -> bool:
    """Kills runs of one trainer, prints the table, and says whether the runs were equal."""
    records, result = kill_and_compare(
        arguments.kills,
        arguments.inside_checkpoint,
        trainer=trainer,
        max_steps=arguments.max_steps,
        seed=arguments.seed,
    )
    table = Table("kill", "kind", "where", "newest checkpoint at its start", "left behind", title=f"trainer: {trainer}")
    for index, record in enumerate(records, 1):
        table.add_row(
            str(index),
            record["kind"],
            record["where"],
            f"step {record['resumed_from']}",
            " ".join(record["left_behind"]) or "nothing",
        )
    console = Console(soft_wrap=True)
    console.print(table)
    console.print(
        f"{len(records)} kills ({sum(record['kind'] != 'random' for record in records)} inside a checkpoint write), "
        f"{arguments.max_steps} steps: lines of metrics {result['lines'][0]} undisturbed and {result['lines'][1]} killed, "
        f"{result['differing']} differ; {result['unequal']} of {result['tensors']} final tensors differ bit for bit"
    )
    return bool(result["equal"])


if __name__ == "__main__":
    main()
