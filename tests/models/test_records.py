"""What was read of a version is read once, and what is not there is not made up."""

from pathlib import Path

import pytest

from models.errors import ModelStoreError, UnknownVersionError
from models.records import Records
from models.store import ModelStore
from tests.models.small import FROZEN, head_of, project, publish, seen
from tests.published import TREE


@pytest.fixture
def store(tmp_path: Path) -> ModelStore:
    made = ModelStore(tmp_path)
    made.save_project(project())
    return made


def test_a_version_is_read_once(store: ModelStore) -> None:
    key = project().key
    version = publish(store, project(), TREE, head_of(TREE, FROZEN), known=seen())
    records = Records(store)
    first = records.get(key, version)
    assert first.tree == TREE
    assert first.record is not None
    assert len(first.record.seen) == 200
    assert not first.by_node  # a version of an earlier release
    assert first.rule.target == 0.9
    assert "tree" not in first.manifest
    assert records.get(key, version) is first
    assert records.summary(key, version)["metrics"] == {}


def test_a_version_without_evidence_has_no_figures(store: ModelStore) -> None:
    version = publish(store, project(), TREE, head_of(TREE, FROZEN))
    known = Records(store).get(project().key, version)
    assert known.record is None
    assert known.figures is None
    assert known.confusions == []


def test_only_the_newest_looked_at_are_kept(store: ModelStore) -> None:
    names = [publish(store, project(), TREE, head_of(TREE, FROZEN)) for _ in range(3)]
    records = Records(store, keep=2)
    first = records.get(project().key, names[0])
    for name in names[1:]:
        records.get(project().key, name)
    assert records.get(project().key, names[0]) is not first


def test_what_is_not_there_or_damaged_is_told(store: ModelStore) -> None:
    version = publish(store, project(), TREE, head_of(TREE, FROZEN))
    records = Records(store)
    with pytest.raises(UnknownVersionError):
        records.get(project().key, "v9")
    with pytest.raises(UnknownVersionError):
        records.summary(project().key, "v9")
    folder = store.root / "projects" / project().key / "versions" / version
    (folder / "weights.safetensors").write_bytes(b"")
    with pytest.raises(ModelStoreError, match="not those published"):
        records.get(project().key, version)
