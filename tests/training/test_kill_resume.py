"""Runs killed with SIGKILL end as undisturbed ones do; `kill_resume.py` is the driver, in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from training.kill_resume import compare

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="the driver forks its runs")


def drive(*words: str) -> str:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "120", "HF_HUB_OFFLINE": "1"}
    finished = subprocess.run(
        [sys.executable, str(Path(__file__).with_name("kill_resume.py")), *words],
        env=environment,
        capture_output=True,
        text=True,
        timeout=500,
    )
    assert finished.returncode == 0, finished.stdout + finished.stderr
    return finished.stdout


def test_a_killed_run_ends_as_an_undisturbed_one():
    printed = drive("--kills", "2", "--inside_checkpoint", "1", "--max_steps", "60")
    assert printed.count("2 kills (1 inside a checkpoint write)") == 2
    assert printed.count(" 0 differ") == 2


@pytest.mark.slow
def test_twenty_kills_change_nothing():
    printed = drive("--kills", "20", "--inside_checkpoint", "5", "--max_steps", "300")
    assert printed.count("20 kills (5 inside a checkpoint write)") == 2


@pytest.mark.slow
@pytest.mark.parametrize("trainer", ["transformers", "tokenizer"])
def test_two_processes_that_end_together_resume_together(trainer, tmp_path):
    script = Path(__file__).with_name("two_processes.py")
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--nproc_per_node",
        "2",
        "--standalone",
        str(script),
        trainer,
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true", "HF_HUB_OFFLINE": "1"}
    for folder, step, status in (("undisturbed", -1, 0), ("resumed", 9, 1), ("resumed", -1, 0)):
        finished = subprocess.run(
            [*command, str(tmp_path / folder), str(step)], env=environment, capture_output=True, text=True, timeout=200
        )
        assert finished.returncode == status, finished.stdout + finished.stderr
    assert (tmp_path / "resumed" / "checkpoint-20" / "progress_1.json").is_file()
    result = compare(tmp_path / "undisturbed", tmp_path / "resumed")
    assert result["equal"], result
