"""The run folder and its metrics."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from unimm.errors import OutputError, RecipeError
from unimm.training.outputs import MetricsLog, RunFolder, check_finite, differences, without_timing

RECIPE = {"model": {"path": "a"}, "training": {"learning_rate": 1e-3, "output_dir": "out"}}


@settings(deadline=None, max_examples=25)
@given(
    before=st.integers(0, 5),
    after=st.integers(0, 5),
    torn=st.sampled_from(["", '{"step": 1', "{"]),
)
def test_metrics_go_on_where_the_checkpoint_was_written(tmp_path_factory, before, after, torn):
    log = MetricsLog(tmp_path_factory.mktemp("run") / "metrics.jsonl")
    for step in range(before + after):
        log.append({"step": step})
    with open(log.path, "a") as file:
        file.write(torn)
    log.keep(before)
    log.append({"step": "next"})
    assert log.read() == [*({"step": step} for step in range(before)), {"step": "next"}]


def test_metrics_that_lost_lines_are_refused(tmp_path):
    log = MetricsLog(tmp_path / "metrics.jsonl")
    log.append({"step": 1})
    with pytest.raises(OutputError, match="has 1 lines, the checkpoint was written after line 2"):
        log.keep(2)


def test_a_metrics_file_that_cannot_be_written_is_an_output_error(tmp_path):
    (tmp_path / "run").write_text("in the way")
    with pytest.raises(OutputError, match="cannot write"):
        MetricsLog(tmp_path / "run" / "metrics.jsonl").append({"step": 1})


def test_timing_fields_are_left_out_of_comparisons():
    line = {"step": 1, "loss": 2.0, "seconds": 3.0, "eval_runtime": 1.0, "train_samples_per_second": 4.0}
    assert without_timing(line) == {"step": 1, "loss": 2.0}


def test_a_loss_that_is_not_a_number_is_refused():
    check_finite({"loss": 1.0}, 3)
    with pytest.raises(FloatingPointError, match=r"loss is nan at step 3: lower learning_rate"):
        check_finite({"loss": float("nan")}, 3)


def test_a_folder_belongs_to_one_recipe(tmp_path):
    folder = RunFolder(tmp_path)
    folder.start(RECIPE, header="a\nb")
    assert folder.recipe.read_text().startswith("# a\n# b\nmodel:\n")
    folder.start(RECIPE)
    changed = {**RECIPE, "training": {**RECIPE["training"], "learning_rate": 1e-4}}
    with pytest.raises(RecipeError, match=r"training\.learning_rate was 0\.001 there and is 0\.0001 now.*--overwrite"):
        folder.start(changed)
    folder.start(changed, free=frozenset({"training.learning_rate"}))


def test_metrics_without_a_recipe_are_not_overwritten(tmp_path):
    folder = RunFolder(tmp_path)
    MetricsLog(folder.metrics).append({"step": 1})
    with pytest.raises(RecipeError, match=r"no recipe\.yaml"):
        folder.start(RECIPE)


def test_clearing_removes_the_run_and_nothing_else(tmp_path):
    folder = RunFolder(tmp_path)
    folder.start(RECIPE)
    folder.finish({"step": 3})
    MetricsLog(folder.metrics).append({"step": 1})
    (tmp_path / "checkpoint-3").mkdir()
    folder.samples.mkdir()
    (tmp_path / "notes.txt").write_text("mine")
    assert folder.finished == {"step": 3}
    folder.clear()
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]
    assert folder.finished is None


def test_two_runs_cannot_write_into_one_folder(tmp_path):
    with (
        RunFolder(tmp_path).lock(),
        pytest.raises(OutputError, match="another process is training into"),
        RunFolder(tmp_path).lock(patience=0.0),
    ):
        pytest.fail("the lock was given twice")
    with RunFolder(tmp_path).lock(patience=0.0):
        pass


def test_a_file_in_the_way_of_the_run_folder_is_an_output_error(tmp_path):
    (tmp_path / "run").write_text("in the way")
    with pytest.raises(OutputError, match="cannot write"), RunFolder(tmp_path / "run").lock():
        pytest.fail("a file cannot be locked as a folder")


def test_differences_are_named_by_their_place():
    before, now = {"a": {"b": 1, "c": [1]}, "d": 2}, {"a": {"b": 1, "c": [2]}, "e": 3}
    assert list(differences(before, now)) == [("a.c", [1], [2]), ("d", 2, None), ("e", None, 3)]
