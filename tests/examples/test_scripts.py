"""The scripts of `examples/`, called as from a shell, on a tiny model with random weights."""

import importlib.util
import json
import re
import runpy
import shutil
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import AutoModel, AutoModelForMultimodalLM

from unimm.conversion.checkpoints import export
from unimm.data.shapes import shapes_dataset
from unimm.systems import get_system
from unimm.training.stages import run_stage

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = ROOT / "examples"


@pytest.fixture
def call(monkeypatch, capsys):
    """Runs a script with command-line words; gives what it printed."""

    def run(name, *words, code=0):
        monkeypatch.setattr(sys, "argv", [name, *map(str, words)])
        with pytest.raises(SystemExit) as end:
            runpy.run_path(str(EXAMPLES / f"{name}.py"), run_name="__main__")
        said = capsys.readouterr()
        assert (end.value.code or 0) == code, said.out + said.err
        # What went wrong stands in a frame, broken into lines.
        return said.out if code == 0 else " ".join(re.sub(r"[^ -~]+", " ", said.out + said.err).split())

    return run


@pytest.fixture
def stand_in(call, tmp_path):
    call("stand_in", tmp_path / "stand-in")
    return tmp_path / "stand-in"


def test_every_script_has_a_line_in_the_readme_that_names_its_command():
    lines = (EXAMPLES / "README.md").read_text().splitlines()
    for script in EXAMPLES.glob("*.py"):
        assert sum(f"]({script.name})" in line and f"examples/{script.name}" in line for line in lines) == 1, (
            script.name
        )


@pytest.mark.parametrize("name", ["generate_and_chat", "lora", "push_and_load"])
def test_without_the_demos_model_the_scripts_say_how_to_make_it(call, tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    words = ["me/model", "--license", "mit"] if name == "push_and_load" else []
    assert "no model in out/demo/unified/final yet: run `make demo` first" in call(name, *words, code=2)


def test_a_caption_is_drawn_and_two_questions_are_answered(call, stand_in, tmp_path):
    said = call("generate_and_chat", stand_in, "--caption", "a blue star", "--out", tmp_path / "new" / "one.png")
    assert Image.open(tmp_path / "new" / "one.png").size == (32, 32)
    assert said.count("user: ") == said.count("assistant: ") == 2
    again = call("generate_and_chat", stand_in, "--caption", "a blue star", "--out", tmp_path / "two.png")
    assert (tmp_path / "two.png").read_bytes() == (tmp_path / "new" / "one.png").read_bytes()
    assert said.splitlines()[1:] == again.splitlines()[1:]


@pytest.mark.needs("datasets", "peft")
def test_an_adapter_learns_and_gives_equal_outputs_when_it_is_loaded_again(call, stand_in, tmp_path):
    said = call("lora", stand_in, "--steps", 12, "--rows", 4, "--out", tmp_path / "adapter")
    losses = [float(loss) for loss in re.findall(r"loss ([\d.]+)", said)]
    assert losses[-1] < losses[0]
    assert "outputs are equal: True" in said
    assert not (tmp_path / "adapter" / "model.safetensors").exists()
    weights = AutoModelForMultimodalLM.from_pretrained(stand_in)
    weights.load_adapter(str(tmp_path / "adapter"))
    assert any(tensor.abs().sum() > 0 for name, tensor in weights.named_parameters() if "lora_B" in name)


@pytest.mark.parametrize(("system", "case"), [("llamagen", "c2i"), ("llamagen", "vq"), ("var", "generator")])
def test_a_reference_checkpoint_is_converted_verified_loaded_and_exported(call, tmp_path, system, case):
    said = call("convert_and_verify", system, ROOT / "tests" / "parity" / system / case, "--out", tmp_path)
    assert "WRONG" not in said
    assert said.count("ok  ") > 5
    assert re.search(r"exported.safetensors: [1-9]\d* tensors equal bit for bit", said)
    assert AutoModel.from_pretrained(tmp_path / "model").num_parameters() > 0


def test_numbers_that_are_not_reproduced_end_the_script_with_an_error(call, tmp_path):
    case = shutil.copytree(ROOT / "tests" / "parity" / "llamagen" / "c2i", tmp_path / "case")
    tensors = load_file(case / "io.safetensors")
    name = next(name for name, tensor in tensors.items() if name.startswith("out.") and tensor.is_floating_point())
    save_file({**tensors, name: tensors[name] + 1}, case / "io.safetensors")
    said = call("convert_and_verify", "llamagen", case, "--out", tmp_path / "out", code=1)
    assert said.count("WRONG") == 1
    assert f"WRONG {name.removeprefix('out.')}: error" in said
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_a_released_generator_and_its_tokenizer_come_back_as_two_files(call, tmp_path):
    system = get_system("llamagen")
    for preset in ("c2i-B-256", "vq-16"):
        export(system, AutoModel.from_config(system.preset(preset).config()), tmp_path / f"{preset}.safetensors")
    words = ["--tokenizer", tmp_path / "vq-16.safetensors", "--out", tmp_path / "out"]
    said = call("convert_and_verify", "llamagen", tmp_path / "c2i-B-256.safetensors", *words)
    assert len(re.findall(r"[1-9]\d* tensors equal bit for bit", said)) == 2


def folder_of_pictures(folder, with_captions):
    rows = list(shapes_dataset(task="captions", resolution=64, num_rows=6, seed=3))
    captions = []
    for number, row in enumerate(rows):
        name = f"{number}.png" if with_captions else f"{('left', 'right')[number % 2]}/{number}.png"
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        row["images"][0].save(folder / name)
        captions.append({"file_name": name, "text": f"Picture {number}, drawn."})
    if with_captions:
        (folder / "metadata.jsonl").write_text("".join(json.dumps(one) + "\n" for one in captions))
    return folder


@pytest.mark.needs("datasets")
def test_a_folder_with_captions_trains_a_unified_model_that_knows_its_words(call, tmp_path):
    folder = folder_of_pictures(tmp_path / "pictures", with_captions=True)
    said = call("train_on_your_folder", folder, "--out", tmp_path / "out", "--tiny")
    assert "6 pictures in" in said
    assert Image.open(tmp_path / "out" / "drawn.png").width > 128
    assert (tmp_path / "out" / "words.txt").read_text().split() == [",", ".", *"012345", "Picture", "drawn"]
    trained = AutoModel.from_pretrained(tmp_path / "out" / "tokenizer" / "final").state_dict()
    model = AutoModelForMultimodalLM.from_pretrained(tmp_path / "out" / "unified" / "final")
    assert all(torch.equal(model.tokenizer.state_dict()[name], tensor) for name, tensor in trained.items())
    again = call("train_on_your_folder", folder, "--out", tmp_path / "out", "--tiny")
    assert again.strip() == said.splitlines()[-1], "what was finished is not trained again"


@pytest.mark.needs("datasets")
def test_a_folder_of_classes_trains_a_class_conditional_model(call, tmp_path):
    folder = folder_of_pictures(tmp_path / "pictures", with_captions=False)
    said = call("train_on_your_folder", folder, "--out", tmp_path / "out", "--tiny")
    assert "2 pictures in" in said
    model = AutoModel.from_pretrained(tmp_path / "out" / "classes" / "final")
    assert model.config.condition_config.num_classes == 2


@pytest.mark.needs("datasets")
def test_pictures_without_captions_or_classes_are_refused_before_any_training(call, tmp_path):
    (tmp_path / "pictures").mkdir()
    Image.new("RGB", (64, 64)).save(tmp_path / "pictures" / "one.png")
    said = call("train_on_your_folder", tmp_path / "pictures", "--out", tmp_path / "out", "--tiny", code=2)
    assert "neither captions" in said
    assert not list((tmp_path / "out").iterdir())


@pytest.mark.needs("datasets")
@pytest.mark.parametrize(("stage", "name"), [("tokenizer", "tokenizer"), ("sft", "unified"), ("pretrain", "classes")])
def test_the_recipes_of_an_image_folder_run_at_toy_size(stage, name, tmp_path):
    recipe = ROOT / "recipes" / "image_folder" / f"{name}.yaml"
    result = run_stage(
        stage, ["--config", str(recipe), "--tiny", "--output_dir", str(tmp_path), "--tensorboard", "false"]
    )
    assert all(torch.isfinite(tensor).all() for tensor in AutoModel.from_pretrained(result.final).parameters())


@pytest.fixture(scope="module")
def own_plan():
    """The module of the script, loaded once: it registers its config with transformers."""
    spec = importlib.util.spec_from_file_location("own_plan", EXAMPLES / "own_plan.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules["own_plan"] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules["own_plan"]


@pytest.mark.parametrize("options", [{}, {"cache_implementation": "dynamic"}, {"use_cache": False}])
def test_steps_of_the_own_plan_give_the_teacher_forced_logits(own_plan, options):
    torch.manual_seed(0)
    model = own_plan.build().eval()
    truth, labels = torch.randint(0, 17, (3, 64)), torch.tensor([1, 5, 9])

    def place_the_truth(model, step, num_tokens, tensors):
        return {"ids": truth[:, num_tokens - 8 : num_tokens]}

    drawn = model.generate(labels=labels, callback_on_step_end=place_the_truth, output_logits=True, **options)
    assert torch.equal(drawn.sequences, truth)
    assert drawn.num_backbone_calls == 8
    with torch.no_grad():
        expected = model(image_ids=truth, labels=labels).logits
    assert expected.std() > 0.01
    assert torch.allclose(drawn.logits, expected, atol=1e-5)


def test_a_row_of_the_own_plan_sees_earlier_rows_and_nothing_of_its_own_tokens(own_plan):
    torch.manual_seed(0)
    model = own_plan.build().eval()
    ids, labels = torch.randint(0, 17, (1, 64)), torch.tensor([3])
    changed = ids.clone()
    changed[0, 20] = (changed[0, 20] + 1) % 17
    with torch.no_grad():
        before, after = model(image_ids=ids, labels=labels).logits, model(image_ids=changed, labels=labels).logits
    assert torch.equal(before[:, :24], after[:, :24])
    assert not torch.allclose(before[:, 24:], after[:, 24:])


def test_the_own_plan_learns_draws_and_comes_back_from_its_folder(own_plan, tmp_path, capsys):
    own_plan.main(steps=25, out=tmp_path)
    said = capsys.readouterr().out
    losses = [float(loss) for loss in re.findall(r"loss ([\d.]+)", said)]
    assert losses[-1] < 0.75 * losses[0]
    assert "8 backbone calls" in said
    assert Image.open(tmp_path / "drawn.png").width > 640
    assert isinstance(AutoModel.from_pretrained(tmp_path).plan, own_plan.RowsPlan)


def test_the_own_plan_refuses_a_pyramid(own_plan):
    from unimm import TokenLayout
    from unimm.errors import LayoutError

    with pytest.raises(LayoutError, match="rows of one grid"):
        own_plan.RowsPlanConfig().build(16, TokenLayout.pyramid([1, 2]), 8, 4)
