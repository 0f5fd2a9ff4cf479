"""The store in one file: what comes back is what was, and nothing lands anywhere else."""

import json
import zipfile
from pathlib import Path

import pytest

from inference.backup import backup, restore
from inference.errors import ModelStoreError
from inference.files import FolderFiles
from inference.store import ModelStore
from tests.published import project, publish


@pytest.fixture
def store(tmp_path: Path) -> ModelStore:
    """Two versions, of which the first is live again, and a note."""
    made = ModelStore(tmp_path / "models")
    known = made.register(project("http://studio.example"))
    publish(made, known)
    publish(made, known)
    made.point(known.key, "v1", reason="rollback")
    made.write_note(known.key, "v2", "worse on pears")
    return made


def test_a_store_comes_back_in_an_empty_place(store: ModelStore, tmp_path: Path) -> None:
    file = tmp_path / "kept.zip"
    count = backup(store.files, file)
    again = ModelStore(tmp_path / "elsewhere")
    assert restore(file, again.files) == count
    (known,) = again.projects()
    assert known == store.projects()[0]
    assert again.versions(known.key) == ["v1", "v2"]
    assert again.current(known.key) == "v1"
    assert again.previous(known.key) == store.previous(known.key)
    assert again.note(known.key, "v2") == "worse on pears"
    for version in again.versions(known.key):
        theirs, ours = again.weights(known.key, version), store.weights(known.key, version)
        assert theirs.keys() == ours.keys()
        assert all(theirs[name].equal(ours[name]) for name in ours)
    assert publish(again, known) == "v3"


def test_a_store_with_projects_is_left_as_it_is(store: ModelStore, tmp_path: Path) -> None:
    file = tmp_path / "kept.zip"
    backup(store.files, file)
    with pytest.raises(ModelStoreError, match="holds projects already"):
        restore(file, store.files)
    assert store.versions(store.projects()[0].key) == ["v1", "v2"]


def test_an_empty_store_is_not_backed_up(tmp_path: Path) -> None:
    with pytest.raises(ModelStoreError, match="nothing to back up"):
        backup(FolderFiles(tmp_path), tmp_path / "kept.zip")
    assert list(tmp_path.iterdir()) == []


def test_what_is_half_written_is_left_out(store: ModelStore, tmp_path: Path) -> None:
    half = store.root / "projects" / store.projects()[0].key / "versions" / ".new-12"
    half.mkdir()
    (half / "weights.safetensors").write_bytes(b"half")
    backup(store.files, tmp_path / "kept.zip")
    with zipfile.ZipFile(tmp_path / "kept.zip") as packed:
        assert not any(".new-" in name or name.endswith(".lock") for name in packed.namelist())


@pytest.mark.parametrize("at", [0.3, 0.6, 0.99])
def test_a_damaged_backup_restores_nothing(store: ModelStore, tmp_path: Path, at: float) -> None:
    file, again = tmp_path / "kept.zip", tmp_path / "elsewhere"
    backup(store.files, file)
    data = bytearray(file.read_bytes())
    where = int(at * len(data))
    data[where : where + 40] = bytes(255 - one for one in data[where : where + 40])
    file.write_bytes(data)
    with pytest.raises(ModelStoreError):
        restore(file, FolderFiles(again))
    assert not again.exists()


@pytest.mark.parametrize(
    "name", ["../outside", "projects/../../outside", "/etc/outside", "projects\\..\\x", "outside"]
)
def test_a_name_that_leads_elsewhere_is_refused(tmp_path: Path, name: str) -> None:
    file, root = tmp_path / "bad.zip", tmp_path / "inside" / "models"
    with zipfile.ZipFile(file, "w") as packed:
        packed.writestr(name, b"x")
        packed.writestr("backup.json", json.dumps({"format": 1, "sha256": {name: "0" * 64}}))
    with pytest.raises(ModelStoreError, match="no place in a store"):
        restore(file, FolderFiles(root))
    assert {path.name for path in tmp_path.rglob("*")} == {"bad.zip"}


def test_a_backup_of_a_format_to_come_is_told(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "new.zip", "w") as packed:
        packed.writestr("backup.json", json.dumps({"format": 2, "sha256": {}}))
    with pytest.raises(ModelStoreError, match="format 2"):
        restore(tmp_path / "new.zip", FolderFiles(tmp_path / "models"))


def test_a_file_that_cannot_be_written_leaves_nothing(store: ModelStore, tmp_path: Path) -> None:
    with pytest.raises(ModelStoreError, match="cannot write the backup"):
        backup(store.files, tmp_path / "nowhere" / "kept.zip")
