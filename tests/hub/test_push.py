"""Pushing and loading by id, with huggingface_hub's own client against a small Hub on loopback."""

from __future__ import annotations

import json
import re

import pytest
import torch
import yaml
from factories import build
from hub.server import READER, TOKEN, Repository
from huggingface_hub import ModelCard, parse_eval_result_entries
from safetensors.torch import load, load_file

from unimm.hub.cards import CardFacts, write_card
from unimm.hub.licenses import License
from unimm.models import UniMMImageProcessor, UniMMProcessor, word_tokenizer

RECORD = {
    "benchmark": "shapes",
    "judge": "unimm.evaluation.shapes.ShapesJudge",
    "sampling": {"guidance_scale": 1.75},
    "seed": 0,
    "rows": {"drawn: one object": {"n": 1000, "right": 0.774, "interval": [0.747, 0.799]}},
}

LOAD = """
import json, sys
import torch
import unimm
from transformers import AutoModel
from safetensors.torch import save_file
model = AutoModel.from_pretrained({repo!r}, cache_dir={cache!r}, revision={revision!r})
save_file({{name: tensor.contiguous().clone() for name, tensor in model.state_dict().items()}}, {out!r})
print(type(model).__name__)
"""


def load_by_id(client, tmp_path, repo, revision="main", token=TOKEN):
    """The weights that `from_pretrained` gives in another process, with an empty cache."""
    out = tmp_path / f"loaded-{len(list(tmp_path.iterdir()))}.safetensors"
    program = LOAD.format(repo=repo, cache=str(tmp_path / f"cache-{out.stem}"), revision=revision, out=str(out))
    result = client.python(program, token=token)
    assert result.code == 0, result.err
    return load_file(out)


def saved(folder, name="raster", license="mit", **facts):
    model = build(name)
    model.save_pretrained(folder)
    write_card(folder, model, CardFacts(license=License(license), **facts))
    return model


def same(found, model):
    expected = model.state_dict()
    assert found.keys() == expected.keys()
    return all(torch.equal(found[name], expected[name]) for name in expected)


def error_of(result):
    """The one message of a command that failed."""
    assert result.code == 1, result.out + result.err
    assert "Traceback" not in result.err
    assert result.err.count("error:") == 1
    return " ".join(result.err[result.err.index("error:") :].split())


def test_a_pushed_model_comes_back_by_its_id_with_equal_weights_and_its_card(client, hub, tmp_path):
    model = saved(tmp_path / "model", title="A generator")
    (tmp_path / "model" / "evaluation.json").write_text(json.dumps(RECORD))
    before = {path.name: path.read_bytes() for path in (tmp_path / "model").iterdir()}

    result = client.unimm("push", tmp_path / "model", "writer/one", "--message", "First")
    assert result.code == 0, result.err

    repository = hub.repositories["writer/one"]
    assert not repository.private
    assert [summary for _, summary, _ in repository.branches["main"]] == ["initial commit", "First"]
    card = ModelCard(repository.files["README.md"].decode())
    assert card.data.license == "mit"
    assert 'from_pretrained("writer/one")' in card.text
    assert "| drawn: one object | 77.4% | 74.7% to 79.9% | 1,000 |" in card.text
    assert card.data.eval_results[0].metric_value == 0.774
    assert same(load_by_id(client, tmp_path, "writer/one"), model)

    oid = repository.branches["main"][-1][0]
    assert f"{hub.url}/writer/one/commit/{oid}" in result.out
    for name, content in repository.files.items():
        assert name == ".gitattributes" or re.search(rf"(kB|MB|bytes)  {re.escape(name)}\n", result.out), name
        assert not name.startswith(".cache"), content
    assert f"{len(repository.files) - 1} files" in result.out
    assert {path.name: path.read_bytes() for path in (tmp_path / "model").iterdir()} == before


def test_evaluations_lie_in_the_repository_as_records_of_huggingface_hub(client, hub, tmp_path):
    saved(tmp_path / "model")
    (tmp_path / "model" / "evaluation.json").write_text(json.dumps(RECORD))
    assert client.unimm("push", tmp_path / "model", "writer/records").code == 0
    text = hub.repositories["writer/records"].files[".eval_results/shapes.yaml"].decode()
    (entry,) = parse_eval_result_entries(yaml.safe_load(text))
    assert (entry.dataset_id, entry.task_id, entry.value) == ("unimm/shapes", "drawn_one_object", 0.774)
    assert "n = 1000" in entry.notes
    assert "ShapesJudge" in entry.notes


def test_large_files_are_sent_in_parts_and_shards_load(client, hub, tmp_path):
    model = build("raster")
    model.save_pretrained(tmp_path / "whole")
    assert (tmp_path / "whole" / "model.safetensors").stat().st_size > 200_000
    model.save_pretrained(tmp_path / "model", max_shard_size="50KB")
    result = client.unimm("push", tmp_path / "model", "writer/shards", "--license", "apache-2.0")
    assert result.code == 0, result.err
    names = [name for name in hub.repositories["writer/shards"].files if name.endswith(".safetensors")]
    assert len(names) > 3
    assert same(load_by_id(client, tmp_path, "writer/shards"), model)

    hub.requests.clear()
    result = client.unimm("push", tmp_path / "whole", "writer/shards", "--license", "apache-2.0")
    assert result.code == 0, result.err
    assert any(request.endswith("/complete") for request in hub.requests)
    names = [name for name in hub.repositories["writer/shards"].files if "safetensors" in name]
    assert names == ["model.safetensors"], "shards of an earlier push would be loaded in its place"
    assert same(load_by_id(client, tmp_path, "writer/shards"), model)


@pytest.mark.slow
def test_a_second_push_of_the_same_folder_sends_and_commits_nothing(client, hub, tmp_path):
    saved(tmp_path / "model")
    assert client.unimm("push", tmp_path / "model", "writer/twice").code == 0
    hub.requests.clear()
    assert client.unimm("push", tmp_path / "model", "writer/twice").code == 0
    assert not any("PUT" in request or "/commit/" in request for request in hub.requests)
    assert len(hub.repositories["writer/twice"].branches["main"]) == 2


def test_branches_pull_requests_and_private_repositories(client, hub, tmp_path):
    model = saved(tmp_path / "model")
    folder = tmp_path / "model"
    assert client.unimm("push", folder, "writer/kinds", "--private", "--revision", "try/one").code == 0
    repository = hub.repositories["writer/kinds"]
    assert repository.private
    assert list(repository.files) == [".gitattributes"]
    assert same(load_by_id(client, tmp_path, "writer/kinds", revision="try/one"), model)
    result = client.unimm("push", folder, "writer/kinds", "--create_pr")
    assert f"{hub.url}/writer/kinds/discussions/1" in result.out
    assert "config.json" in repository.at("refs/pr/1")[1]
    hub.repositories["writer/public"] = Repository(branches={"main": [("a" * 40, "", {})]})
    message = error_of(client.unimm("push", folder, "writer/public", "--private"))
    assert "'writer/public' exists already and is public" in message
    assert hub.repositories["writer/public"].files == {}


@pytest.mark.parametrize(
    ("card", "found"),
    [
        (None, "it has no card"),
        ("# A model\n", "its card (README.md) has no license"),
        ("---\nlicense: unknown\n---\n", "its card (README.md) says license: unknown"),
        ("---\nlicense: other\n---\n", "says license: other without a license_name"),
    ],
)
def test_without_a_licence_nothing_is_sent(client, hub, tmp_path, card, found):
    build("raster").save_pretrained(tmp_path / "model")
    if card is not None:
        (tmp_path / "model" / "README.md").write_text(card)
    message = error_of(client.unimm("push", tmp_path / "model", "writer/unlicensed"))
    assert found in message
    assert "--license apache-2.0" in message
    assert hub.requests == []


def test_a_stated_licence_goes_into_the_card(client, hub, tmp_path):
    saved(tmp_path / "model", license="unknown")
    words = ("--license", "other", "--license_name", "Research only", "--license_link", "https://example.org/terms")
    result = client.unimm("push", tmp_path / "model", "writer/stated", *words)
    assert result.code == 0, result.err
    card = ModelCard(hub.repositories["writer/stated"].files["README.md"].decode())
    assert (card.data.license, card.data.license_name) == ("other", "Research only")
    assert "- Weights: [Research only](https://example.org/terms)" in card.text
    assert "not stated" not in card.text


def test_a_header_that_the_hub_refuses_is_told_in_its_words(client, hub, tmp_path):
    build("raster").save_pretrained(tmp_path / "model")
    (tmp_path / "model" / "README.md").write_text("---\nlicense: mit\nlanguage: 7\n---\n# A model\n")
    message = error_of(client.unimm("push", tmp_path / "model", "writer/header"))
    assert 'the Hub refuses the header of the card: - "language" must be' in message
    assert list(hub.repositories["writer/header"].files) == [".gitattributes"]


def test_tokens_that_may_not_write_are_refused_in_one_sentence(client, hub, tmp_path):
    saved(tmp_path / "model")
    message = error_of(client.unimm("push", tmp_path / "model", "writer/tokens", token=None))
    assert "log in first" in message
    assert hub.requests == []
    assert "does not accept your token" in error_of(
        client.unimm("push", tmp_path / "model", "writer/tokens", token="hf_false")
    )
    assert "may not write to 'writer/tokens'" in error_of(
        client.unimm("push", tmp_path / "model", "writer/tokens", token=READER)
    )
    assert "may not write to 'somebody/else'" in error_of(client.unimm("push", tmp_path / "model", "somebody/else"))
    assert "writer/tokens" not in hub.repositories


def test_a_gated_or_missing_repository_is_one_clear_message(client, hub, tmp_path):
    saved(tmp_path / "model")
    assert client.unimm("push", tmp_path / "model", "writer/gated").code == 0
    hub.repositories["writer/gated"].gated = True
    words = ("generate", "writer/gated", "--label", "1", "--out", tmp_path / "grid.png")
    for token in (None, READER):
        message = error_of(client.unimm(*words, token=token))
        assert f"'writer/gated' is gated: ask for access at {hub.url}/writer/gated" in message
        assert len(message) < 250
    result = client.unimm(*words)
    assert result.code == 0, result.err
    assert (tmp_path / "grid.png").is_file()
    message = error_of(client.unimm("generate", "writer/nowhere", "--label", "1"))
    assert f"there is no repository 'writer/nowhere' at {hub.url}" in message


def test_an_upload_that_dies_in_the_middle_commits_nothing_and_the_same_command_goes_on(client, hub, tmp_path):
    model = saved(tmp_path / "model")
    dying = []

    def die(received):
        if received > 50_000 and not dying:
            dying.append(received)
            client.kill_running()
            raise ConnectionAbortedError

    hub.during_upload = die
    result = client.unimm("push", tmp_path / "model", "writer/killed")
    assert result.code == -9
    assert dying
    assert list(hub.repositories["writer/killed"].files) == [".gitattributes"]
    hub.during_upload = None
    assert client.unimm("push", tmp_path / "model", "writer/killed").code == 0
    assert same(load_by_id(client, tmp_path, "writer/killed"), model)


@pytest.mark.slow  # huggingface_hub tries six times, with pauses of 23 seconds in all.
def test_a_connection_that_is_cut_again_and_again_is_an_error_and_commits_nothing(client, hub, tmp_path):
    model = saved(tmp_path / "model")

    def cut(received):
        if received > 50_000:
            raise ConnectionAbortedError

    hub.during_upload = cut
    message = error_of(client.unimm("push", tmp_path / "model", "writer/cut"))
    assert "the push to 'writer/cut' was interrupted and nothing was committed: the same command goes on" in message
    assert "model.safetensors" in message
    assert list(hub.repositories["writer/cut"].files) == [".gitattributes"]
    hub.during_upload = None
    assert client.unimm("push", tmp_path / "model", "writer/cut").code == 0
    assert same(load_by_id(client, tmp_path, "writer/cut"), model)


PUSH = """
import torch
import unimm
from transformers import AutoModel, AutoProcessor
from unimm.errors import LicenseError, UniMMError
from unimm.hub.cards import CardFacts
from unimm.hub.licenses import License

model = AutoModel.from_pretrained({folder!r})
for refused in (lambda: model.push_to_hub("writer/api"), lambda: model.push_to_hub("writer/api", license="unknown")):
    try:
        refused()
    except LicenseError as error:
        print("refused:", error)
try:
    model.save_pretrained({folder!r}, push_to_hub=True, repo_id="writer/api")
except UniMMError as error:
    print("refused:", error)
processor = AutoProcessor.from_pretrained({folder!r})
facts = CardFacts(description="Draws and answers.", license=License("mit"))
model.push_to_hub("writer/api", card=facts, processor=processor, max_shard_size="50KB", tags=["tiny"])
model.tokenizer.push_to_hub("writer/api-tokenizer", license="cc-by-4.0")
processor.push_to_hub("writer/api-processor")
"""


def conditional_folder(folder):
    model = build("conditional")
    model.save_pretrained(folder)
    words = word_tokenizer([f"w{index}" for index in range(60)])
    size = {"height": 16, "width": 16}
    UniMMProcessor(UniMMImageProcessor(size=size), words, num_visual_tokens=16).save_pretrained(folder)
    return model


def test_models_tokenizers_and_processors_push_themselves(client, hub, tmp_path):
    model = conditional_folder(tmp_path / "model")
    result = client.python(PUSH.format(folder=str(tmp_path / "model")))
    assert result.code == 0, result.err
    assert result.out.count("refused:") == 3
    pushed = hub.repositories["writer/api"].files
    assert sum(name.endswith(".safetensors") for name in pushed) > 2
    card = ModelCard(pushed["README.md"].decode())
    assert card.data.license == "mit"
    assert "tiny" in card.data.tags
    assert "Draws and answers." in card.text
    assert "processor_config.json" in pushed
    assert same(load_by_id(client, tmp_path, "writer/api"), model)
    tokenizer = hub.repositories["writer/api-tokenizer"].files
    assert same(load(tokenizer["model.safetensors"]), model.tokenizer)
    assert ModelCard(tokenizer["README.md"].decode()).data.license == "cc-by-4.0"
    processor = hub.repositories["writer/api-processor"].files
    assert {"processor_config.json", "tokenizer.json", "modeling_unimm.py"} <= processor.keys()
    assert "README.md" not in processor


@pytest.mark.slow
def test_what_is_measured_goes_into_the_card(client, hub, tmp_path):
    saved(tmp_path / "model")
    result = client.unimm("push", tmp_path / "model", "writer/measured", "--measure")
    assert result.code == 0, result.err
    text = hub.repositories["writer/measured"].files["README.md"].decode()
    assert re.search(r"\| drawing one picture, float32 \| [0-9.e-]+ s \(median of 3\) \| measured: .*torch", text)
    assert text.count("## Memory and speed") == 1
