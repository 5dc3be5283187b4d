"""Arguments of training that depend on the machine."""

import logging

import pytest
import torch

from unimm.training.arguments import UniMMTrainingArguments, computes_in_bfloat16


@pytest.mark.parametrize("capability", ["avx512_bf16", "amx_bf16", None])
def test_bfloat16_is_used_where_the_cpu_computes_in_it(capability, tmp_path, monkeypatch):
    found = {name: name == capability for name in ("avx512_bf16", "amx_bf16")}
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: found)
    assert computes_in_bfloat16(on_cpu=True) == (capability is not None)
    arguments = UniMMTrainingArguments(output_dir=str(tmp_path), use_cpu=True, bf16_where_native=True)
    assert arguments.bf16 == (capability is not None)
    # An arguments object of its own stays as it was asked for.
    assert not UniMMTrainingArguments(output_dir=str(tmp_path), use_cpu=True).bf16


def test_bfloat16_that_is_emulated_is_warned_about(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(torch.cpu, "get_capabilities", dict)
    with caplog.at_level(logging.WARNING):
        assert UniMMTrainingArguments(output_dir=str(tmp_path), use_cpu=True, bf16=True).bf16
    assert "bf16_where_native" in caplog.text
