"""`trust_remote_code`: saved folders load without `import unimm`, and say what is missing where the package is."""

from __future__ import annotations

import ast
import json

import pytest
from factories import CONFIGS, build, raster_config
from transformers import AutoModel

import unimm
from unimm.hub.remote_code import STUB, STUB_CODE, auto_map_of
from unimm.models import UniMMImageProcessor, UniMMProcessor, word_tokenizer

LOAD = """
import sys
from transformers import AutoConfig, AutoImageProcessor, AutoModel, AutoModelForMultimodalLM, AutoProcessor

assert "unimm" not in sys.modules
place, auto = {place!r}, {auto}
loaded = auto.from_pretrained(place, trust_remote_code=True)
print(type(loaded).__module__, type(loaded).__name__)
if hasattr(loaded, "save_pretrained"):
    loaded.save_pretrained({again!r})
    assert type(auto.from_pretrained({again!r})) is type(loaded)
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A conditional model with its processor."""
    path = tmp_path_factory.mktemp("saved") / "model"
    build("conditional").save_pretrained(path)
    words = word_tokenizer([f"w{index}" for index in range(60)])
    size = {"height": 16, "width": 16}
    UniMMProcessor(UniMMImageProcessor(size=size), words, num_visual_tokens=16).save_pretrained(path)
    return path


@pytest.mark.parametrize("name", CONFIGS)
def test_every_class_of_auto_map_is_in_the_package(name):
    config = CONFIGS[name]()
    entries = auto_map_of(config)
    assert {"AutoConfig", "AutoModel"} <= entries.keys()
    for reference in entries.values():
        module, _, cls = reference.partition(".")
        assert module == STUB
        assert hasattr(unimm, cls), cls
    assert getattr(unimm, entries["AutoConfig"].partition(".")[2]) is type(config)


@pytest.mark.parametrize(
    ("auto", "cls"),
    [
        ("AutoConfig", "UniMMConditionalConfig"),
        ("AutoModel", "UniMMForConditionalGeneration"),
        ("AutoModelForMultimodalLM", "UniMMForConditionalGeneration"),
        ("AutoProcessor", "UniMMProcessor"),
        ("AutoImageProcessor", "UniMMImageProcessor"),
    ],
)
def test_a_folder_loads_without_importing_the_package_and_can_be_saved_again(client, folder, tmp_path, auto, cls):
    program = LOAD.format(place=str(folder), auto=auto, again=str(tmp_path / "again"))
    result = client.python(program)
    assert result.code == 0, result.err
    assert result.out.startswith("unimm.")
    assert result.out.strip().endswith(cls)


def test_a_pushed_model_loads_by_its_id_without_importing_the_package(client, hub, folder, tmp_path):
    assert client.unimm("push", folder, "writer/remote", "--license", "mit").code == 0
    program = LOAD.format(place="writer/remote", auto="AutoModel", again=str(tmp_path / "again"))
    result = client.python(program)
    assert result.code == 0, result.err
    assert result.out.strip().endswith("UniMMForConditionalGeneration")


@pytest.mark.parametrize("auto", ["AutoConfig", "AutoModel", "AutoProcessor", "AutoImageProcessor"])
def test_where_the_package_is_not_installed_the_error_says_so(client, folder, tmp_path, auto):
    program = LOAD.format(place=str(folder), auto=auto, again=str(tmp_path))
    result = client.python(program, absent="unimm")
    assert result.code == 70
    assert "pip install unimm" in result.err.splitlines()[-1]


def test_with_the_package_imported_nothing_remote_is_run(client, folder):
    program = (
        "import sys, unimm\n"
        "from transformers import AutoModel, AutoProcessor\n"
        f"model = AutoModel.from_pretrained({str(folder)!r})\n"
        f"AutoProcessor.from_pretrained({str(folder)!r})\n"
        f"assert AutoModel.from_pretrained({str(folder)!r}, trust_remote_code=True).__class__ is model.__class__\n"
        "assert not [name for name in sys.modules if 'modeling_unimm' in name]\n"
    )
    result = client.python(program)
    assert result.code == 0, result.err


def test_without_trust_and_without_the_package_transformers_asks_for_it(client, folder):
    result = client.python(f"from transformers import AutoModel\nAutoModel.from_pretrained({str(folder)!r})")
    assert result.code == 70
    assert "trust_remote_code=True" in result.err.splitlines()[-1]


def test_the_stub_holds_no_code_but_an_import_of_the_package():
    tree = ast.parse(STUB_CODE)
    imports = [node for node in ast.walk(tree) if isinstance(node, ast.Import | ast.ImportFrom)]
    assert [ast.unparse(node) for node in imports] == ["import unimm"]
    names: dict = {}
    exec(STUB_CODE, names)
    assert names["__getattr__"]("VQTokenizer") is unimm.VQTokenizer
    with pytest.raises(AttributeError, match=r"has no 'Later': pip install --upgrade unimm"):
        names["__getattr__"]("Later")


def test_a_trained_tokenizers_place_does_not_travel_into_the_model_around_it(tmp_path):
    tokenizer = build("vq_tokenizer")
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    loaded = AutoModel.from_pretrained(tmp_path / "tokenizer")
    model = AutoModel.from_config(raster_config(tokenizer_config=loaded.config.to_dict()))
    model.save_pretrained(tmp_path / "model")
    written = json.loads((tmp_path / "model" / "config.json").read_text())
    assert written["auto_map"]["AutoModel"] == "modeling_unimm.UniMMForImageGeneration"
    assert "auto_map" not in written["tokenizer_config"]


def test_entries_that_somebody_else_wrote_stay():
    config = CONFIGS["raster"]()
    config.auto_map = {"AutoModel": "own--modeling_own.Own", "AutoConfig": "writer/x--modeling_unimm.Old"}
    entries = auto_map_of(config)
    assert entries == {"AutoModel": "own--modeling_own.Own", "AutoConfig": "modeling_unimm.UniMMImageGenerationConfig"}
