"""Fresh processes at a fraction of their price: the stack is imported once, and every program runs in a fork of it.

    python client.py            (reads one JSON line per program, writes one per result)

transformers is imported here and unimm is not: a program that needs it imports it, and one that must not have it says so.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import sys
import traceback
from typing import Any


class Absent:
    """Makes a package look as if it were not installed."""

    def __init__(self, package: str):
        self.package = package

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> None:
        if name.partition(".")[0] == self.package:
            raise ModuleNotFoundError(f"No module named '{self.package}'", name=self.package)


def main() -> None:
    import datasets  # noqa: F401
    import peft  # noqa: F401
    import sklearn.datasets  # noqa: F401
    import torch
    import transformers
    from transformers import AutoImageProcessor, AutoModel, AutoProcessor, Trainer  # noqa: F401

    assert "unimm" not in sys.modules
    torch.set_num_threads(1)
    transformers.utils.logging.disable_progress_bar()
    answers = os.fdopen(os.dup(1), "w")
    # What a program's libraries print must not end up among the answers.
    os.dup2(2, 1)
    print(json.dumps({"ready": os.getpid()}), file=answers, flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        child = os.fork()
        if child == 0:
            os._exit(run(request))
        print(json.dumps({"pid": child}), file=answers, flush=True)
        _, status = os.waitpid(child, 0)
        print(json.dumps({"code": os.waitstatus_to_exitcode(status)}), file=answers, flush=True)
    os._exit(0)


def run(request: dict[str, Any]) -> int:
    """Runs a program in this process; what it prints goes into files, so that it is there whatever happens."""
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    out, err = (os.open(request[name], os.O_WRONLY | os.O_CREAT) for name in ("out", "err"))
    os.dup2(out, 1)
    os.dup2(err, 2)
    sys.stdout, sys.stderr = (io.TextIOWrapper(os.fdopen(fd, "wb"), write_through=True) for fd in (1, 2))
    os.environ.update(request["environment"])
    if request["absent"]:
        sys.meta_path.insert(0, Absent(request["absent"]))
    code = 0
    try:
        if "argv" in request:
            sys.argv = ["unimm", *request["argv"]]
            from unimm.cli import main as command

            command()
        else:
            exec(request["program"], {"__name__": "__main__"})
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    except BaseException:
        traceback.print_exc()
        code = 70
    with contextlib.suppress(OSError):
        sys.stdout.flush()
        sys.stderr.flush()
    return code


if __name__ == "__main__":
    main()
