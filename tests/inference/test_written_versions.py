"""Versions that earlier releases wrote cannot be run, and everything says so in words."""

import json
import shutil
from pathlib import Path
from typing import Final

import pytest

from inference.errors import EarlierReleaseError
from inference.predictor import Predictors, runs_here
from inference.records import Records
from inference.store import ModelStore
from tests.published import project

#: One folder per release that changed what is written; never changed once it is there.
WRITTEN: Final = Path(__file__).parents[1] / "fixtures" / "versions"


@pytest.fixture(params=sorted(path.name for path in WRITTEN.iterdir()))
def written(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[ModelStore, str, str]:
    """A store whose live version an earlier release wrote, its project's key and its name."""
    store, folder = ModelStore(tmp_path), WRITTEN / request.param
    known = store.register(project("http://studio.example"))
    version = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))["version"]
    place = tmp_path / "projects" / known.key / "versions" / version
    place.mkdir(parents=True)
    for file in ("manifest.json", "weights.safetensors"):
        shutil.copy(folder / file, place / file)
    store.point(known.key, version, reason="written by an earlier release")
    return store, known.key, version


def test_a_training_is_said_to_be_needed(written: tuple[ModelStore, str, str]) -> None:
    store, key, version = written
    known = store.project(key)
    assert known is not None
    with pytest.raises(
        EarlierReleaseError,
        match=f"{version} was trained by an earlier release, .* a training is needed.*"
        "pre-labels that stand in Label Studio stay",
    ):
        Predictors(store).get(known, version)
    assert not runs_here(store.manifest(key, version))


def test_its_figures_can_still_be_looked_at(written: tuple[ModelStore, str, str]) -> None:
    store, key, version = written
    manifest = store.manifest(key, version)
    shown = Records(store).get(key, version)
    assert shown.rule.to_json().items() >= manifest.calibration["rule"].items()
    assert shown.manifest.metrics["leaf_accuracy"] == manifest.metrics["leaf_accuracy"]
