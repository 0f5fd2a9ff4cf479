"""What was read of a version is read once, and what is not there is not made up."""

from dataclasses import replace
from pathlib import Path

import pytest

from inference.errors import ModelStoreError, UnknownVersionError
from inference.predictor import Predictors
from inference.records import Records
from inference.store import ModelStore
from tests.inference.small import HEAD, head_of, project, publish, seen
from tests.published import TREE


@pytest.fixture
def store(tmp_path: Path) -> ModelStore:
    made = ModelStore(tmp_path)
    made.save_project(project())
    return made


def test_a_version_is_read_once(store: ModelStore) -> None:
    key = project().key
    version = publish(store, project(), TREE, head_of(TREE, HEAD), known=seen())
    records = Records(store)
    first = records.get(key, version)
    assert first.tree == TREE
    assert first.record is not None
    assert len(first.record.seen) == 200
    assert first.by_node
    assert first.rule.target == 0.9
    assert not first.manifest.tree
    assert records.get(key, version) is first
    assert records.summary(key, version).metrics == {}


def test_without_evidence_only_the_manifest_is_shown(store: ModelStore) -> None:
    version = publish(store, project(), TREE, head_of(TREE, HEAD))
    found = Records(store).get(project().key, version)
    assert (found.record, found.figures, found.confusions) == (None, None, [])
    assert not found.by_node


def test_what_is_asked_for_now_is_what_is_told(store: ModelStore) -> None:
    version = publish(store, project(), TREE, head_of(TREE, HEAD), known=seen(400))
    records = Records(store)
    assert (
        records.calibration(project(), version)
        == records.summary(project().key, version).calibration
    )
    asked = replace(project(), target_accuracy=0.75, maximum_depth=1)
    now = records.calibration(asked, version)
    assert now["rule"]["target"] == 0.75
    assert now["mean_depth"] == pytest.approx(now["given"], abs=1e-3)
    assert now["rule"] == Predictors(store).get(asked, version).rule.to_json()


def test_a_version_without_evidence_has_no_figures(store: ModelStore) -> None:
    version = publish(store, project(), TREE, head_of(TREE, HEAD))
    known = Records(store).get(project().key, version)
    assert known.record is None
    assert known.figures is None
    assert known.confusions == []


def test_only_the_newest_looked_at_are_kept(store: ModelStore) -> None:
    names = [publish(store, project(), TREE, head_of(TREE, HEAD)) for _ in range(3)]
    records = Records(store, keep=2)
    first = records.get(project().key, names[0])
    for name in names[1:]:
        records.get(project().key, name)
    assert records.get(project().key, names[0]) is not first


def test_what_is_not_there_or_damaged_is_told(store: ModelStore) -> None:
    version = publish(store, project(), TREE, head_of(TREE, HEAD))
    records = Records(store)
    with pytest.raises(UnknownVersionError):
        records.get(project().key, "v9")
    with pytest.raises(UnknownVersionError):
        records.summary(project().key, "v9")
    folder = store.root / "projects" / project().key / "versions" / version
    (folder / "weights.safetensors").write_bytes(b"")
    with pytest.raises(ModelStoreError, match="not those published"):
        records.get(project().key, version)
