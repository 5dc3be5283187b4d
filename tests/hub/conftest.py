"""The small Hub and a client for it, once per test session."""

from __future__ import annotations

import itertools
import json
import os
import signal
import subprocess
import sys
import threading
from dataclasses import dataclass
from pathlib import Path

import pytest
from hub.server import TOKEN, Hub

ROOT = Path(__file__).resolve().parents[2]


@dataclass
class Result:
    """What a program came to: its exit code (negative for a signal) and what it printed."""

    code: int
    out: str
    err: str


class Client:
    """Runs programs in processes that know the small Hub as the only one; see `client.py`."""

    def __init__(self, hub: Hub, folder: Path):
        self.folder = folder
        self.numbers = itertools.count()
        self.running: int | None = None
        environment = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
        environment |= {
            "HF_ENDPOINT": hub.url,
            "HF_HOME": str(folder / "home"),
            # The Xet protocol has no switch on the server's side.
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")]),
        }
        self.process = subprocess.Popen(
            [sys.executable, str(Path(__file__).parent / "client.py")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )
        self.answer()

    def answer(self) -> dict:
        line = self.process.stdout.readline()
        assert line, "the client has ended"
        return json.loads(line)

    def run(self, *, token: str | None = TOKEN, absent: str | None = None, cwd: Path | None = None, **work) -> Result:
        """Runs `argv` of the `unimm` command, or a `program`."""
        number = next(self.numbers)
        out, err = self.folder / f"{number}.out", self.folder / f"{number}.err"
        request = {
            "out": str(out),
            "err": str(err),
            "absent": absent,
            "environment": {} if token is None else {"HF_TOKEN": token},
            **work,
        }
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        self.running = self.answer()["pid"]
        code = self.answer()["code"]
        self.running = None
        return Result(code, out.read_text(), err.read_text())

    def unimm(self, *words: object, **options) -> Result:
        """Runs the `unimm` command."""
        return self.run(argv=[str(word) for word in words], **options)

    def python(self, program: str, **options) -> Result:
        """Runs a program."""
        return self.run(program=program, **options)

    def kill_running(self) -> None:
        """Ends the program that is running, as the machine's failure would."""
        os.kill(self.running, signal.SIGKILL)

    def close(self) -> None:
        self.process.stdin.close()
        self.process.wait(timeout=60)


@pytest.fixture(scope="session")
def _hub():
    with Hub() as server:
        yield server


@pytest.fixture
def hub(_hub):
    """The small Hub; its list of requests, its large files and its disturbances are the test's own."""
    _hub.requests.clear()
    _hub.objects.clear()
    _hub.during_upload = None
    yield _hub
    _hub.during_upload = None


@pytest.fixture(scope="session")
def client(_hub, tmp_path_factory):
    started = Client(_hub, tmp_path_factory.mktemp("client"))
    watchdog = threading.Timer(500, started.process.kill)
    watchdog.start()
    yield started
    watchdog.cancel()
    started.close()
