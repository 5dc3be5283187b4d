"""`--push_to_hub` of the training stages, against the small Hub."""

from __future__ import annotations

import pytest
import yaml
from hub.server import TOKEN
from huggingface_hub import ModelCard
from safetensors.torch import load, load_file
from training.test_stages import PRETRAIN, TOKENIZER

from unimm.errors import LicenseError, RecipeError
from unimm.training.publishing import Publication
from unimm.training.recipes import PretrainRecipe


@pytest.fixture
def recipe(tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(PRETRAIN))
    return path


def train(client, recipe, folder, *words, stage="pretrain", **options):
    given = ("--config", recipe, "--output_dir", folder, "--push_to_hub", *words)
    return client.unimm(stage, *given, **options)


def test_a_finished_run_is_on_the_hub_with_its_card_and_a_second_start_sends_nothing(client, hub, recipe, tmp_path):
    words = ("--hub_model_id", "writer/run", "--card.license", "mit", "--hub_private_repo")
    result = train(client, recipe, tmp_path / "run", *words)
    assert result.code == 0, result.err
    repository = hub.repositories["writer/run"]
    assert repository.private
    assert f"{hub.url}/writer/run/commit/" in result.err
    card = ModelCard(repository.files["README.md"].decode())
    assert card.data.license == "mit"
    assert card.data.tags == ["unimm", "pretrain"]
    assert "| training of 2 steps, evaluations included |" in card.text
    assert "| drawing a grid of 4 pictures |" in card.text
    assert 'AutoModel.from_pretrained("writer/run")' in card.text
    trained = load_file(tmp_path / "run" / "final" / "model.safetensors")
    pushed = load(repository.files["model.safetensors"])
    assert all(pushed[name].equal(value) for name, value in trained.items())
    assert not any(name.startswith("checkpoint") or "optimizer" in name for name in repository.files)
    hub.requests.clear()
    again = train(client, recipe, tmp_path / "run", *words)
    assert again.code == 0, again.err
    assert len(repository.branches["main"]) == 2
    assert not any("PUT" in request for request in hub.requests)


def test_a_tokenizers_run_is_pushed_under_the_name_of_its_folder(client, hub, tmp_path):
    path = tmp_path / "tokenizer.yaml"
    path.write_text(yaml.safe_dump({**TOKENIZER, "card": {"license": "apache-2.0"}}))
    result = train(client, path, tmp_path / "small-tokenizer", "--training.tensorboard", "false", stage="tokenizer")
    assert result.code == 0, result.err
    card = ModelCard(hub.repositories["writer/small-tokenizer"].files["README.md"].decode())
    assert card.data.license == "apache-2.0"
    assert "reconstruction of held-out rows of Shapes, judged by comparison with the originals" in card.text
    assert {one.metric_name for one in card.data.eval_results} >= {"psnr", "codebook_usage"}


def test_a_run_that_could_not_be_pushed_is_refused_before_it_trains(client, hub, recipe, tmp_path):
    licensed = ("--card.license", "mit")
    for words, token, message, asks in (
        ((), TOKEN, "card.license does not say under which licence", False),
        (licensed, None, "log in first", False),
        (licensed, "hf_false", "does not accept your token", True),
    ):
        hub.requests.clear()
        result = train(client, recipe, tmp_path / "run", *words, token=token)
        assert result.code == 1
        assert message in " ".join(result.err.split())
        assert "Traceback" not in result.err
        assert [request for request in hub.requests if "POST" in request] == []
        assert ("GET /api/whoami-v2" in hub.requests) == asks == bool(hub.requests)
        assert not (tmp_path / "run").exists()


def test_a_push_that_failed_is_made_up_for_without_training_again(client, hub, recipe, tmp_path):
    words = ("--card.license", "mit", "--hub_model_id")
    result = train(client, recipe, tmp_path / "run", *words, "somebody/else")
    assert result.code == 1
    assert "may not write to 'somebody/else'" in " ".join(result.err.split())
    trained = (tmp_path / "run" / "final" / "model.safetensors").stat().st_mtime_ns
    result = train(client, recipe, tmp_path / "run", *words, "writer/moved")
    assert result.code == 0, result.err
    assert "nothing to do" in result.err
    assert (tmp_path / "run" / "final" / "model.safetensors").stat().st_mtime_ns == trained
    assert "model.safetensors" in hub.repositories["writer/moved"].files


def test_a_token_given_to_a_run_is_written_nowhere(client, hub, recipe, tmp_path):
    words = ("--card.license", "mit", "--hub_model_id", "writer/secret", "--hub_token", TOKEN)
    result = train(client, recipe, tmp_path / "run", *words, token=None)
    assert result.code == 0, result.err
    written = [path for path in (tmp_path / "run").rglob("*") if path.is_file()]
    assert not [path for path in written if TOKEN.encode() in path.read_bytes()]
    assert not [name for name, text in hub.repositories["writer/secret"].files.items() if TOKEN.encode() in text]
    assert TOKEN not in result.out + result.err


def test_fields_of_the_hub_without_a_push_are_refused(tmp_path):
    recipe = PretrainRecipe.from_values(PRETRAIN, {"output_dir": str(tmp_path), "hub_model_id": "writer/x"})
    with pytest.raises(RecipeError, match=r"hub_model_id has no effect without training\.push_to_hub"):
        Publication.of(recipe, recipe.arguments())
    recipe = PretrainRecipe.from_values(PRETRAIN, {"output_dir": str(tmp_path), "push_to_hub": True})
    with pytest.raises(LicenseError, match=r"--card\.license apache-2\.0"):
        Publication.of(recipe, recipe.arguments())


def test_a_licence_that_the_hub_does_not_have_is_refused_with_the_recipe(tmp_path):
    with pytest.raises(LicenseError, match="did you mean 'mit'"):
        PretrainRecipe.from_values(PRETRAIN, {"output_dir": str(tmp_path), "card.license": "mti"})
    with pytest.raises(LicenseError, match="go with card"):
        PretrainRecipe.from_values(PRETRAIN, {"output_dir": str(tmp_path), "card.license_name": "Mine"})
    for given in ({}, {"card.license": "unknown"}):
        recipe = PretrainRecipe.from_values(PRETRAIN, {"output_dir": str(tmp_path), **given})
        assert not recipe.card.weights_license().is_known
