"""What was read of a version is read once, and what is not there is not made up."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from hierarchy import LabelTree
from hierarchy.calibration import Evidence
from inference.errors import ModelStoreError, UnknownVersionError
from inference.insight import as_tensors
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
    assert not first.by_node  # a version of an earlier release
    assert first.rule.target == 0.9
    assert not first.manifest.tree
    assert records.get(key, version) is first
    assert records.summary(key, version).metrics == {}


ROOTED = LabelTree.from_paths([("Life", *path) for path in TREE.paths if path != ("Fruit",)])


def rooted(known: Evidence) -> Evidence:
    """The same evidence below a root that is always right, as earlier releases kept it."""
    count = len(known)
    sure = np.column_stack([np.full(count, 0.999), known.probability])
    return Evidence(sure, np.column_stack([np.ones(count, dtype=np.int64), known.right]))


def test_an_earlier_certificate_does_not_count_a_root_above_everything(store: ModelStore) -> None:
    """Its evidence is kept, so what it is worth is fitted again: as for the tree below the root."""
    plain = publish(store, project(), TREE, head_of(TREE, HEAD), known=seen(400))
    version = publish(store, project(), ROOTED, head_of(ROOTED, HEAD), known=rooted(seen(400)))
    hollow = store.manifest(project().key, version).calibration
    assert hollow["given"] == 1.0
    records = Records(store)
    now = records.summary(project().key, version).calibration
    below = records.summary(project().key, plain).calibration
    for name in ("standing", "checked", "wrong", "given", "mean_depth"):
        assert now[name] == below[name]
    assert now["given"] < 1
    assert now["rule"]["price"] == pytest.approx(below["rule"]["price"])
    predictor = Predictors(store).get(project(), version)
    assert predictor.rule.to_json() == now["rule"]
    assert [ids.tolist() for ids in predictor.decisions.levels] == [
        sorted([ROOTED.index(("Life", "Fruit")), ROOTED.index(("Life", "Milk"))]),
        [ROOTED.index(("Life", "Fruit", name)) for name in ("Apple", "Pear")],
    ]
    bare = publish(store, project(), ROOTED, head_of(ROOTED, HEAD))  # keeps no evidence
    assert records.summary(project().key, bare).calibration["standing"] == "none"
    assert Predictors(store).get(project(), bare).rule.price is None


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


def test_earlier_figures_are_counted_again_where_the_images_are_known(store: ModelStore) -> None:
    """Those that were written divided by images whose label does not reach the level."""
    known, tree = seen(3), TREE
    version = publish(store, project(), tree, head_of(tree, HEAD), known=known)
    manifest = store.manifest(project().key, version)
    tensors = store.weights(project().key, version)
    false = [{"level": 2, "checked": 3, "accuracy": 0.3333}]
    fruit, milk, apple, pear = range(4)
    kept = as_tensors(
        truth=np.array([apple, milk, fruit]),
        nodes=np.array([[fruit, apple], [milk, pear], [fruit, apple]]),
        labels=np.zeros(4, dtype=np.int64),
    )
    written = replace(manifest, metrics={"levels": false, "leaf_accuracy": 1.0})
    names = [store.publish(project().key, written, {**tensors, **more}) for more in (kept, {})]
    now, unknown = (Records(store).summary(project().key, name).metrics for name in names)
    assert now == {
        "leaf_accuracy": 1.0,
        "by_level": [
            {"level": 1, "checked": 3, "right": 3, "accuracy": 1.0},
            {"level": 2, "checked": 1, "right": 1, "accuracy": 1.0},
        ],
    }
    assert unknown == {"leaf_accuracy": 1.0}  # nothing rather than a false number


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
