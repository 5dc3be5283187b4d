"""The command line, run in-process; a user's mistake is one message and exit code 1."""

import json
import shutil

import pytest
import torch
from factories import build, build_with_processor
from PIL import Image
from safetensors.torch import load_file

from unimm import cli
from unimm.errors import UniMMError
from unimm.models.building import replace_fields


def run(monkeypatch, capsys, *words):
    monkeypatch.setattr("sys.argv", ["unimm", *map(str, words)])
    try:
        cli.main()
        code = 0
    except SystemExit as stop:
        code = stop.code or 0
    captured = capsys.readouterr()
    return code, captured.out, captured.err


@pytest.fixture
def command(monkeypatch, capsys):
    return lambda *words: run(monkeypatch, capsys, *words)


def test_verify_prints_a_row_per_number_and_succeeds(command, parity_cases):
    code, out, _ = command("verify", parity_cases["llamagen/c2i"])
    assert code == 0
    assert "forward.logits" in out
    assert "17 of 17 rows within tolerance" in out


def test_verify_fails_on_numbers_that_do_not_agree(command, parity_cases, tmp_path):
    case = tmp_path / "c2i"
    shutil.copytree(parity_cases["llamagen/c2i"], case)
    config = json.loads((case / "config.json").read_text())
    config["constructor"]["norm_eps"] = 0.1
    (case / "config.json").write_text(json.dumps(config))
    code, out, _ = command("verify", case, "--no-details")
    assert code == 1
    assert "NO" in out


def test_list_names_every_system_and_info_counts_a_preset(command):
    code, out, _ = command("list")
    assert code == 0
    assert "llamagen" in out
    assert "2404.02905" in out
    code, out, _ = command("info", "var:d16")
    assert code == 0
    assert "302,219,520" in out


def test_generate_draws_a_grid_of_classes(command, tmp_path):
    build("raster").save_pretrained(tmp_path / "model")
    grid = tmp_path / "grid.png"
    words = ("--label", 1, "--label", 2, "--num_images", 2, "--guidance_scale", 2, "--top_k", 8, "--out", grid)
    code, out, err = command("generate", tmp_path / "model", *words)
    assert code == 0, err
    assert "4 pictures" in out
    assert grid.stat().st_size > 100


@pytest.mark.needs("bitsandbytes")
def test_generate_draws_with_quantized_weights(command, tmp_path):
    build("raster").save_pretrained(tmp_path / "model")
    grid = tmp_path / "grid.png"
    code, out, err = command("generate", tmp_path / "model", "--label", 1, "--quantization", "int8", "--out", grid)
    assert code == 0, err
    assert "1 pictures" in out
    assert "MatMul8bitLt" not in err
    assert grid.stat().st_size > 100


def test_generate_draws_a_grid_of_prompts_for_a_text_conditional_model(command, tmp_path):
    build("text_empty_prompt").save_pretrained(tmp_path / "model")
    words = ("--prompt", "a red circle", "--prompt", "circle", "--num_images", 2, "--guidance_scale", 500)
    grids = [tmp_path / "grid.png", tmp_path / "negative.png"]
    for grid, negative in zip(grids, ((), ("--negative_prompt", "a square")), strict=True):
        code, out, err = command("generate", tmp_path / "model", *words, *negative, "--out", grid)
        assert code == 0, err
        assert "4 pictures" in out
    assert grids[0].read_bytes() != grids[1].read_bytes()
    code, _, err = command("generate", tmp_path / "model", "--label", 1)
    assert code == 1
    assert "or a prompt" in " ".join(err.split())


def test_export_gives_the_released_names_back(command, parity_cases, tmp_path):
    from unimm.conversion.checkpoints import convert
    from unimm.systems import get_system

    case = parity_cases["llamagen/c2i"]
    system = get_system("llamagen")
    config = system.config_from_reference(json.loads((case / "config.json").read_text())["constructor"])
    convert(system, case / "weights.safetensors", tmp_path / "model", config=config)
    code, _, err = command("export", "llamagen", tmp_path / "model", tmp_path / "back.safetensors")
    assert code == 0, err
    original, back = load_file(case / "weights.safetensors"), load_file(tmp_path / "back.safetensors")
    assert all(torch.equal(back[name], original[name]) for name in back)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("convert", "vra", "x.pt", "out"), "did you mean 'var'"),
        (("convert", "var", "missing.pt", "out"), "no checkpoint at 'missing.pt'"),
        (("convert", "var", "missing.pt", "out", "--preset", "d17"), "no checkpoint"),
        (("generate", "no_such_folder", "--label", "1"), "neither a folder here nor a Hub id"),
        (("generate", ".", "--label", "1"), "no config.json"),
        (("chat", ".", "what is it?"), "no config.json"),
        (("verify", "no_such_folder"), "does not exist"),
        (("info", "var:d17"), "did you mean"),
        (("sft", "--config", "no_such_recipe.yaml"), "no_such_recipe.yaml"),
        (("sft", "--nonsense", "3"), "nonsense"),
        (("data", "check", "no_such_card"), "no_such_card"),
    ],
)
def test_a_mistake_is_one_message_and_exit_code_one(command, tmp_path, monkeypatch, words, message):
    monkeypatch.chdir(tmp_path)
    code, _, err = command(*words)
    assert code == 1
    assert "error:" in err
    assert message in " ".join(err.split())
    assert "Traceback" not in err
    assert list(tmp_path.iterdir()) == []


def test_generate_says_what_the_model_takes(command, tmp_path):
    model = build("raster")
    model.save_pretrained(tmp_path / "model")
    code, _, err = command("generate", tmp_path / "model", "--prompt", "a circle")
    assert code == 1
    assert "takes no prompts: give labels" in " ".join(err.split())
    code, _, err = command("generate", tmp_path / "model", "--label", "1", "--negative_prompt", "a circle")
    assert code == 1
    assert "it has no effect on a --label" in " ".join(err.split())
    code, _, err = command("generate", tmp_path / "model")
    assert code == 1
    assert "either --prompt or --label" in err
    code, _, err = command("generate", tmp_path / "model", "--label", "9")
    assert code == 1
    assert "[0, 5]" in err


def test_a_generator_without_a_tokenizer_says_how_to_get_one(command, tmp_path):
    from transformers import AutoModel

    config = replace_fields(build("raster").config, tokenizer_config=None, token_layout=((2, 2),), codebook_size=8)
    AutoModel.from_config(config).save_pretrained(tmp_path / "model")
    code, _, err = command("generate", tmp_path / "model", "--label", "1")
    assert code == 1
    assert "--tokenizer" in err


@pytest.fixture(scope="module")
def conditional(tmp_path_factory):
    folder = tmp_path_factory.mktemp("conditional")
    for part in build_with_processor(max_position_embeddings=512):
        part.save_pretrained(folder)
    return folder


def test_generate_and_chat_speak_with_a_conditional_model(command, conditional, tmp_path):
    words = ("--prompt", "a red circle", "--negative_prompt", "blue", "--guidance_scale", 2, "--num_images", 3)
    code, out, err = command("generate", conditional, *words, "--out", tmp_path / "grid.png")
    assert code == 0, err
    assert "3 pictures" in out
    Image.new("RGB", (20, 10), (200, 0, 0)).save(tmp_path / "red.png")
    code, out, err = command("chat", conditional, "what is it", "--image", tmp_path / "red.png", "--max_new_tokens", 3)
    assert code == 0, err


def test_generate_draws_with_the_models_own_defaults_unless_told_otherwise(command, tmp_path):
    model = build("raster")
    model.set_image_sampling(top_k=1)
    model.save_pretrained(tmp_path / "model")
    grids = []
    for index, words in enumerate(((), ("--seed", 1), ("--top_k", 0, "--temperature", 3))):
        out = tmp_path / f"{index}.png"
        code, _, err = command("generate", tmp_path / "model", "--label", 1, *words, "--out", out)
        assert code == 0, err
        grids.append(out.read_bytes())
    assert grids[0] == grids[1] != grids[2]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("generate", "MODEL", "--label", "1"), "draws from prompts, not from labels"),
        (("generate", "MODEL", "--prompt", ""), "at least one word"),
        (("generate", "MODEL", "--prompt", "a", "--out", "grid.jpg"), "must end in .png"),
        (("generate", "MODEL", "--prompt", "a", "--height", "32"), "asked for 32 x any"),
        (("generate", "MODEL", "--prompt", "a", "--top_p", "7"), "top_p in (0, 1]"),
        (("generate", "MODEL", "--prompt", "a " * 3000), "shorten the prompt"),
        (("generate", "MODEL", "--label", "1", "--negative_prompt", "a"), "goes with --prompt"),
        (("generate", "TOKENIZER", "--prompt", "a"), "holds a VQTokenizer"),
        (("generate", "TOKENIZER", "--label", "1"), "holds a VQTokenizer"),
        (("chat", "MODEL", " "), "question is empty"),
        (("chat", "MODEL", "what", "--image", "missing.png"), "'missing.png' cannot be read"),
        (("chat", "MODEL", "what " * 3000), "shorten the prompt"),
        (("chat", "TOKENIZER", "what"), "holds a VQTokenizer"),
        (("chat", "BARE", "what"), "a processor at"),
        (("chat", "BROKEN", "what"), "cannot be loaded"),
        (("generate", "BROKEN", "--label", "1"), "cannot be loaded"),
    ],
)
def test_a_mistake_with_a_model_is_one_message_and_writes_nothing(
    command, conditional, tmp_path, monkeypatch, words, message
):
    folders = {
        "MODEL": conditional,
        "TOKENIZER": tmp_path / "models" / "tokenizer",
        "BARE": tmp_path / "models" / "bare",
    }
    folders["BROKEN"] = tmp_path / "models" / "broken"
    build("vq_tokenizer").save_pretrained(folders["TOKENIZER"])
    build("conditional").save_pretrained(folders["BARE"])
    build("raster").save_pretrained(folders["BROKEN"])
    (folders["BROKEN"] / "model.safetensors").write_bytes(b"half a file")
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    code, _, err = command(*(folders.get(word, word) for word in words))
    assert code == 1, err
    assert message in " ".join(err.split())
    assert "Traceback" not in err
    assert list((tmp_path / "work").iterdir()) == []


def test_an_output_that_cannot_be_written_is_an_error_and_leaves_nothing(command, tmp_path):
    build("raster").save_pretrained(tmp_path / "model")
    (tmp_path / "file").write_text("in the way")
    code, _, err = command("generate", tmp_path / "model", "--label", "1", "--out", tmp_path / "file" / "grid.png")
    assert code == 1
    assert "cannot write" in err
    assert (tmp_path / "file").read_text() == "in the way"


def test_every_error_of_the_package_is_caught_by_its_base_class():
    from unimm import errors

    own = [value for value in vars(errors).values() if isinstance(value, type) and issubclass(value, Exception)]
    assert len(own) > 8
    assert all(issubclass(value, UniMMError) for value in own)
