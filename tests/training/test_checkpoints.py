"""Checkpoints are complete or recognised as torn, whatever interrupts them."""

from __future__ import annotations

import errno
import os
from unittest import mock

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from unimm.errors import OutputError
from unimm.training import checkpoints
from unimm.training.checkpoints import MARK, RETIRED, STAGING, CheckpointStore, is_complete, step_of


class Killed(BaseException):
    """Stands for a kill: nobody catches it."""


def write(store, step, content=b"weights"):
    with store.write(step) as staged:
        (staged / "model.bin").write_bytes(content)
        (staged / "part").mkdir()
        (staged / "part" / "optimizer.bin").write_bytes(content * 2)


def names(path):
    return sorted(one.name for one in path.iterdir())


def test_a_written_checkpoint_is_complete_and_leaves_nothing_beside_it(tmp_path):
    store = CheckpointStore(tmp_path)
    write(store, 7)
    assert names(tmp_path) == ["checkpoint-7"]
    assert is_complete(tmp_path / "checkpoint-7")
    assert store.newest() == tmp_path / "checkpoint-7"
    assert step_of(store.newest()) == 7


def test_an_error_while_writing_leaves_the_earlier_checkpoint_alone(tmp_path):
    store = CheckpointStore(tmp_path)
    write(store, 1)

    def break_off():
        with store.write(2) as staged:
            (staged / "half").write_text("…")
            raise KeyError("broken")

    with pytest.raises(KeyError):
        break_off()
    assert store.newest() == tmp_path / "checkpoint-1"
    assert not list((tmp_path / STAGING).iterdir())


@pytest.mark.parametrize("damage", ["no mark", "a file is missing", "a file is cut", "the mark is cut"])
def test_a_torn_checkpoint_is_ignored_and_removed(tmp_path, damage):
    store = CheckpointStore(tmp_path)
    write(store, 1)
    write(store, 2)
    torn = tmp_path / "checkpoint-2"
    if damage == "no mark":
        (torn / MARK).unlink()
    elif damage == "a file is missing":
        (torn / "part" / "optimizer.bin").unlink()
    elif damage == "a file is cut":
        (torn / "model.bin").write_bytes(b"we")
    else:
        (torn / MARK).write_text((torn / MARK).read_text()[:20])
    assert store.newest() == tmp_path / "checkpoint-1"
    store.clean()
    assert names(tmp_path) == ["checkpoint-1"]


@settings(deadline=None, max_examples=20)
@given(
    point=st.sampled_from(["mark_complete", "sync_folder", "write_json"]),
    calls=st.integers(0, 3),
    step=st.integers(2, 9),
)
def test_a_kill_inside_a_write_leaves_the_old_or_the_new_checkpoint(tmp_path_factory, point, calls, step):
    folder = tmp_path_factory.mktemp("run")
    store = CheckpointStore(folder)
    write(store, 1)
    original, count = getattr(checkpoints, point), [0]

    def killing(*args, **kwargs):
        if count[0] == calls:
            raise Killed
        count[0] += 1
        return original(*args, **kwargs)

    killed = False
    with mock.patch.object(checkpoints, point, killing), mock.patch.object(checkpoints.shutil, "rmtree"):
        try:
            write(store, step)
        except Killed:
            killed = True
    store = CheckpointStore(folder)
    store.clean()
    assert not (folder / STAGING).exists()
    newest = step_of(store.newest())
    assert newest == step or (killed and newest == 1)
    for path in folder.iterdir():
        assert is_complete(path)


def test_a_write_that_lacked_only_its_renaming_is_finished(tmp_path):
    store = CheckpointStore(tmp_path)
    with (
        mock.patch.object(CheckpointStore, "_publish", side_effect=Killed),
        mock.patch.object(checkpoints.shutil, "rmtree"),
        pytest.raises(Killed),
    ):
        write(store, 3)
    assert store.newest() is None
    store.clean()
    assert store.newest() == tmp_path / "checkpoint-3"


def test_rotation_keeps_the_newest_and_the_protected_ones(tmp_path):
    store = CheckpointStore(tmp_path)
    for step in (2, 10, 30, 9):
        write(store, step)
    store.rotate(2, keep=[tmp_path / "checkpoint-2", None])
    assert names(tmp_path) == ["checkpoint-2", "checkpoint-30"]
    store.rotate(None)
    assert names(tmp_path) == ["checkpoint-2", "checkpoint-30"]


def test_an_interrupted_deletion_leaves_no_checkpoint_with_some_of_its_files(tmp_path):
    store = CheckpointStore(tmp_path)
    write(store, 1)
    write(store, 2)
    original = checkpoints.shutil.rmtree

    def half_way(path, *args, **kwargs):
        if (path / "checkpoint-1").exists():
            os.unlink(path / "checkpoint-1" / "model.bin")
            raise Killed
        original(path, *args, **kwargs)

    with mock.patch.object(checkpoints.shutil, "rmtree", half_way), pytest.raises(Killed):
        store.rotate(1)
    assert names(tmp_path) == [RETIRED, "checkpoint-2"]
    store.clean()
    assert names(tmp_path) == ["checkpoint-2"]


def test_the_same_step_can_be_written_again(tmp_path):
    store = CheckpointStore(tmp_path)
    write(store, 1, b"first")
    write(store, 1, b"second")
    assert (tmp_path / "checkpoint-1" / "model.bin").read_bytes() == b"second"
    assert names(tmp_path) == ["checkpoint-1"]


def test_a_file_in_the_way_of_the_folder_is_an_output_error(tmp_path):
    (tmp_path / "run").write_text("I am a file")
    with pytest.raises(OutputError, match=r"cannot write .*checkpoint-1.*Choose another output folder"):
        write(CheckpointStore(tmp_path / "run"), 1)


def full_disk(*args, **kwargs):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_full_disk_is_an_output_error_and_the_earlier_checkpoint_stays(tmp_path):
    store = CheckpointStore(tmp_path)
    write(store, 1)
    with mock.patch.object(checkpoints.os, "fsync", full_disk), pytest.raises(OutputError, match="the disk is full"):
        write(store, 2)
    assert store.complete() == [tmp_path / "checkpoint-1"]


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full, which refuses every write")
@pytest.mark.parametrize("library", ["torch", "safetensors"])
def test_a_full_disk_is_recognised_behind_the_errors_of_torch_and_safetensors(tmp_path, library):
    def write_weights():
        with CheckpointStore(tmp_path).write(1) as staged:
            if library == "torch":
                (staged / "weights").symlink_to("/dev/full")
                torch.save(torch.zeros(100_000), staged / "weights")
            else:
                with mock.patch("safetensors.torch.serialize_file", side_effect=safetensors_error):
                    save_file({"weight": torch.zeros(8)}, staged / "weights")

    with pytest.raises(OutputError) as caught:
        write_weights()
    assert caught.value.errno == errno.ENOSPC


def safetensors_error(*args, **kwargs):
    from safetensors import SafetensorError

    raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")


def test_other_errors_are_not_taken_for_a_full_disk(tmp_path):
    with pytest.raises(RuntimeError, match="shapes"), CheckpointStore(tmp_path).write(1):
        raise RuntimeError("shapes do not fit")
