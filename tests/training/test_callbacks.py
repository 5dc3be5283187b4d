"""What watches a run leaves it as it is."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from training.kill_resume import tiny_arguments, tiny_model, tiny_rows

from unimm.errors import RecipeError
from unimm.training.callbacks import AverageCallback, SamplesCallback, TensorBoardCallback
from unimm.training.outputs import MetricsLog, without_timing
from unimm.training.trainer import UniMMTrainer


def draw(model, step):
    torch.rand(5)
    assert not model.training
    return [np.full((8, 8, 3), step, dtype=np.uint8)] * 2, ["one", "two"]


def test_drawing_samples_does_not_change_the_losses(tmp_path):
    lines = []
    for name, callbacks in (("without", []), ("with", [SamplesCallback(draw, tmp_path / "samples", 2)])):
        arguments = tiny_arguments(tmp_path / name, max_steps=5, logging_steps=1)
        trainer = UniMMTrainer(tiny_model(), arguments, train_dataset=tiny_rows(), callbacks=callbacks)
        trainer.train()
        lines.append([without_timing(line) for line in MetricsLog(tmp_path / name / "metrics.jsonl").read()])
    assert lines[0] == lines[1]
    names = sorted(path.name for path in (tmp_path / "samples").iterdir())
    assert names == ["step-000002.png", "step-000004.png", "step-000005.png"]
    with Image.open(tmp_path / "samples" / "step-000004.png") as picture:
        assert (4, 4, 4) in [color for _, color in picture.getcolors(1 << 16)]


def test_a_grid_needs_a_positive_distance(tmp_path):
    with pytest.raises(RecipeError, match="at least 1, given 0"):
        SamplesCallback(draw, tmp_path, 0)


def test_events_of_a_killed_run_past_its_checkpoint_are_replaced(tmp_path):
    first = TensorBoardCallback(tmp_path)
    first.open(0)
    for step in range(1, 6):
        first.write({"loss": step, "eval_loss": 1.0, "text": "left out"}, step)
    first.close()
    second = TensorBoardCallback(tmp_path)
    second.open(3)
    second.write({"loss": 40.0}, 4)
    second.close()
    events = EventAccumulator(str(tmp_path)).Reload()
    assert [(event.step, event.value) for event in events.Scalars("train/loss")] == [(1, 1), (2, 2), (3, 3), (4, 40)]
    assert set(events.Tags()["scalars"]) == {"train/loss", "eval/loss"}


def test_an_average_survives_its_checkpoint_bit_for_bit(tmp_path):
    model = tiny_model()
    average = AverageCallback(0.9)
    average.start_fresh(model)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(random.random())
    average.update(model, 100)
    average.save_checkpoint(tmp_path)
    loaded = AverageCallback(0.9)
    loaded.load_checkpoint(tmp_path)
    assert loaded.average.keys() == average.average.keys()
    for name, value in average.average.items():
        assert torch.equal(value, loaded.average[name])
        assert not torch.equal(value, model.state_dict()[name])
    # The head shares its weight with the embedding and is kept once.
    assert len({"lm_head.weight", "transformer.wte.weight"} & average.average.keys()) == 1
