"""Recipes and examples, run as they stand at toy sizes."""

import json
import runpy
import sys
from pathlib import Path

import pytest
import yaml
from transformers import AutoModel, AutoModelForMultimodalLM

from unimm.training.recipes import RECIPES
from unimm.training.stages import run_stage

ROOT = Path(__file__).resolve().parents[2]
STAGE_RECIPES = sorted(path for path in (ROOT / "recipes").rglob("*.yaml") if path.parent.name != "accelerate")


def stage_of(path):
    if "image_size" in yaml.safe_load(path.read_text()):
        return "tokenizer"
    return "sft" if "processor" in yaml.safe_load(path.read_text()) else "pretrain"


def recipe_case(path):
    """A recipe as a test case, which needs diffusers where its model has one of that package's autoencoders."""
    is_latent = "unimm_kl_tokenizer" in path.read_text() or path.parent.name == "mar"
    marks = pytest.mark.needs("diffusers") if is_latent else ()
    return pytest.param(path, marks=marks, id=f"{path.parent.name}-{path.stem}")


@pytest.mark.needs("datasets")
@pytest.mark.parametrize("path", [recipe_case(path) for path in STAGE_RECIPES])
def test_every_recipe_describes_itself_without_weights(path, tmp_path):
    result = run_stage(stage_of(path), ["--config", str(path), "--output_dir", str(tmp_path / "out"), "--dry_run"])
    assert result.description is not None
    assert result.description.num_parameters > 0
    assert not (tmp_path / "out").exists()


def test_every_stage_has_a_recipe():
    assert {stage_of(path) for path in STAGE_RECIPES} == set(RECIPES)


@pytest.mark.needs("datasets")
@pytest.mark.parametrize("name", ["demo", "demo_digits"])
def test_the_demo_trains_judges_saves_and_reloads_at_toy_size(name, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["demo", "--tiny", "--out", str(tmp_path)])
    reloads = []

    def reload_here(words, check):
        assert check
        monkeypatch.setattr(sys, "argv", words[1:])
        runpy.run_path(words[1], run_name="__main__")
        reloads.append(words)

    # A start of the stack takes many seconds: the new process is this one. `make demo` starts a real one.
    monkeypatch.setattr("subprocess.run", reload_here)
    runpy.run_path(str(ROOT / "examples" / f"{name}.py"), run_name="__main__")
    assert len(reloads) == 1
    for part in ("gallery.png", "curves.png", "table.md", "answers.txt", "unified/final/README.md"):
        assert (tmp_path / part).stat().st_size > 0
    record = json.loads((tmp_path / "results.json").read_text())
    assert record["unified"]
    assert all({"n", "right", "interval"} <= set(rate) for rate in record["unified"].values())
    model = AutoModelForMultimodalLM.from_pretrained(tmp_path / "unified" / "final")
    assert model.layout.length == 64


@pytest.mark.needs("datasets")
@pytest.mark.parametrize("name", ["llamagen/shapes-text", "llamagen/t2i-stage1", "infinity/shapes", "infinity/2b-256"])
def test_the_text_conditional_recipes_train_at_toy_size(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = [
        "--config",
        str(ROOT / "recipes" / f"{name}.yaml"),
        "--tiny",
        "--use_cpu",
        "true",
        "--tensorboard",
        "false",
    ]
    result = run_stage("pretrain", words)
    model = AutoModel.from_pretrained(result.final)
    assert model.generate(prompt="a red circle", guidance_scale=2.0).images.shape == (1, 3, 32, 32)
