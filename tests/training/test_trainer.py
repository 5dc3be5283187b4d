"""A resumed run logs what an undisturbed one logs, and the Trainer's own habits do not get in its way."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from torch.utils.data import IterableDataset
from training.kill_resume import compare, tiny_arguments, tiny_model, tiny_rows
from transformers import GPT2LMHeadModel, Qwen3Config, Qwen3ForCausalLM, TrainerCallback

from unimm.errors import CheckpointError, OutputError, RecipeError
from unimm.training.checkpoints import is_complete
from unimm.training.engines import check_engine
from unimm.training.outputs import MetricsLog
from unimm.training.trainer import UniMMTrainer


class Interrupted(Exception):
    """Ends a run as abruptly as a kill does."""


class InterruptAt(TrainerCallback):
    def __init__(self, step: int):
        self.step = step

    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            raise Interrupted


class Stream(IterableDataset):
    """Rows without a number."""

    def __iter__(self):
        while True:
            yield from tiny_rows(7)


class TermsModel(GPT2LMHeadModel):
    """Also returns a named loss term."""

    def forward(self, *args, **kwargs):
        output = super().forward(*args, **kwargs)
        output["half_loss"] = output.loss / 2
        return output


def make(folder: Path, *, interrupt_at=None, model=None, rows=None, eval_rows=None, **changes) -> UniMMTrainer:
    model = model() if callable(model) and not isinstance(model, torch.nn.Module) else model
    callbacks = [] if interrupt_at is None else [InterruptAt(interrupt_at)]
    rows = tiny_rows() if rows is None else rows
    return UniMMTrainer(
        model or tiny_model(),
        tiny_arguments(folder, **changes),
        train_dataset=rows,
        eval_dataset=eval_rows,
        callbacks=callbacks,
    )


def tiny_qwen() -> Qwen3ForCausalLM:
    """A model whose blocks hold linear layers."""
    torch.manual_seed(1)
    sizes = {
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "head_dim": 8,
    }
    return Qwen3ForCausalLM(Qwen3Config(vocab_size=32, num_key_value_heads=1, attention_dropout=0.1, **sizes))


def finish(folder: Path, **options) -> float:
    trainer = make(folder, **options)
    output = trainer.train()
    trainer.save_model(str(folder / "final"))
    return output.training_loss


def metrics(folder: Path) -> list[dict]:
    return MetricsLog(folder / "metrics.jsonl").read()


SETTINGS = {
    "in the middle of an epoch": {"save_steps": 4},
    "at the end of an epoch": {"save_steps": 12, "max_steps": 26},
    "between two logs": {"save_steps": 7, "logging_steps": 5},
    "per epoch": {
        "save_strategy": "epoch",
        "eval_strategy": "epoch",
        "logging_strategy": "epoch",
        "eval_rows": tiny_rows(6),
        "max_steps": 26,
    },
    "evaluating at the start": {
        "eval_on_start": True,
        "eval_strategy": "steps",
        "eval_steps": 5,
        "eval_rows": tiny_rows(6),
    },
    "bfloat16": {"bf16": True},
    "a stream": {"rows": Stream()},
    "moving average": {"ema_decay": 0.9},
    "muon": {"muon_learning_rate": 0.02, "model": tiny_qwen},
    "best": {
        "load_best_model_at_end": True,
        "eval_strategy": "steps",
        "eval_steps": 4,
        "save_total_limit": 1,
        "eval_rows": tiny_rows(6),
    },
}


@pytest.mark.parametrize("name", SETTINGS)
def test_a_resumed_run_equals_an_undisturbed_one(tmp_path, name):
    options = SETTINGS[name]
    undisturbed = finish(tmp_path / "undisturbed", **options)
    for step in (9, 15):
        with pytest.raises(Interrupted):
            make(tmp_path / "resumed", interrupt_at=step, **options).train()
    assert finish(tmp_path / "resumed", **options) == undisturbed
    result = compare(tmp_path / "undisturbed", tmp_path / "resumed")
    assert result["equal"], result


def test_the_comparison_sees_a_different_run(tmp_path):
    finish(tmp_path / "one", max_steps=4)
    finish(tmp_path / "other", max_steps=4, seed=43)
    result = compare(tmp_path / "one", tmp_path / "other")
    assert result["differing"] > 0
    assert result["unequal"] > 0


def test_a_run_killed_after_its_last_checkpoint_takes_no_further_step(tmp_path):
    finish(tmp_path, max_steps=6, save_steps=6)
    before = metrics(tmp_path)
    trainer = make(tmp_path, max_steps=6, save_steps=6)
    trainer.train()
    assert trainer.state.global_step == 6
    assert [line["step"] for line in metrics(tmp_path)] == [line["step"] for line in before]
    assert metrics(tmp_path)[-1]["train_loss"] == before[-1]["train_loss"]


def test_checkpoints_are_complete_and_rotated_and_the_best_one_is_named_by_its_final_folder(tmp_path):
    trainer = make(tmp_path, **SETTINGS["best"], learning_rate=3.0, lr_scheduler_type="constant")
    trainer.train()
    best = trainer.state.best_global_step
    kept = sorted(path.name for path in tmp_path.glob("checkpoint-*"))
    assert kept == sorted({f"checkpoint-{best}"} | ({"checkpoint-20"} if best == 20 else set()))
    assert all(is_complete(path) for path in tmp_path.glob("checkpoint-*"))
    assert trainer.state.best_model_checkpoint == str(tmp_path / f"checkpoint-{best}")
    state = json.loads((tmp_path / f"checkpoint-{best}" / "trainer_state.json").read_text())
    assert state["best_model_checkpoint"] == str(tmp_path / f"checkpoint-{best}")
    assert not (tmp_path / ".partial").exists()


def test_named_loss_terms_are_averaged_and_logged(tmp_path):
    torch.manual_seed(1)
    model = TermsModel(tiny_model().config)
    # The model's own loss is divided by the tokens of both micro-batches, so that a step's loss is the sum of two.
    make(tmp_path, model=model, max_steps=6).train()
    lines = [line for line in metrics(tmp_path) if "loss" in line]
    assert len(lines) == 3
    for line in lines:
        assert line["half_loss"] == pytest.approx(line["loss"] / 4, rel=1e-5)


def test_accumulated_batches_weigh_every_token_alike(tmp_path):
    # Rows of different lengths of targets: a mean of micro-batch means would differ from the whole batch's mean.
    rows = tiny_rows(8)
    rows = [{**row, "labels": [-100] * (index % 4) + row["labels"][index % 4 :]} for index, row in enumerate(rows)]
    losses = []
    for name, size, accumulation in (("whole", 8, 1), ("parts", 2, 4)):
        model = tiny_model()
        model.config.resid_pdrop = model.config.embd_pdrop = model.config.attn_pdrop = 0.0
        model = GPT2LMHeadModel(model.config)
        torch.manual_seed(3)
        model.init_weights()
        make(
            tmp_path / name,
            model=model,
            rows=rows,
            max_steps=3,
            per_device_train_batch_size=size,
            gradient_accumulation_steps=accumulation,
            logging_steps=1,
        ).train()
        losses.append([line["loss"] for line in metrics(tmp_path / name) if "loss" in line])
    assert losses[0][0] == pytest.approx(losses[1][0], rel=1e-5)


def test_a_torn_checkpoint_is_not_resumed_from(tmp_path):
    with pytest.raises(Interrupted):
        make(tmp_path, interrupt_at=10).train()
    (tmp_path / "checkpoint-8" / "optimizer.pt").write_bytes(b"torn")
    trainer = make(tmp_path)
    trainer.checkpoints.clean()
    assert sorted(path.name for path in tmp_path.glob("checkpoint-*")) == ["checkpoint-4"]
    with pytest.raises(CheckpointError, match="no complete checkpoint"):
        trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-8"))


def test_resume_false_does_not_touch_a_folder_with_checkpoints(tmp_path):
    with pytest.raises(Interrupted):
        make(tmp_path, interrupt_at=5).train()
    before = (tmp_path / "metrics.jsonl").read_text()
    with pytest.raises(RecipeError, match=r"resume is off and .* holds checkpoint-4"):
        make(tmp_path, resume=False).train()
    assert (tmp_path / "metrics.jsonl").read_text() == before


def test_a_checkpoint_of_other_processes_is_refused(tmp_path):
    with pytest.raises(Interrupted):
        make(tmp_path, interrupt_at=5).train()
    checkpoint = tmp_path / "checkpoint-4"
    mark = json.loads((checkpoint / "complete.json").read_text())
    (checkpoint / "progress_0.json").rename(checkpoint / "progress_1.json")
    mark["files"]["progress_1.json"] = mark["files"].pop("progress_0.json")
    (checkpoint / "complete.json").write_text(json.dumps(mark))
    with pytest.raises(CheckpointError, match="another number of processes"):
        make(tmp_path).train()


def test_a_loss_that_is_not_a_number_ends_the_run_at_its_step(tmp_path):
    with pytest.raises(FloatingPointError, match="at step"):
        make(tmp_path, learning_rate=1e30, max_grad_norm=0.0, logging_steps=1, lr_scheduler_type="constant").train()
    assert all(math.isfinite(line["loss"]) for line in metrics(tmp_path))


def test_a_file_in_the_way_of_a_checkpoint_is_an_output_error(tmp_path):
    (tmp_path / ".partial").write_text("in the way")
    trainer = make(tmp_path)
    trainer.checkpoints.clean = lambda: None
    with pytest.raises(OutputError, match="cannot write"):
        trainer.train()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"eval_strategy": "epoch"}, "needs save_strategy: epoch"),
        ({"save_only_model": True}, "set resume: false"),
        ({"enable_jit_checkpoint": True}, "in place"),
        ({"ema_decay": 1.5}, "between 0 and 1"),
        ({"output_dir": ""}, "output_dir is missing"),
    ],
)
def test_arguments_that_a_resumed_run_could_not_repeat_are_refused(tmp_path, changes, message):
    with pytest.raises(RecipeError, match=message):
        tiny_arguments(tmp_path, **changes)


def test_the_moving_average_follows_its_formula(tmp_path):
    seen = []

    class Watch(TrainerCallback):
        def on_step_end(self, args, state, control, model=None, **kwargs):
            seen.append(model.lm_head.weight.detach().clone())

    model = tiny_model()
    expected = model.lm_head.weight.detach().clone()
    trainer = make(tmp_path, model=model, max_steps=3, ema_decay=0.2, save_strategy="no")
    trainer.add_callback(Watch())
    trainer.train()
    for step, weight in enumerate(seen, 1):
        decay = min(0.2, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * weight
    torch.testing.assert_close(trainer.average.average["transformer.wte.weight"], expected)


@pytest.mark.parametrize("variable", ["ACCELERATE_USE_FSDP", "ACCELERATE_USE_DEEPSPEED"])
def test_an_engine_that_was_asked_for_and_does_not_run_is_refused(monkeypatch, variable):
    accelerator = Accelerator(cpu=True)
    check_engine(accelerator)
    monkeypatch.setenv(variable, "true")
    with pytest.raises(RecipeError, match=rf"was asked for \({variable}\), but NO runs"):
        check_engine(accelerator)


def test_a_trainer_publishes_nothing_by_itself(tmp_path):
    with pytest.raises(RecipeError, match="run the stage with --push_to_hub"):
        make(tmp_path, push_to_hub=True)
    for change in ({"hub_strategy": "every_save"}, {"hub_always_push": True}):
        with pytest.raises(RecipeError, match="a run is pushed whole"):
            tiny_arguments(tmp_path, push_to_hub=True, **change)
