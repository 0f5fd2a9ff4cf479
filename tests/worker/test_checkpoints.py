"""A checkpoint is there whole, or it is as if it had never been."""

import json
import os
import time
from pathlib import Path

import pytest
import safetensors.torch
import torch

from worker.checkpoints import MAX_AGE_S, Checkpoints, Saved, prune, remove

TENSORS = {
    "weights": torch.arange(6.0).reshape(2, 3).T,  # not contiguous
    "channels": torch.ones(1, 2, 3, 3).to(memory_format=torch.channels_last),
    "steps": torch.tensor(7),
    "generator": torch.arange(5, dtype=torch.uint8),
}


def loaded(checkpoints: Checkpoints) -> Saved:
    found = checkpoints.load()
    assert found is not None
    return found


def test_what_was_saved_last_is_loaded(tmp_path: Path) -> None:
    saved = Checkpoints(tmp_path / "project", "aa")
    saved.save(TENSORS, {"steps": 1})
    saved.save(TENSORS, {"steps": 2})
    found = loaded(Checkpoints(tmp_path / "project", "aa"))
    assert found.state["steps"] == 2
    assert found.tensors.keys() == TENSORS.keys()
    for name, value in TENSORS.items():
        assert torch.equal(found.tensors[name], value)
    assert [file.name for file in (tmp_path / "project").iterdir()] == ["aa.safetensors"]


def test_there_is_nothing_at_first(tmp_path: Path) -> None:
    assert Checkpoints(tmp_path / "project", "aa").load() is None


def test_another_trainings_checkpoint_is_not_loaded_and_goes(tmp_path: Path) -> None:
    Checkpoints(tmp_path, "aa").save(TENSORS, {})
    (tmp_path / ".new-1234").write_bytes(b"half wri")
    assert Checkpoints(tmp_path, "bb").load() is None
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "state", [{"form": 2, "identity": "aa"}, {"form": 1, "identity": "bb"}, {}, 1, None]
)
def test_one_of_another_form_is_passed_over(tmp_path: Path, state: object) -> None:
    """Also one that was renamed by hand, or holds no state."""
    saved = Checkpoints(tmp_path, "aa")
    metadata = {} if state is None else {"state": json.dumps(state)}
    safetensors.torch.save_file({"a": torch.ones(1)}, saved.path, metadata=metadata)
    assert saved.load() is None


@pytest.mark.parametrize("left", [0, 5, -1])
def test_a_torn_file_is_passed_over(tmp_path: Path, left: int) -> None:
    saved = Checkpoints(tmp_path, "aa")
    saved.save(TENSORS, {})
    saved.path.write_bytes(saved.path.read_bytes()[:left])
    assert saved.load() is None


def test_a_checkpoint_that_cannot_be_written_does_not_stop_the_training(tmp_path: Path) -> None:
    (tmp_path / "project").write_text("a file where a folder should be")
    saved = Checkpoints(tmp_path / "project", "aa")
    saved.save(TENSORS, {})
    assert saved.load() is None


def test_one_is_due_when_the_last_is_long_ago(tmp_path: Path) -> None:
    assert Checkpoints(tmp_path, "aa", every_s=0).due
    late = Checkpoints(tmp_path, "aa", every_s=3600)
    assert not late.due
    late.save(TENSORS, {})
    assert not late.due


def test_a_projects_checkpoints_are_removed(tmp_path: Path) -> None:
    for project in ("one", "two"):
        Checkpoints(tmp_path / project, "aa").save(TENSORS, {})
    remove(tmp_path / "one")
    remove(tmp_path / "never")
    assert [folder.name for folder in tmp_path.iterdir()] == ["two"]


def test_old_ones_of_all_projects_are_pruned(tmp_path: Path) -> None:
    old, new = (Checkpoints(tmp_path / name, "aa") for name in ("one", "two"))
    for saved in (old, new):
        saved.save(TENSORS, {})
    long_ago = time.time() - MAX_AGE_S - 60
    os.utime(old.path, (long_ago, long_ago))
    prune(tmp_path)
    assert not old.path.exists()
    assert new.path.exists()
