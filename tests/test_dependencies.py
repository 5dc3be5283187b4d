"""What works without a package, and what is said by what needs it."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from factories import build

from unimm import cli
from unimm.dependencies import EXTRAS, missing_dependency, needed_for
from unimm.errors import MissingDependencyError

ROOT = Path(__file__).parent.parent
PACKAGES = ("torchvision", "timm", "flash_attn", "trl", "diffusers", "datasets", "deepspeed", "bitsandbytes")
#: Modules that are made of a package, and what they need.
MADE_OF = {"unimm.data.pictures": "datasets"}


@pytest.fixture
def without(monkeypatch):
    return lambda package: monkeypatch.setitem(sys.modules, package, None)


@pytest.fixture
def command(monkeypatch, capsys):
    def run(*words):
        monkeypatch.setattr("sys.argv", ["unimm", *map(str, words)])
        with pytest.raises(SystemExit) as stop:
            cli.main()
        return stop.value.code, " ".join(capsys.readouterr().err.split())

    return run


def test_with_all_of_them_absent_every_module_imports_and_models_are_listed_described_and_run(tmp_path):
    build("raster").save_pretrained(tmp_path / "model")
    grid = tmp_path / "grid.png"
    program = f"""
import importlib, pkgutil, sys
sys.modules.update(dict.fromkeys({PACKAGES!r}))
import unimm
from unimm.errors import MissingDependencyError
for module in pkgutil.walk_packages(unimm.__path__, "unimm."):
    try:
        importlib.import_module(module.name)
    except MissingDependencyError as error:
        assert {MADE_OF!r}.get(module.name) == error.name, (module.name, error)
from unimm.cli import app
for words in (
    ["list"],
    ["info", "var:d16", "--memory"],
    ["generate", {str(tmp_path / "model")!r}, "--label", "1", "--out", {str(grid)!r}],
    ["verify", {str(ROOT / "tests/parity/llamagen/c2i")!r}, "--no-details"],
):
    app(words, standalone_mode=False)
"""
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False, cwd=ROOT)
    assert ran.returncode == 0, ran.stderr
    assert "17 of 17 rows within tolerance" in ran.stdout
    assert grid.stat().st_size > 100


@pytest.mark.parametrize("package", PACKAGES)
def test_a_picture_is_drawn_without_a_package_that_is_loaded_elsewhere(package, without, tmp_path, monkeypatch):
    without(package)
    build("scale").save_pretrained(tmp_path / "model")
    monkeypatch.setattr("sys.argv", ["unimm", "generate", str(tmp_path / "model"), "--label", "1"])
    monkeypatch.chdir(tmp_path)
    cli.app(standalone_mode=False)
    assert (tmp_path / "generated.png").stat().st_size > 100


@pytest.mark.parametrize(
    "words",
    [
        ("data", "check", "shapes"),
        ("data", "check", "digits"),
        ("data", "check", "photographs"),
        ("data", "export", "shapes", "rows.parquet"),
        ("sft", "--config", ROOT / "recipes/demo_digits/unified.yaml", "--dry_run", "--output_dir", "out"),
    ],
    ids=["check shapes", "check digits", "check photographs", "export", "sft"],
)
def test_commands_that_read_data_say_that_they_need_datasets(words, without, command, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    without("datasets")
    code, err = command(*words)
    assert code == 1
    assert err.endswith("datasets is needed for data sets: pip install datasets")
    assert list(tmp_path.iterdir()) == []


def test_mixing_data_sets_says_that_it_needs_datasets(without):
    from unimm.training.data import load_sections
    from unimm.training.recipes import DataSection

    without("datasets")
    with pytest.raises(MissingDependencyError, match="datasets is needed for data sets: pip install datasets"):
        load_sections([DataSection(card="shapes")])


def test_kl_tokenizers_say_that_they_need_diffusers(without):
    from unimm.tokenizers import KLTokenizer, KLTokenizerConfig

    without("diffusers")
    for make in (KLTokenizerConfig, lambda: KLTokenizer.from_diffusers("folder")):
        with pytest.raises(
            MissingDependencyError, match="diffusers is needed for KL tokenizers: pip install diffusers"
        ):
            make()


def test_quantized_drawing_says_that_it_needs_bitsandbytes(without, command, tmp_path):
    build("raster").save_pretrained(tmp_path)
    without("bitsandbytes")
    code, err = command("generate", tmp_path, "--label", 1, "--quantization", "nf4")
    assert code == 1
    assert "bitsandbytes is needed for weights in nf4: pip install 'unimm[quantization]'" in err


@pytest.mark.parametrize("asked", ["by the launcher", "by the recipe"])
def test_a_run_under_deepspeed_says_that_it_needs_deepspeed(asked, without, command, tmp_path, monkeypatch):
    without("deepspeed")
    monkeypatch.chdir(tmp_path)
    words = ["pretrain", "--config", ROOT / "recipes/llamagen/digits.yaml", "--output_dir", "out"]
    if asked == "by the launcher":
        monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    else:
        words += ["--training.deepspeed", "zero2.json"]
    code, err = command(*words)
    assert code == 1
    assert "deepspeed is needed for the engine that this run asks for: pip install 'unimm[deepspeed]'" in err
    assert list(tmp_path.iterdir()) == []


def test_only_failed_imports_become_this_error_and_it_keeps_the_packages_name():
    with (
        pytest.raises(MissingDependencyError, match="no_such_package is needed for a test") as caught,
        needed_for("a test"),
    ):
        import no_such_package.part  # noqa: F401
    assert caught.value.name == "no_such_package"
    assert isinstance(caught.value, ImportError)
    with pytest.raises(ZeroDivisionError), needed_for("a test"):
        _ = 1 / 0


def test_the_extras_that_are_named_bring_the_packages():
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    for package, extra in EXTRAS.items():
        assert any(one.startswith(package) for one in extras[extra])
        assert f"pip install 'unimm[{extra}]'" in str(missing_dependency(package, "a test"))
