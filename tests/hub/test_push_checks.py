"""What a push refuses before the first request."""

from __future__ import annotations

import json

import pytest
from factories import build
from transformers import AutoModel

from unimm.errors import CheckpointError, ConfigError, HubError, LicenseError
from unimm.hub.cards import CardFacts, write_card
from unimm.hub.licenses import License
from unimm.hub.push import Push


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A good folder, and several that are none."""
    root = tmp_path_factory.mktemp("folders")
    model = build("raster")
    for name in ("model", "run/final", "broken_record", "broken_card"):
        model.save_pretrained(root / name)
        write_card(root / name, model, CardFacts(license=License("mit")))
    model.config.save_pretrained(root / "config_only")
    rows = {"drawn": {"right": 0.5}}
    (root / "broken_record" / "evaluation.json").write_text(
        json.dumps({"benchmark": "shapes", "judge": "j", "rows": rows})
    )
    (root / "broken_card" / "README.md").write_text("---\nlicense: [mit\n---\n")
    (root / "bert").mkdir()
    (root / "bert" / "config.json").write_text('{"model_type": "bert"}')
    (root / "bert" / "model.safetensors").touch()
    return root


@pytest.fixture(autouse=True)
def token(monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_test")


@pytest.mark.parametrize(
    ("folder", "repo_id", "error", "message"),
    [
        ("model", "a/b/c", ConfigError, "no id of the Hub"),
        ("nowhere", "writer/x", CheckpointError, r"holds no model \(no config\.json\)"),
        ("run", "writer/x", CheckpointError, "the model of this run is '.*final'"),
        ("config_only", "writer/x", CheckpointError, r"no weights \(\*\.safetensors\)"),
        ("broken_record", "writer/x", ConfigError, "needs 'right'"),
        ("broken_card", "writer/x", ConfigError, "the header of the card .* cannot be read"),
        ("bert", "writer/x", CheckpointError, "holds a 'bert', which is no model of unimm"),
    ],
)
def test_a_folder_or_an_id_that_will_not_do_is_refused(folders, folder, repo_id, error, message):
    with pytest.raises(error, match=message):
        Push.prepare(folders / folder, repo_id)


def test_without_a_token_the_message_says_how_to_log_in(folders, monkeypatch, tmp_path):
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(HubError, match="hf auth login"):
        Push.prepare(folders / "model", "writer/x", token=False)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (("apache2",), "did you mean 'apache-2.0'"),
        (("unknown",), "states no licence"),
        (("",), "states no licence"),
        (("other",), "needs the name of the terms"),
        (("mit", "Mine"), "'mit' has its own"),
    ],
)
def test_a_licence_that_says_nothing_is_none(given, message):
    with pytest.raises(LicenseError, match=message):
        License.stated(*given)


def test_an_older_folder_gets_the_stub_and_its_entries_on_the_way(folders, tmp_path):
    model = build("raster")
    model.save_pretrained(tmp_path)
    (tmp_path / "modeling_unimm.py").unlink()
    values = json.loads((tmp_path / "config.json").read_text())
    del values["auto_map"]
    (tmp_path / "config.json").write_text(json.dumps(values))
    push = Push.prepare(tmp_path, "writer/x", license=License("mit"))
    saved = {"config.json", "generation_config.json", "model.safetensors"}
    assert {"modeling_unimm.py", "README.md", *saved} == {name for name, _ in push.files}
    (config,) = (one for one in push.additions if one.path_in_repo == "config.json")
    assert json.loads(config.path_or_fileobj)["auto_map"]["AutoModel"] == "modeling_unimm.UniMMForImageGeneration"
    assert {path.name for path in tmp_path.iterdir()} == saved


def test_caches_and_pickles_stay_at_home(tmp_path):
    build("raster").save_pretrained(tmp_path)
    for name in ("__pycache__/x.pyc", ".cache/huggingface/x", ".git/HEAD", "training_args.bin", "ema/config.json"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("{}")
    names = {name for name, _ in Push.prepare(tmp_path, "writer/x", license=License("mit")).files}
    saved = {"config.json", "generation_config.json", "model.safetensors"}
    assert names == {"README.md", "modeling_unimm.py", "ema/config.json", *saved}


def test_a_models_licence_is_that_of_the_folder_it_came_from_and_of_no_other(folders, tmp_path, monkeypatch):
    monkeypatch.chdir(folders / "model")
    with pytest.raises(LicenseError, match="before their licence is stated"):
        build("raster").push_to_hub("writer/x")
    loaded = AutoModel.from_pretrained(folders / "model")
    with pytest.raises(HubError, match="offline mode"):
        loaded.push_to_hub("writer/x")


def test_saving_publishes_nothing(tmp_path):
    with pytest.raises(ConfigError, match="save_pretrained publishes nothing"):
        build("vq_tokenizer").save_pretrained(tmp_path / "model", push_to_hub=True)
    assert not (tmp_path / "model").exists()
