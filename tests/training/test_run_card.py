"""The model card and the description of a run."""

from __future__ import annotations

from unittest import mock

import pytest
import torch
import yaml
from factories import build, raster_config
from huggingface_hub import ModelCard
from PIL import Image
from rich.console import Console
from training.kill_resume import tiny_model, tiny_tokenizer
from transformers import AutoModel

from unimm import files
from unimm.errors import ConfigError, OutputError
from unimm.training.description import describe_model, describe_tokenizer, measure_activations
from unimm.training.run_card import results_table, write_run_card

RECIPE = {"model": {"path": "a"}, "training": {"max_steps": 3}}
RATE = {"n": 1000, "right": 0.853, "interval": [0.83, 0.874]}


def test_a_card_has_its_header_numbers_recipe_and_loading(tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "grid.png")
    card = write_run_card(
        tmp_path / "final",
        build("raster"),
        RECIPE,
        stage="pretrain",
        title="A generator",
        tags=["shapes", "unimm"],
        datasets=["shapes", "owner/pictures"],
        results={"one object": RATE, "psnr": {"n": 6, "value": 21.5, "interval": (20.0, 23.0)}},
        metrics={"train_loss": 1.23456},
        picture=tmp_path / "grid.png",
    )
    read = ModelCard.load(card)
    assert read.data.library_name == "unimm"
    assert read.data.license == "apache-2.0"
    assert read.data.tags == ["unimm", "pretrain", "shapes"]
    assert read.data.datasets == ["owner/pictures"]
    assert read.data.pipeline_tag == "unconditional-image-generation"
    assert "| one object | 85.3% | 83.0% to 87.4% | 1,000 |" in read.text
    assert "| psnr | 21.5 | 20 to 23 | 6 |" in read.text
    assert "| train_loss | 1.235 |" in read.text
    assert yaml.safe_load(read.text.split("```yaml\n")[1].split("```")[0]) == RECIPE
    assert (tmp_path / "final" / "samples.png").is_file()


def test_the_loading_lines_of_a_card_run(tmp_path):
    model = build("raster")
    model.save_pretrained(tmp_path)
    write_run_card(tmp_path, model, RECIPE, stage="pretrain")
    code = ModelCard.load(tmp_path / "README.md").text.split("```python\n")[1].split("```")[0]
    names: dict = {}
    exec(code.replace("FOLDER_OR_HUB_ID", str(tmp_path)), names)
    assert names["pixels"].shape == (2, 3, 16, 16)


def test_a_rate_without_its_number_and_interval_is_refused():
    with pytest.raises(ConfigError, match="'one object' needs"):
        results_table({"one object": {"right": 0.5}})


def test_a_card_is_written_whole_or_not_at_all(tmp_path):
    model = build("raster")
    with (
        mock.patch.object(files.os, "replace", side_effect=OSError(28, "No space left on device")),
        pytest.raises(OutputError),
    ):
        write_run_card(tmp_path, model, RECIPE, stage="pretrain")
    assert not list(tmp_path.iterdir())


def test_a_description_counts_parameters_bytes_and_tokens():
    with torch.device("meta"):
        model = AutoModel.from_config(raster_config())
    described = describe_model(model, batch_size=4)
    assert described.num_parameters == sum(one.numel() for one in model.parameters())
    frozen = sum(one.numel() for one in model.tokenizer.parameters())
    assert described.num_trainable == described.num_parameters - frozen
    assert described.tokens_per_sample == 16
    assert described.memory.gradients == 4 * described.num_trainable
    assert described.memory.optimizer == 8 * described.num_trainable
    assert described.memory.total > described.memory.weights >= 4 * described.num_parameters
    printed = Console(width=100)
    with printed.capture() as captured:
        printed.print(described.table())
    assert f"{described.num_parameters:,}" in captured.get()
    assert "tokens per sample" in captured.get()


def test_activations_grow_with_the_batch_and_shrink_with_half_precision_and_checkpointing():
    model = build("conditional")
    sizes = [
        describe_model(model, tokens_per_sample=40, **options).memory.activations
        for options in ({}, {"batch_size": 3}, {"half_precision": True}, {"checkpointing": True})
    ]
    assert sizes[1] == 3 * sizes[0]
    assert sizes[2] < sizes[0]
    assert sizes[3] < sizes[0]


def test_estimated_activations_are_of_the_measured_size():
    model = tiny_model()
    ids = torch.randint(32, (8, 16))
    measured = measure_activations(lambda: model(input_ids=ids, labels=ids))
    estimated = describe_model(model, batch_size=8, tokens_per_sample=16).memory.activations
    assert 0.3 < estimated / measured < 3


def test_a_tokenizers_activations_are_those_of_its_forward_pass():
    with torch.device("meta"):
        on_meta = type(tiny_tokenizer())(tiny_tokenizer().config)
    described = describe_tokenizer(on_meta, 8, 8, batch_size=2)
    real = tiny_tokenizer()
    measured = measure_activations(lambda: real.decode_features(real.encode_features(torch.rand(2, 3, 8, 8))))
    assert described.memory.activations == pytest.approx(measured, rel=0.2)
    assert described.tokens_per_sample == 16
