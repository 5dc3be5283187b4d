"""Folders that are no models, damaged weights, occupied and full output places: one message, and nothing written."""

import errno
import json
import shutil
from unittest import mock

import pytest
import torch
from factories import build, build_with_processor
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from test_cli import run

import unimm
from unimm.conversion.checkpoints import convert, export, read_checkpoint
from unimm.data.cards import load_card
from unimm.data.loading import export_rows
from unimm.errors import CheckpointError, ConfigError, DataError, LicenseError, OutputError
from unimm.files import atomic_folder, check_output, staged_files
from unimm.hub.push import Push
from unimm.models.building import build_model
from unimm.models.folders import load_config, load_model
from unimm.systems import get_system
from unimm.tokenizers import VQTokenizer
from unimm.verification import find_cases


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Good and damaged models by name."""
    folder = tmp_path_factory.mktemp("models")
    build("raster").save_pretrained(folder / "RASTER")
    build("vq_tokenizer").save_pretrained(folder / "TOKENIZER")
    build("backbone_llama").save_pretrained(folder / "BACKBONE")
    build("text_empty_prompt").save_pretrained(folder / "TEXT")
    for part in build_with_processor(max_position_embeddings=512):
        part.save_pretrained(folder / "CONDITIONAL")
    for name, config in (("NOTYPE", {}), ("UNKNOWN", {"model_type": "nonsense"}), ("LIST", [])):
        (folder / name).mkdir()
        (folder / name / "config.json").write_text(json.dumps(config))
    (folder / "EMPTY").mkdir()
    for name in ("MISSING", "EXTRA", "SHAPE"):
        shutil.copytree(folder / "RASTER", folder / name)
        state = load_file(folder / name / "model.safetensors")
        if name == "MISSING":
            del state["backbone.final_norm.weight"]
        elif name == "EXTRA":
            state["extra"] = torch.ones(1)
        else:
            state["backbone.final_norm.weight"] = torch.ones(3)
        save_file(state, folder / name / "model.safetensors", metadata={"format": "pt"})
    return folder


@pytest.fixture
def work(tmp_path, monkeypatch):
    """The current folder, with files of every wrong kind."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("in the way")
    (tmp_path / "others").mkdir()
    (tmp_path / "others" / "precious.txt").write_text("keep me")
    for name, content in (
        ("list.pt", [1, 2]),
        ("tensor.pt", torch.ones(2)),
        ("numbers.pt", {1: torch.ones(1)}),
        ("unknown.pt", {"x": torch.ones(2)}),
    ):
        torch.save(content, tmp_path / name)
    (tmp_path / "broken.index.json").write_text("{")
    (tmp_path / "list.index.json").write_text("[]")
    (tmp_path / "case").mkdir()
    (tmp_path / "case" / "config.json").write_text("{}")
    (tmp_path / "case" / "io.safetensors").write_bytes(b"")
    (tmp_path / "recipe.yaml").write_text("model: [1")
    return tmp_path


def contents(folder):
    return {path: path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}


MISTAKES = [
    ("info EMPTY", "no config.json"),
    ("info NOTYPE", "the config at"),
    ("info LIST", "the config at"),
    ("info UNKNOWN", "model type `nonsense`"),
    ("info nowhere", "neither a folder here nor a Hub id"),
    ("info file", "is a file"),
    ("info BACKBONE --memory", "a VisualTransformer draws no pictures"),
    ("generate MISSING --label 1", "missing backbone.final_norm.weight"),
    ("generate EXTRA --label 1", "left over extra"),
    ("generate SHAPE --label 1", "backbone.final_norm.weight is (3,), expected (32,)"),
    ("generate RASTER --label 1 --temperature inf", "positive and finite"),
    ("generate RASTER --label 1 --out others.png/../others", "must end in .png"),
    ("generate RASTER --label 1 --out file/grid.png", "a part of the path is a file"),
    ("generate EMPTY --label 1 --out file/grid.png", "a part of the path is a file"),
    ("generate TEXT --prompt ", "--prompt is empty"),
    ("evaluate EMPTY --out others", "a folder of that name is in the way"),
    ("evaluate CONDITIONAL --options []", "JSON object of names to values"),
    ("evaluate CONDITIONAL --options 3", "JSON object"),
    ('evaluate CONDITIONAL --benchmark digits --options {"a":1}', "'digits' has no options, given a"),
    ("verify case", "lacks system, constructor, tolerance"),
    ("convert var list.pt out", "this one is a list"),
    ("convert var tensor.pt out", "this one is a Tensor"),
    ("convert var numbers.pt out", "1 keys of the checkpoint are unknown"),
    ("convert var broken.index.json out", "no index of shards"),
    ("convert var list.index.json out", "no index of shards"),
    ("convert var unknown.pt file", "a part of the path is a file"),
    ("export var RASTER out.pt", "is no model of var"),
    ("export var TOKENIZER out.pt", "is no model of var"),
    ("export llamagen BACKBONE out.pt", "has no released name"),
    ("export llamagen RASTER out.txt --tokenizer tokenizer.pt", "'out.txt' must end in"),
    ("export llamagen RASTER out.pt --tokenizer tokenizer.txt", "'tokenizer.txt' must end in"),
    ("export llamagen RASTER out.pt --tokenizer out.pt", "go into two files"),
    ("export llamagen RASTER others", "must end in"),
    ("push BACKBONE", "Missing argument"),
    ("data export digits rows.csv", "ends in .parquet, given 'rows.csv'"),
    ("data export digits file/rows.parquet", "cannot write"),
    ("sft --config recipe.yaml", "recipe.yaml"),
    ("generate RASTER --label 1 --seed 1180591620717411303424", "less than or equal to 4294967295"),
    ("generate RASTER --label one", "should be a valid integer"),
    ("chat CONDITIONAL what --max_new_tokens 0", "greater than or equal to 1"),
    ("evaluate CONDITIONAL --num 0", "greater than or equal to 1"),
    ("info RASTER --nonsense", "No such option"),
    ("nonsense", "No such command"),
]


@pytest.mark.needs("datasets")
@pytest.mark.parametrize(("line", "message"), MISTAKES, ids=[line for line, _ in MISTAKES])
def test_a_mistake_is_one_message_and_changes_no_file(models, work, monkeypatch, capsys, line, message):
    words = [str(models / word) if (models / word).exists() and word else word for word in line.split(" ")]
    before = contents(work)
    monkeypatch.setenv("COLUMNS", "400")
    code, _, err = run(monkeypatch, capsys, *words)
    assert code in (1, 2), err
    assert message in " ".join(err.replace("│", " ").split())
    assert "Traceback" not in err
    assert contents(work) == before


def test_loading_says_which_keys_do_not_fit(models):
    for name, message in (
        ("MISSING", "missing backbone"),
        ("EXTRA", "left over extra"),
        ("SHAPE", r"\(3,\), expected"),
    ):
        with pytest.raises(CheckpointError, match=message):
            load_model(models / name)
    assert load_model(models / "RASTER").training is False
    for wrong in (None, 3):
        with pytest.raises(ConfigError, match=f"given {wrong}"):
            unimm.pipeline(wrong)
        with pytest.raises(ConfigError, match="a folder or a Hub id"):
            load_config(wrong)


NO_TOKENIZER = r"holds a UniMMForImageGeneration, which is no visual tokenizer"


@pytest.mark.parametrize(
    ("section", "tokenizer", "error", "message"),
    [
        ([1], None, ConfigError, r"must be a mapping"),
        ({"config": 3}, None, ConfigError, r"a mapping of fields, given 3"),
        ({"system": 3}, None, ConfigError, r"no system '3'"),
        ({"system": "var", "preset": "d16", "overrides": 3}, None, ConfigError, r"overrides must be a mapping"),
        ({"path": 3}, None, ConfigError, r"given 3"),
        ({"path": "nowhere"}, None, ConfigError, r"neither a folder here nor a Hub id"),
        ({"path": "EMPTY"}, None, ConfigError, r"no config.json"),
        ({"path": "NOTYPE"}, None, CheckpointError, r"the config at .* cannot be loaded"),
        ({"path": "MISSING"}, None, CheckpointError, r"missing backbone"),
        ({"path": "RASTER"}, "RASTER", ConfigError, NO_TOKENIZER),
    ],
)
def test_a_recipes_model_section_that_names_no_model_is_refused(models, section, tokenizer, error, message):
    if isinstance(section, dict) and (models / str(section.get("path"))).exists():
        section = {"path": str(models / section["path"])}
    with pytest.raises(error, match=message):
        build_model(section, None if tokenizer is None else str(models / tokenizer))


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda folder: Push.prepare(None, "a/b"), CheckpointError, r"must be a path, given None"),
        (lambda folder: Push.prepare(folder / "RASTER", None), ConfigError, r"a text \(owner/name\), given None"),
        (lambda folder: Push.prepare(folder / "RASTER", "a/b", license=3, token="x"), LicenseError, r"given 3"),
        (lambda folder: Push.prepare(folder / "LIST", "a/b"), CheckpointError, r"no weights"),
        (lambda folder: build("raster").push_to_hub("a/b", license=3, token="x"), LicenseError, r"given 3"),
        (lambda folder: read_checkpoint(None), CheckpointError, r"must be a path"),
        (lambda folder: convert("var", folder, folder), ConfigError, r"takes a System .*given 'var'"),
        (lambda folder: export(get_system("var"), None, folder / "out.pt"), CheckpointError, r"no model to export"),
        (lambda folder: find_cases([]), CheckpointError, r"at least one folder"),
        (lambda folder: find_cases("case"), CheckpointError, r"as a list"),
        (lambda folder: load_card(3), DataError, r"must be a path, given 3"),
    ],
)
def test_systems_cards_and_pushes_refuse_other_kinds(models, call, error, message):
    with pytest.raises(error, match=message):
        call(models)


def test_a_class_does_not_load_the_weights_of_another(models):
    with pytest.raises(CheckpointError, match=r"no weight of .*RASTER' belongs to a VQTokenizer"):
        VQTokenizer.from_pretrained(models / "RASTER")
    _, info = VQTokenizer.from_pretrained(models / "TOKENIZER", output_loading_info=True)
    assert not info["missing_keys"]


def test_other_peoples_folders_are_never_replaced(parity_cases, work):
    case = parity_cases["llamagen/c2i"]
    system = get_system("llamagen")
    config = system.config_from_reference(json.loads((case / "config.json").read_text())["constructor"])
    before = contents(work)
    with pytest.raises(OutputError, match="holds other files, which would be lost"):
        convert(system, case / "weights.safetensors", work / "others", config=config)
    with pytest.raises(OutputError, match="holds other files"), atomic_folder(work / "others", mark="rows.jsonl"):
        raise AssertionError("the block must not run")
    assert contents(work) == before
    (work / "model").mkdir()
    for _ in range(2):  # an empty folder, then the model's own
        convert(system, case / "weights.safetensors", work / "model", config=config)
    assert (work / "model" / "config.json").is_file()


@pytest.mark.needs("datasets")
def test_rows_go_into_parquet_files_and_free_folders(work):
    with pytest.raises(DataError, match=r"ends in \.parquet"):
        export_rows("digits", "train", work / "rows.json", num_rows=1)
    with pytest.raises(OutputError, match="holds other files"):
        export_rows("digits", "train", work / "others", num_rows=1, format="json")
    assert (work / "others" / "precious.txt").read_text() == "keep me"


@pytest.mark.parametrize("part", ["model", "tokenizer", "processor"])
@pytest.mark.parametrize("place", ["file", "file/below"])
def test_saving_where_no_folder_can_be_is_an_output_error(work, part, place):
    made = {"model": lambda: build("raster"), "tokenizer": lambda: build("vq_tokenizer")}
    made["processor"] = lambda: build_with_processor()[1]
    with pytest.raises(OutputError, match="cannot write"):
        made[part]().save_pretrained(work / place)
    assert (work / "file").read_text() == "in the way"


def full_disk(*args, **kwargs):
    raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")


def test_a_full_disk_leaves_the_saved_model_as_it_was(tmp_path):
    model = build("raster")
    model.save_pretrained(tmp_path / "model")
    before = contents(tmp_path)
    with torch.no_grad():
        model.head.proj.weight.add_(1)
    with mock.patch("safetensors.torch.serialize_file", full_disk):
        for folder in ("model", "new"):
            with pytest.raises(OutputError, match="the disk is full") as caught:
                model.save_pretrained(tmp_path / folder)
            assert caught.value.errno == errno.ENOSPC
        with pytest.raises(OutputError, match="the disk is full"):
            export(get_system("llamagen"), model, tmp_path / "out.safetensors")
    assert contents(tmp_path) == before


def test_saving_over_a_model_keeps_other_files_and_drops_older_shards(tmp_path):
    model = build("raster")
    model.save_pretrained(tmp_path, max_shard_size="50KB")
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 1
    (tmp_path / "README.md").write_text("my card")
    (tmp_path / "ema").mkdir()
    (tmp_path / "ema" / "model.safetensors").write_bytes(b"another model")
    model.save_pretrained(tmp_path)
    assert [path.name for path in tmp_path.glob("model*.safetensors*")] == ["model.safetensors"]
    assert (tmp_path / "README.md").read_text() == "my card"
    assert (tmp_path / "ema" / "model.safetensors").read_bytes() == b"another model"
    assert not list(tmp_path.glob(".saving*"))
    saved = load_model(tmp_path).state_dict()
    assert all(torch.equal(saved[name], tensor) for name, tensor in model.state_dict().items())


def test_a_processors_saved_files_are_told_by_their_own_paths(tmp_path):
    _, processor = build_with_processor()
    written = processor.save_pretrained(tmp_path / "processor")
    assert written
    assert all((tmp_path / "processor" / path).is_file() for path in written)


def test_staged_files_change_nothing_when_the_block_fails(tmp_path):
    (tmp_path / "old").write_text("old")

    def fail(folder):
        with staged_files(folder) as staging:
            (staging / "old").write_text("new")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail(tmp_path)
    assert contents(tmp_path) == {tmp_path / "old": b"old"}
    with pytest.raises(ZeroDivisionError):
        fail(tmp_path / "fresh")
    assert not (tmp_path / "fresh").exists()


def test_an_output_place_is_looked_at_before_the_work(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("x")
    check_output(tmp_path / "new" / "folder" / "grid.png")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    with pytest.raises(OutputError, match="a folder of that name is in the way"):
        check_output(tmp_path)
    with pytest.raises(OutputError, match="a part of the path is a file"):
        check_output(tmp_path / "file" / "grid.png")
    # A superuser may write everywhere: what the system says to others is said here.
    monkeypatch.setattr("unimm.files.os.access", lambda place, mode: False)
    with pytest.raises(OutputError, match="permission denied"):
        check_output(tmp_path / "grid.png")
