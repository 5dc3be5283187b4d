"""Runs killed with SIGKILL end as undisturbed ones do; `kill_resume.py` is the driver, in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

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
