"""The loop for visual tokenizers: its terms, its discriminator, and its resume."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image
from torch.utils.data import IterableDataset
from training.kill_resume import compare, stacked, tiny_pictures, tiny_tokenizer, tiny_tokenizer_arguments

from unimm.errors import CheckpointError, DataError, RecipeError
from unimm.tokenizers import VQTokenizer
from unimm.training.averages import mean_and_interval
from unimm.training.outputs import MetricsLog
from unimm.training.recipes import LossSection
from unimm.training.tokenizer_trainer import TokenizerTrainer, psnr

PATCHES = {"model_type": "unimm_patch_discriminator", "base_channels": 4, "num_layers": 1}


class Interrupted(Exception):
    """Ends a run as abruptly as a kill does."""


class InterruptedTrainer(TokenizerTrainer):
    interrupt_at = -1

    def _optimizer_step(self, batches):
        if self.step == self.interrupt_at:
            raise Interrupted
        super()._optimizer_step(batches)


class Stream(IterableDataset):
    def __iter__(self):
        while True:
            yield from tiny_pictures(7)


def make(folder: Path, *, interrupt_at=-1, rows=None, loss=None, samples=0, **changes) -> TokenizerTrainer:
    loss = LossSection(
        **{"adversarial_weight": 0.1, "adversarial_start_step": 6, "discriminator": PATCHES} | (loss or {})
    )
    trainer = InterruptedTrainer(
        tiny_tokenizer(),
        tiny_tokenizer_arguments(folder, **changes),
        train_dataset=tiny_pictures() if rows is None else rows,
        eval_dataset=tiny_pictures(6),
        collator=stacked,
        loss=loss,
        sample_every_steps=samples,
    )
    trainer.interrupt_at = interrupt_at
    return trainer


def metrics(folder: Path) -> list[dict]:
    return MetricsLog(folder / "metrics.jsonl").read()


@pytest.mark.parametrize(
    "options",
    [
        {"save_steps": 4, "ema_decay": 0.9},
        {"save_steps": 7, "bf16": True, "lr_scheduler_type": "cosine"},
        {"rows": Stream(), "loss": {"adversarial_weight": 0.0}},
    ],
    ids=["discriminator and average", "bfloat16 at the end of an epoch", "a stream without a discriminator"],
)
def test_a_resumed_run_equals_an_undisturbed_one(tmp_path, options):
    def finish(folder: Path) -> None:
        trainer = make(folder, **options)
        trainer.train()
        trainer.unwrapped.save_pretrained(folder / "final")

    finish(tmp_path / "undisturbed")
    for step in (9, 15):
        with pytest.raises(Interrupted):
            make(tmp_path / "resumed", interrupt_at=step, **options).train()
    finish(tmp_path / "resumed")
    result = compare(tmp_path / "undisturbed", tmp_path / "resumed")
    assert result["equal"], result


def test_the_discriminator_counts_from_its_start_step_on(tmp_path):
    trainer = make(tmp_path, max_steps=8, logging_steps=1)
    weights = [one.detach().clone() for one in trainer.discriminator.parameters()]
    trainer.train()
    lines = {line["step"]: line for line in metrics(tmp_path) if "loss" in line}
    assert [step for step, line in lines.items() if "discriminator_loss" in line] == [7, 8]
    assert any(
        not torch.equal(one, other) for one, other in zip(weights, trainer.discriminator.parameters(), strict=True)
    )
    for line in lines.values():
        terms = [value for name, value in line.items() if name.endswith("_loss") and name != "discriminator_loss"]
        assert line["loss"] == pytest.approx(sum(terms), abs=1e-5)
        assert {"psnr", "codebook_usage", "grad_norm", "learning_rate"} <= line.keys()


def test_the_tokenizer_learns_the_same_with_and_without_a_discriminator_that_has_not_started(tmp_path):
    results = []
    for weight in (0.0, 0.1):
        folder = tmp_path / str(weight)
        make(folder, max_steps=5, loss={"adversarial_weight": weight}, logging_steps=1).train()
        results.append([line["loss"] for line in metrics(folder) if "loss" in line])
    assert results[0] == results[1]


def test_a_run_lowers_its_loss_and_its_metrics_are_of_the_held_out_pictures(tmp_path):
    trainer = make(tmp_path, max_steps=40, learning_rate=5e-3, loss={"adversarial_weight": 0.0})
    last = trainer.train()
    losses = [line["reconstruction_loss"] for line in metrics(tmp_path) if "reconstruction_loss" in line]
    assert losses[-1] < losses[0]
    results = trainer.evaluate()
    assert results["psnr"]["n"] == 6
    assert results["psnr"]["value"] == pytest.approx(last["eval_psnr"])
    trainer.tokenizer.eval()
    with torch.no_grad():
        pixels = stacked(tiny_pictures(6))["pixel_values"]
        difference = trainer.tokenizer(pixels).reconstruction.clamp(-1, 1) - pixels
    assert results["absolute_error"]["value"] == pytest.approx(difference.abs().mean().item(), rel=1e-4)
    low, high = results["psnr"]["interval"]
    assert low < results["psnr"]["value"] < high


def test_grids_show_originals_beside_reconstructions(tmp_path):
    make(tmp_path, max_steps=3, samples=2).train()
    assert sorted(path.name for path in (tmp_path / "samples").iterdir()) == ["step-000002.png", "step-000003.png"]
    with Image.open(tmp_path / "samples" / "step-000003.png") as picture:
        assert min(picture.size) > 128


def test_a_finished_run_takes_no_further_step(tmp_path):
    make(tmp_path, max_steps=4).train()
    before = metrics(tmp_path)
    trainer = make(tmp_path, max_steps=4)
    trainer.train()
    assert trainer.step == 4
    assert metrics(tmp_path) == before


def test_resume_false_does_not_touch_a_folder_with_checkpoints(tmp_path):
    make(tmp_path, max_steps=4).train()
    with pytest.raises(RecipeError, match="resume is off"):
        make(tmp_path, max_steps=8, resume=False).train()


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"rows": tiny_pictures(3)}, DataError, "3 rows do not fill one batch of 4"),
        ({"loss": {"perceptual_weight": 1.0}}, CheckpointError, "needs the VGG16 features"),
        (
            {"loss": {"perceptual_weight": 1.0, "perceptual_features": "nowhere"}},
            CheckpointError,
            "'nowhere' does not exist",
        ),
        ({"loss": {"discriminator": {"model_type": "patch"}}}, RecipeError, "must be one of unimm_patch_discriminator"),
        ({"loss": {"adversarial_weight": -1.0}}, RecipeError, "at least 0"),
        ({"max_steps": 0}, RecipeError, "max_steps must be 1 or more"),
        ({"learning_rate": 0.0}, RecipeError, "must be positive"),
    ],
)
def test_what_cannot_be_trained_is_refused(tmp_path, options, error, message):
    with pytest.raises(error, match=message):
        make(tmp_path, **options)
    assert not list(tmp_path.iterdir())


def test_a_tokenizer_without_a_last_weight_has_no_adaptive_weight(tmp_path, monkeypatch):
    monkeypatch.delattr("unimm.tokenizers.autoencoder.ConvolutionalTokenizer.last_weight")
    with pytest.raises(RecipeError, match="VQTokenizer does not have: set it to false"):
        make(tmp_path)
    assert isinstance(make(tmp_path, loss={"adaptive_weight": False}).unwrapped, VQTokenizer)


def test_a_frozen_tokenizer_is_refused(tmp_path):
    with pytest.raises(RecipeError, match="no weight of this VQTokenizer is trainable"):
        TokenizerTrainer(
            tiny_tokenizer().requires_grad_(False),
            tiny_tokenizer_arguments(tmp_path),
            train_dataset=tiny_pictures(),
            collator=stacked,
        )


def test_psnr_is_that_of_its_formula():
    difference = torch.full((2, 3, 4, 4), 0.2)
    difference[1] = 0
    assert psnr(difference).tolist() == pytest.approx([20.0, 100.0], abs=1e-4)


def test_an_interval_narrows_with_the_root_of_its_number():
    one, many = mean_and_interval(torch.tensor([0.0, 1.0] * 50)), mean_and_interval(torch.tensor([0.0, 1.0] * 5000))
    assert one["value"] == many["value"] == 0.5
    widths = [result["interval"][1] - result["interval"][0] for result in (one, many)]
    assert widths[0] / widths[1] == pytest.approx(10, rel=0.01)
    assert widths[1] == pytest.approx(2 * 1.96 * 0.5 / 100, rel=0.01)
