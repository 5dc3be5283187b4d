"""What every test runs under: no optional packages, no network, one thread, fixed seeds, the parity cases.

`UNIMM_BLOCK=trl,diffusers` blocks further packages; the tests marked `needs` that use one of them are skipped, and listed.
"""

from __future__ import annotations

import importlib.util
import os
import random
import sys
from pathlib import Path

# None in `sys.modules` makes an import fail and `find_spec` find nothing: transformers, too, does without.
# It has to stand there before anything imports transformers.
OPTIONAL_PACKAGES = ("torchvision", "timm", "flash_attn") if os.environ.get("UNIMM_ALLOW_OPTIONAL") != "1" else ()
NAMED_PACKAGES = tuple(name.strip() for name in os.environ.get("UNIMM_BLOCK", "").split(",") if name.strip())
BLOCKED_PACKAGES = tuple(dict.fromkeys(name.replace("-", "_") for name in OPTIONAL_PACKAGES + NAMED_PACKAGES))
for package in BLOCKED_PACKAGES:
    if package in sys.modules:
        raise ImportError(f"{package} was imported before tests/conftest.py could block it")
    sys.modules[package] = None  # type: ignore[assignment]
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import json  # noqa: E402

import numpy as np  # noqa: E402
import pytest  # noqa: E402
import torch  # noqa: E402

torch.set_num_threads(1)

OWN_CASES = Path(__file__).parent / "parity"


def find_parity_cases() -> dict[str, Path]:
    """Folders of reference numbers of the systems that exist here, by `system/case`.

    Those of `tests/parity`, and all of the folder named by `UNIMM_PARITY`, which wins where both have a case.
    """
    from unimm.systems import system_names

    roots = [OWN_CASES] if OWN_CASES.is_dir() else []
    if named := os.environ.get("UNIMM_PARITY"):
        if not Path(named).is_dir():
            raise pytest.UsageError(f"UNIMM_PARITY names '{named}', which is no folder")
        roots.append(Path(named).resolve())
    cases = {}
    for root in roots:
        for numbers in sorted(root.rglob("io.safetensors")):
            system = json.loads((numbers.parent / "config.json").read_text())["system"]
            if system in system_names():
                cases[f"{system}/{numbers.parent.name}"] = numbers.parent
    return cases


@pytest.fixture(scope="session")
def parity_cases() -> dict[str, Path]:
    """Folders of reference numbers by `system/case`; see `find_parity_cases`."""
    return find_parity_cases()


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """A test that takes `parity_case` runs once per folder of reference numbers."""
    if "parity_case" in metafunc.fixturenames:
        cases = find_parity_cases()
        if not cases:
            raise pytest.UsageError(
                f"no reference numbers: neither in {OWN_CASES} nor in a folder named by UNIMM_PARITY"
            )
        metafunc.parametrize("parity_case", cases.values(), ids=cases.keys())


def pytest_report_header() -> list[str]:
    named = os.environ.get("UNIMM_PARITY", "nothing else (UNIMM_PARITY is not set)")
    return [
        f"packages blocked: {', '.join(BLOCKED_PACKAGES) or 'none'}",
        f"reference numbers: tests/parity and {named}",
    ]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests marked `gpu` or `needs` are skipped, and listed as such, where there is no CUDA device or no such package."""
    for item in items:
        if item.get_closest_marker("gpu") and not torch.cuda.is_available():
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))
        for marker in item.iter_markers("needs"):
            for package in marker.args:
                if importlib.util.find_spec(package) is None:
                    state = "blocked" if package in BLOCKED_PACKAGES else "not installed"
                    item.add_marker(pytest.mark.skip(reason=f"needs {package}, which is {state}"))


@pytest.fixture(autouse=True)
def _fixed_seeds() -> None:
    """What a test draws without a generator of its own does not depend on the tests before it."""
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)
