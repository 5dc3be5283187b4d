"""The description of a run."""

from __future__ import annotations

import pytest
import torch
from factories import build, raster_config
from rich.console import Console
from training.kill_resume import tiny_model, tiny_tokenizer
from transformers import AutoModel

from unimm.training.description import describe_model, describe_tokenizer, measure_activations


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
