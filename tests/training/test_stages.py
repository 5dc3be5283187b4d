"""The stages from recipe to `final/`: tiny runs on Shapes, started again, changed, and described."""

from __future__ import annotations

import json
import logging

import pytest
import yaml
from huggingface_hub import ModelCard
from transformers import AutoModel, AutoProcessor

from unimm.errors import ConfigError, DataError, OutputError, RecipeError
from unimm.training.outputs import MetricsLog
from unimm.training.recipes import PretrainRecipe, SftRecipe, TokenizerRecipe
from unimm.training.stages import run_pretrain, run_sft, run_stage, run_tokenizer

SHAPES = {"card": "shapes", "num_rows": 16, "options": {"resolution": 16}}
LIKELIHOOD = {
    "max_steps": 2,
    "per_device_train_batch_size": 4,
    "save_steps": 1,
    "logging_steps": 1,
    "use_cpu": True,
    "disable_tqdm": True,
    "tensorboard": False,
}
TOKENIZER = {
    "model": {
        "config": {
            "model_type": "unimm_vq_tokenizer",
            "base_channels": 8,
            "channel_multipliers": [1, 2, 2],
            "num_residual_blocks": 1,
            "encoder_channels": 16,
            "code_channels": 8,
            "codebook_size": 32,
            "num_norm_groups": 4,
            "attention": False,
        }
    },
    "image_size": 16,
    "data": [SHAPES, {**SHAPES, "weight": 0.5, "seed": 1}],
    "evaluation": {"data": {**SHAPES, "split": "test", "num_rows": 4}},
    "samples": {"every_steps": 2, "num": 2},
    "training": {
        "max_steps": 2,
        "per_device_train_batch_size": 4,
        "save_steps": 1,
        "ema_decay": 0.9,
        "use_cpu": True,
        "disable_tqdm": True,
    },
}
SFT = {
    "model": {
        "config": {
            "model_type": "unimm_conditional_generation",
            "image_size": 16,
            "text_config": {
                "model_type": "qwen3",
                "hidden_size": 16,
                "num_hidden_layers": 1,
                "num_attention_heads": 2,
                "num_key_value_heads": 2,
                "head_dim": 8,
                "intermediate_size": 16,
            },
        }
    },
    "processor": {"words": "shapes"},
    "data": [{**SHAPES, "options": {"resolution": 16, "task": task}} for task in ("captions", "questions")],
    "samples": {"every_steps": 2, "prompts": ["a red circle", "a blue star"]},
    "training": LIKELIHOOD,
}
PRETRAIN = {
    "model": {
        "config": {
            "model_type": "unimm_image_generation",
            "image_size": 12,
            "tokenizer_config": {**TOKENIZER["model"]["config"], "channel_multipliers": [1, 2]},
            "condition_config": {"model_type": "unimm_class_condition", "num_classes": 10, "form": "prefix"},
            "plan_config": {"model_type": "unimm_raster_plan"},
            "backbone_config": {
                "model_type": "unimm_visual_transformer",
                "block": "llama",
                "hidden_size": 32,
                "num_hidden_layers": 1,
                "num_attention_heads": 2,
                "intermediate_size": 32,
            },
            "head_config": {"model_type": "unimm_categorical_head"},
        }
    },
    "data": {"card": "digits", "options": {"task": "class", "resolution": 12}},
    "samples": {"every_steps": 2, "num": 4},
    "training": LIKELIHOOD,
}
TEXT = {
    **PRETRAIN,
    "model": {
        "config": {
            **PRETRAIN["model"]["config"],
            "image_size": 16,
            "condition_config": {"model_type": "unimm_text_condition", "feature_size": 12, "length": 12},
        }
    },
    "text_encoder": {
        "encoder_config": {"model_type": "t5", "d_model": 12, "d_kv": 4, "d_ff": 16, "num_layers": 1, "num_heads": 2},
        "words": "shapes",
    },
    "data": {"card": "shapes", "num_rows": 16, "options": {"task": "captions", "resolution": 16}},
    "samples": {"every_steps": 2, "prompts": ["a red circle", "a blue star left of a red circle"]},
}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A trained tokenizer's run."""
    folder = tmp_path_factory.mktemp("runs") / "tokenizer"
    return run_tokenizer(TokenizerRecipe.from_values(TOKENIZER, {"output_dir": str(folder)}))


@pytest.mark.needs("datasets")
def test_a_tokenizer_run_leaves_all_that_it_promises(trained):
    names = {path.name for path in trained.folder.iterdir()}
    assert {"recipe.yaml", "metrics.jsonl", "tensorboard", "samples", "checkpoint-2", "final", "finished.json"} <= names
    tokenizer = AutoModel.from_pretrained(trained.final)
    assert tokenizer.codebook_size == 32
    assert AutoModel.from_pretrained(trained.final / "ema").codebook_size == 32
    assert trained.results["psnr"]["n"] == 4
    assert "| psnr |" in ModelCard.load(trained.final / "README.md").text
    assert (trained.final / "recipe.yaml").read_text() == (trained.folder / "recipe.yaml").read_text()
    assert json.loads((trained.folder / "finished.json").read_text())["step"] == 2
    assert list((trained.folder / "tensorboard").glob("events.*"))


@pytest.mark.needs("datasets")
def test_a_finished_run_that_is_started_again_does_nothing(trained, caplog):
    before = {path: path.stat().st_mtime_ns for path in trained.final.rglob("*")}
    recipe = TokenizerRecipe.from_values(TOKENIZER, {"output_dir": str(trained.folder), "disable_tqdm": False})
    with caplog.at_level(logging.INFO, "unimm"):
        again = run_tokenizer(recipe)
    assert again.was_finished
    assert again.metrics == trained.metrics
    assert "is finished (step 2): nothing to do" in caplog.text
    assert {path: path.stat().st_mtime_ns for path in trained.final.rglob("*")} == before


@pytest.mark.needs("datasets")
def test_a_changed_recipe_does_not_go_into_the_same_folder(trained):
    changed = TokenizerRecipe.from_values(TOKENIZER, {"output_dir": str(trained.folder), "learning_rate": 1.0})
    with pytest.raises(RecipeError, match=r"training\.learning_rate was 0\.0001 there and is 1\.0 now"):
        run_tokenizer(changed)
    assert trained.final.is_dir()


@pytest.mark.needs("datasets")
def test_overwrite_starts_over(tmp_path):
    values = {"output_dir": str(tmp_path), "max_steps": 1, "samples.every_steps": 0}
    run_tokenizer(TokenizerRecipe.from_values(TOKENIZER, values))
    values |= {"learning_rate": 1e-3, "overwrite": True}
    again = run_tokenizer(TokenizerRecipe.from_values(TOKENIZER, values))
    assert not again.was_finished
    assert yaml.safe_load((tmp_path / "recipe.yaml").read_text())["training"]["learning_rate"] == 1e-3
    assert MetricsLog(tmp_path / "metrics.jsonl").read()[0]["step"] == 1


@pytest.mark.needs("datasets")
def test_a_conditional_model_is_trained_on_a_trained_tokenizer(trained, tmp_path):
    given = {"output_dir": str(tmp_path), "tokenizer": str(trained.final)}
    result = run_sft(SftRecipe.from_values(SFT, given))
    model = AutoModel.from_pretrained(result.final)
    processor = AutoProcessor.from_pretrained(result.final)
    tokenizer = AutoModel.from_pretrained(trained.final)
    for name, value in tokenizer.state_dict().items():
        assert value.equal(model.tokenizer.state_dict()[name]), name
    assert model.config.visual_token_id == processor.tokenizer.convert_tokens_to_ids("<|visual|>")
    assert model.config.text_config.vocab_size == len(processor.tokenizer)
    assert tuple(model.config.null_prompt_ids) == processor.null_prompt_ids
    assert (result.folder / "samples" / "step-000002.png").is_file()
    assert not (result.final / "training_args.bin").exists()
    logged = [line for line in MetricsLog(tmp_path / "metrics.jsonl").read() if "loss" in line]
    assert logged[0]["loss"] == pytest.approx(logged[0]["text_loss"] + logged[0]["image_loss"], rel=1e-5)


@pytest.mark.needs("datasets")
def test_an_image_generator_is_trained_on_classes(tmp_path):
    result = run_pretrain(PretrainRecipe.from_values(PRETRAIN, {"output_dir": str(tmp_path)}))
    model = AutoModel.from_pretrained(result.final)
    assert model.generate(labels=[3]).images.shape == (1, 3, 12, 12)
    assert (tmp_path / "samples" / "step-000002.png").is_file()
    assert "model.generate(labels" in (result.final / "README.md").read_text()


@pytest.mark.needs("datasets")
@pytest.mark.parametrize("null", ["table", "empty_prompt"])
def test_an_image_generator_is_trained_on_captions(null, tmp_path, caplog):
    given = {
        "output_dir": str(tmp_path / "run"),
        "collator.text_cache": str(tmp_path / "features"),
        "model.condition_config.null": null,
    }
    with caplog.at_level(logging.INFO, "unimm"):
        result = run_pretrain(PretrainRecipe.from_values(TEXT, given))
    model = AutoModel.from_pretrained(result.final)
    assert not model.condition.needs_empty_prompt
    drawn = model.generate(prompt=["a red circle", "a blue star"], negative_prompt="a circle", guidance_scale=2.0)
    assert drawn.images.shape == (2, 3, 16, 16)
    assert "captions, " in caplog.text
    assert list((tmp_path / "features").rglob("*.safetensors"))
    assert (result.folder / "samples" / "step-000002.png").is_file()
    card = ModelCard.load(result.final / "README.md")
    assert card.data.pipeline_tag == "text-to-image"
    assert 'model.generate(prompt=["a red circle"])' in card.text


def test_cached_features_train_as_fresh_ones_do(tmp_path):
    losses = []
    for number, given in enumerate([{}, {"collator.text_cache": str(tmp_path / "features")}] * 2):
        folder = tmp_path / f"run-{number}"
        run_pretrain(PretrainRecipe.from_values(TEXT, {"output_dir": str(folder), "samples.every_steps": 0, **given}))
        losses.append([line["loss"] for line in MetricsLog(folder / "metrics.jsonl").read() if "loss" in line])
    assert losses[1:] == [pytest.approx(losses[0], rel=1e-5)] * 3
    assert losses[3] == losses[1]


@pytest.mark.parametrize(
    ("stage", "values", "tokens"), [("tokenizer", TOKENIZER, 16), ("sft", SFT, None), ("pretrain", PRETRAIN, 36)]
)
def test_a_dry_run_describes_and_writes_nothing(stage, values, tokens, tmp_path, capsys):
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(values))
    words = ["--config", str(path), "--output_dir", str(tmp_path / "run"), "--dry_run"]
    if stage == "sft":
        words += ["--tokenizer", "{config: {model_type: unimm_vq_tokenizer, channel_multipliers: [1, 2, 2]}}"]
    result = run_stage(stage, words)
    assert not (tmp_path / "run").exists()
    assert f"{result.description.num_parameters:,}" in capsys.readouterr().out
    if tokens is None:
        # 16 visual tokens, and the words around them.
        assert result.description.tokens_per_sample > 18
    else:
        assert result.description.tokens_per_sample == tokens


@pytest.mark.parametrize(
    ("run", "recipe", "given", "error", "message"),
    [
        (
            run_sft,
            SftRecipe,
            {"tokenizer": "out/nowhere/final"},
            RecipeError,
            "there is no tokenizer at 'out/nowhere/final'",
        ),
        (run_sft, SftRecipe, {}, RecipeError, "a conditional model needs a visual tokenizer"),
        (
            run_sft,
            SftRecipe,
            {"processor.words": "shape"},
            RecipeError,
            r"no built-in vocabulary \(did you mean 'shapes'",
        ),
        (run_pretrain, PretrainRecipe, {"samples.prompts": ["a"]}, RecipeError, "draws from class labels"),
        (run_pretrain, PretrainRecipe, {"text_encoder": "t5"}, ConfigError, "has no field 'text_encoder'"),
        (run_pretrain, PretrainRecipe, {"evaluation.benchmark": "shapes"}, RecipeError, "which `unimm sft` trains"),
        (
            run_pretrain,
            PretrainRecipe,
            {"evaluation.data.card": "digits"},
            RecipeError,
            "evaluation.data is never read",
        ),
        (
            run_pretrain,
            PretrainRecipe,
            {"model.backbone_config.hiden_size": 3},
            ConfigError,
            "did you mean 'hidden_size'",
        ),
    ],
)
def test_what_a_stage_cannot_do_is_refused(tmp_path, run, recipe, given, error, message):
    values = {run_sft: SFT, run_pretrain: PRETRAIN}[run]
    with pytest.raises(error, match=message):
        run(recipe.from_values(values, {"output_dir": str(tmp_path / "run"), **given}))
    assert not (tmp_path / "run" / "final").exists()


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"samples": {"every_steps": 2}}, RecipeError, "draws from prompts"),
        (
            {"text_encoder": {**TEXT["text_encoder"], "words": "shape"}},
            RecipeError,
            r"text_encoder\.words.*did you mean 'shapes'",
        ),
        ({"text_encoder": "out/nowhere"}, ConfigError, "'out/nowhere' cannot be loaded"),
        ({"data": {"card": "digits", "options": {"resolution": 16}}}, DataError, "needs a caption"),
    ],
)
def test_what_a_text_conditional_run_cannot_do_is_refused(tmp_path, changes, error, message):
    with pytest.raises(error, match=message):
        run_pretrain(PretrainRecipe.from_values(TEXT | changes, {"output_dir": str(tmp_path)}))


def test_a_file_in_the_way_of_the_run_is_an_output_error(tmp_path):
    (tmp_path / "run").write_text("in the way")
    with pytest.raises(OutputError, match="cannot write"):
        run_pretrain(PretrainRecipe.from_values(PRETRAIN, {"output_dir": str(tmp_path / "run")}))


@pytest.mark.needs("datasets")
def test_a_dry_run_knows_the_tokenizer_that_the_recipe_beside_it_would_train(tmp_path):
    folder = str(tmp_path / "runs" / "tokenizer")
    first = {**TOKENIZER, "training": {**TOKENIZER["training"], "output_dir": folder}}
    (tmp_path / "tokenizer.yaml").write_text(yaml.safe_dump(first))
    (tmp_path / "unified.yaml").write_text(yaml.safe_dump({**SFT, "tokenizer": f"{folder}/final"}))
    words = ["--config", str(tmp_path / "unified.yaml"), "--output_dir", str(tmp_path / "run")]
    described = run_stage("sft", [*words, "--dry_run"]).description
    sizes = {part.name: part.num_parameters for part in described.parts}
    tokenizer = run_stage("tokenizer", ["--config", str(tmp_path / "tokenizer.yaml"), "--dry_run"]).description
    assert sizes["tokenizer"] == tokenizer.num_parameters
    with pytest.raises(RecipeError, match=r"train it first with `unimm tokenizer --config .*tokenizer\.yaml`"):
        run_stage("sft", words)


def test_an_unknown_stage_is_refused():
    with pytest.raises(RecipeError, match=r"no stage 'pretrian' \(did you mean 'pretrain'"):
        run_stage("pretrian", [])
