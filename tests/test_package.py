"""The package as a whole: what it imports, what it declares, and what its wheel holds."""

from __future__ import annotations

import ast
import importlib.metadata
import importlib.util
import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]

IMPORTED_WHERE_USED = (
    "trl",
    "datasets",
    "diffusers",
    "deepspeed",
    "bitsandbytes",
    "tensorboard",
    "skimage",
    "gradio",
)
NEVER_NEEDED = ("torchvision", "timm", "flash_attn")


def requirements(*groups: str) -> list[Requirement]:
    listed = list(PROJECT["dependencies"])
    for group in groups or PROJECT["optional-dependencies"]:
        listed += PROJECT["optional-dependencies"][group]
    return [one for one in map(Requirement, listed) if one.name != PROJECT["name"]]


def test_importing_unimm_needs_no_optional_package_and_loads_no_heavy_one():
    program = (
        f"import sys; sys.modules.update(dict.fromkeys({NEVER_NEEDED!r})); import unimm, unimm.cli;"
        f"print([name for name in {IMPORTED_WHERE_USED!r} if name in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stderr
    assert found.stdout.strip() == "[]"


def test_every_package_that_unimm_imports_is_declared():
    distributions = importlib.metadata.packages_distributions()
    declared = {canonicalize_name(one.name) for one in requirements()}
    undeclared = {}
    for path in sorted((ROOT / "unimm").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.level == 0:
                names = [str(node.module)]
            else:
                continue
            for name in {name.split(".")[0] for name in names} - sys.stdlib_module_names - {"unimm"}:
                candidates = distributions.get(name, [name])
                if not declared & {canonicalize_name(candidate) for candidate in candidates}:
                    undeclared.setdefault(name, path.relative_to(ROOT).as_posix())
    assert undeclared == {}


def test_constraints_pin_every_requirement_within_its_range():
    lines = [line.partition("#")[0].strip() for line in (ROOT / "constraints.txt").read_text().splitlines()]
    pins = {canonicalize_name(name): version for name, _, version in (line.partition("==") for line in lines if line)}
    outside = [
        f"{one} against the pin {pins.get(canonicalize_name(one.name))}"
        for one in requirements()
        if not one.specifier.contains(pins.get(canonicalize_name(one.name), "0"))
    ]
    assert outside == []
    assert pins["torch"] == "2.13.0"


def test_the_version_is_the_same_wherever_it_is_written():
    import unimm

    assert f"\nversion: {unimm.__version__}\n" in (ROOT / "CITATION.cff").read_text()
    assert f"\n## [{unimm.__version__}]" in (ROOT / "CHANGELOG.md").read_text()


def test_the_readmes_table_of_systems_is_what_the_systems_say():
    specification = importlib.util.spec_from_file_location("build_docs", ROOT / "docs" / "build.py")
    build = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(build)
    readme = (ROOT / "README.md").read_text()
    assert build.with_table(readme, build.systems_table()) == readme, "run `make docs`"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder), str(ROOT)]
    built = subprocess.run(command, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stdout + built.stderr
    return next(folder.glob("unimm-*.whl"))


@pytest.mark.slow
def test_the_wheel_holds_the_whole_package_with_its_data_and_nothing_else(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    expected = {"unimm/py.typed"}
    for folder, inside, patterns in (
        ("unimm", "unimm", ("*.py", "*.json", "*.md")),
        ("data_cards", "unimm/_data_cards", ("*.md",)),
        ("recipes", "unimm/_recipes", ("*.yaml",)),
    ):
        for pattern in patterns:
            found = {
                f"{inside}/{path.relative_to(ROOT / folder).as_posix()}" for path in (ROOT / folder).rglob(pattern)
            }
            assert found, f"no {pattern} in {folder}/"
            expected |= found
    assert expected <= names
    assert {name.split("/")[0] for name in names if not re.match(r"unimm-[^/]+\.dist-info/", name)} == {"unimm"}


@pytest.mark.slow
def test_the_installed_wheel_imports_every_module_outside_of_the_tree(wheel, tmp_path):
    target = tmp_path / "site"
    command = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "--no-deps",
        "--no-index",
        "--target",
        str(target),
        str(wheel),
    ]
    installed = subprocess.run(command, capture_output=True, text=True, check=False)
    assert installed.returncode == 0, installed.stderr
    program = (
        "import importlib, importlib.metadata, pathlib, pkgutil, sys\n"
        f"sys.modules.update(dict.fromkeys({NEVER_NEEDED!r}))\n"
        f"sys.path.insert(0, {str(target)!r})\n"
        "import unimm\n"
        "for module in pkgutil.walk_packages(unimm.__path__, 'unimm.'):\n"
        "    importlib.import_module(module.name)\n"
        "distribution = importlib.metadata.distribution('unimm')\n"
        "print(unimm.__file__, distribution.version == unimm.__version__)\n"
        "print(distribution.metadata['License-Expression'])\n"
        "print(*[one.value for one in distribution.entry_points if one.group == 'console_scripts'])\n"
    )
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=tmp_path, check=False)
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.splitlines() == [f"{target}/unimm/__init__.py True", "Apache-2.0", "unimm.cli:main"]
    assert (target / "unimm" / "py.typed").is_file()
