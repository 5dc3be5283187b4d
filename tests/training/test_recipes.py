"""Recipes: files, command-line words, types, and what is refused."""

from __future__ import annotations

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.trainer_utils import SchedulerType

from unimm.errors import RecipeError
from unimm.training.fields import RecipeLoader, parse_words, plain, read_yaml
from unimm.training.recipes import DataSection, PretrainRecipe, SftRecipe, TokenizerRecipe

PRETRAIN = """
model: {system: var, preset: d16}
tokenizer: out/tokenizer/final
data: {card: shapes, options: {resolution: 32}}
training:
  output_dir: out/run
  learning_rate: 1e-4
  max_steps: 10
tiny:
  model: {backbone_config: {hidden_size: 32}}
  training: {max_steps: 2}
  tokenizer: null
  data: {card: digits}
"""
TOKENIZER = """
model: {config: {model_type: unimm_vq_tokenizer, base_channels: 8}}
image_size: 32
data: [{card: shapes}, {card: digits, weight: 0.5}]
training: {output_dir: out/run, max_steps: 10, lr_scheduler_type: linear}
loss: {adversarial_weight: 0.1}
"""


@pytest.fixture
def pretrain(tmp_path):
    (tmp_path / "pretrain.yaml").write_text(PRETRAIN)
    return str(tmp_path / "pretrain.yaml")


@pytest.fixture
def tokenizer(tmp_path):
    (tmp_path / "tokenizer.yaml").write_text(TOKENIZER)
    return str(tmp_path / "tokenizer.yaml")


def parsed(file, *words, cls=PretrainRecipe):
    return cls.parse(["--config", file, *words])


def test_a_file_gives_typed_sections(pretrain):
    recipe = parsed(pretrain)
    assert recipe.data == [DataSection(card="shapes", options={"resolution": 32})]
    assert recipe.training == {"output_dir": "out/run", "learning_rate": 1e-4, "max_steps": 10}
    assert not recipe.dry_run
    assert not recipe.overwrite


def test_the_command_line_wins_over_the_file(pretrain):
    recipe = parsed(
        pretrain,
        "--learning_rate", "3e-4",
        "--training.max_steps=1e3",
        "--save-steps", "50",
        "--model.backbone_config.num_hidden_layers", "2",
        "--data.options.task", "captions",
        "--tokenizer", "null",
        "--dry_run",
        "--card.tags", "a", "b",
        "--evaluation.sampling", "{top_k: 5}",
    )  # fmt: skip
    assert recipe.training["learning_rate"] == 3e-4
    assert recipe.training["max_steps"] == 1000
    assert isinstance(recipe.training["max_steps"], int)
    assert recipe.training["save_steps"] == 50
    assert recipe.model["overrides"] == {"backbone_config": {"num_hidden_layers": 2}}
    assert recipe.data[0].options == {"resolution": 32, "task": "captions"}
    assert recipe.tokenizer is None
    assert recipe.dry_run
    assert recipe.card.tags == ["a", "b"]
    assert recipe.evaluation.sampling == {"top_k": 5}


def test_a_model_given_as_config_takes_overrides_there(tokenizer):
    recipe = parsed(tokenizer, "--model.base_channels", "16", "--data.1.weight", "2", cls=TokenizerRecipe)
    assert recipe.model["config"]["base_channels"] == 16
    assert recipe.data[1].weight == 2.0
    assert recipe.height_and_width == (32, 32)
    assert recipe.arguments().lr_scheduler_type is SchedulerType.LINEAR


def test_a_recipe_can_stand_on_the_command_line_alone():
    words = [
        "--model.path",
        "some/model",
        "--data.card",
        "shapes",
        "--output_dir",
        "out/run",
        "--processor.words",
        "shapes",
    ]
    recipe = SftRecipe.parse(words)
    assert recipe.model == {"path": "some/model"}
    assert recipe.data[0].card == "shapes"
    assert recipe.processor.words == "shapes"


def test_tiny_overrides_sizes_and_puts_stand_ins_for_data_and_tokenizer(pretrain):
    recipe = parsed(pretrain, "--tiny", "--max_steps", "3")
    assert recipe.model == {"system": "var", "preset": "d16", "overrides": {"backbone_config": {"hidden_size": 32}}}
    assert recipe.training["max_steps"] == 3
    assert recipe.tokenizer is None
    assert recipe.data == [DataSection(card="digits")]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--learning_rat", "1"], r"command line: there is no field --learning_rat \(did you mean 'learning_rate'\?\)"),
        (["--max_steps", "many"], r"command line: training.max_steps must be a whole number, given 'many' \(str\)"),
        (["--bf16", "1"], r"command line: training.bf16 must be true or false, given 1 \(int\)"),
        (["--lr_scheduler_type", "cosin"], r"no choice 'cosin' \(did you mean 'cosine'\?\)"),
        (
            ["--evaluation.benchmrk", "x"],
            r"command line: 'evaluation' has no field 'benchmrk' \(did you mean 'benchmark'\?\)",
        ),
        (["--data.weight", "heavy"], r"data.weight must be a number"),
        (["--data.weight", "0"], r"every weight must be positive"),
        (["--data", "3"], r"data must be a list, given 3 \(int\)"),
        (["--model.system.part", "1"], r"steps into 'model.system', whose value is 'var'"),
        (["--model.path", "x"], r"exactly one of path, system and config, given \['path', 'preset', 'system'\]"),
        (["--tokenizer", "{paht: x}"], r"given the keys \['paht'\]"),
        (["--max_steps", "1", "--max_steps", "2"], r"--max_steps is given twice"),
        (["stray"], r"--config takes one file"),
        (["--dry_run", "3"], r"--dry_run is a flag"),
        (["--output_dir", "null"], r"training needs the field 'output_dir'"),
        (["--card.title", "{"], r"--card.title, '\{', is no valid YAML"),
    ],
)
def test_what_does_not_fit_on_the_command_line_is_refused(pretrain, words, message):
    with pytest.raises(RecipeError, match=message):
        parsed(pretrain, *words)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            ("max_steps: 10", "max_step: 10"),
            r"pretrain.yaml: 'training' has no field 'max_step' \(did you mean 'max_steps'",
        ),
        (("max_steps: 10", "max_steps: ten"), r"pretrain.yaml: training.max_steps must be a whole number, given 'ten'"),
        (("max_steps: 10", "max_steps: 10\n  max_steps: 11"), r"'max_steps' is given twice"),
        (
            ("tokenizer:", "tokeniser:"),
            r"pretrain.yaml: a recipe has no field 'tokeniser' \(did you mean 'tokenizer'\?\)",
        ),
        (("{card: shapes,", "{split: test,"), r"pretrain.yaml: data needs the field 'card'"),
        (("tiny:", "dry_run: true\ntiny:"), r"'dry_run' is given on the command line"),
        (("output_dir: out/run", ""), r"pretrain.yaml: training needs the field 'output_dir'"),
        (("preset: d16", "sise: d16"), r"model has no key 'sise'"),
    ],
)
def test_what_does_not_fit_in_a_file_is_refused_with_its_name(tmp_path, change, message):
    path = tmp_path / "pretrain.yaml"
    path.write_text(PRETRAIN.replace(*change))
    with pytest.raises(RecipeError, match=message):
        parsed(str(path))


@pytest.mark.parametrize(
    ("tiny", "message"),
    [
        (
            "training: {learning_rate: 0.1}",
            r"tiny.training.learning_rate is 0.1, but the tiny section overrides sizes only",
        ),
        ("model: {backbone_config: {block: llama}}", "overrides sizes only"),
        ("modle: {}", r"no field 'modle'"),
    ],
)
def test_tiny_changes_nothing_but_sizes(tmp_path, tiny, message):
    path = tmp_path / "recipe.yaml"
    path.write_text(PRETRAIN[: PRETRAIN.index("tiny:")] + "tiny:\n  " + tiny + "\n")
    with pytest.raises(RecipeError, match=message):
        parsed(str(path), "--tiny")


def test_tiny_without_a_section_is_refused(tokenizer):
    with pytest.raises(RecipeError, match="no 'tiny' section"):
        parsed(tokenizer, "--tiny", cls=TokenizerRecipe)


def test_a_missing_file_and_a_file_without_fields_are_refused(tmp_path):
    with pytest.raises(RecipeError, match="cannot read the recipe"):
        parsed(str(tmp_path / "nowhere.yaml"))
    (tmp_path / "list.yaml").write_text("[1, 2]")
    with pytest.raises(RecipeError, match="expected fields with values"):
        parsed(str(tmp_path / "list.yaml"))


def test_arguments_that_do_not_go_together_name_the_recipe(pretrain):
    with pytest.raises(RecipeError, match=r"pretrain.yaml: training: .*load_best_model_at_end"):
        parsed(pretrain, "--load_best_model_at_end").arguments()
    with pytest.raises(RecipeError, match=r"pretrain.yaml: training: eval_strategy: epoch needs"):
        parsed(pretrain, "--eval_strategy", "epoch").arguments()


@pytest.mark.parametrize("name", ["pretrain", "tokenizer"])
def test_a_resolved_recipe_read_again_is_the_same_recipe(name, tmp_path, request):
    cls = {"pretrain": PretrainRecipe, "tokenizer": TokenizerRecipe}[name]
    recipe = parsed(request.getfixturevalue(name), cls=cls)
    resolved = recipe.resolved()
    (tmp_path / "resolved.yaml").write_text(yaml.safe_dump(resolved))
    again = parsed(str(tmp_path / "resolved.yaml"), cls=cls)
    assert again.resolved() == resolved
    assert resolved["training"]["resume"] is True


@settings(deadline=None, max_examples=50)
@given(st.floats(allow_nan=False, allow_infinity=False))
def test_every_float_that_python_writes_is_read_as_a_number(value):
    assert yaml.load(repr(value), RecipeLoader) == value


words = st.text("abcdefg_", min_size=1, max_size=6).filter(lambda text: text[0] != "_")


@settings(deadline=None, max_examples=50)
@given(
    st.dictionaries(words, st.one_of(st.integers(), st.booleans(), st.floats(allow_nan=False, allow_infinity=False)))
)
def test_values_survive_the_command_line(values):
    given_words = [
        word for name, value in values.items() for word in (f"--{name}", yaml.safe_dump(value).split("\n")[0])
    ]
    assert parse_words(given_words) == values


def test_plain_values_are_what_yaml_can_hold(pretrain, tmp_path):
    path = tmp_path / "plain.yaml"
    path.write_text(yaml.safe_dump(plain({"a": SchedulerType.COSINE, "b": (1, 2), "c": DataSection(card="x")})))
    assert read_yaml(path)["a"] == "cosine"
    assert read_yaml(path)["b"] == [1, 2]
    assert read_yaml(path)["c"]["card"] == "x"
