"""Versions that earlier releases wrote read feature maps: they are refused in words, not run."""

import json
import shutil
from pathlib import Path
from typing import Final

import pytest

from hierarchy import LabelTree
from inference.errors import EarlierReleaseError
from inference.predictor import Predictors
from inference.records import Records
from inference.store import ModelStore
from tests.published import project

#: One folder a release that changed what is written; never changed once it is there.
WRITTEN: Final = Path(__file__).parents[1] / "fixtures" / "versions"


@pytest.mark.parametrize("name", sorted(path.name for path in WRITTEN.iterdir()))
def test_a_written_version_says_that_a_training_is_needed(name: str, tmp_path: Path) -> None:
    store = ModelStore(tmp_path)
    known = store.register(project("http://studio.example"))
    folder = WRITTEN / name
    version = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))["version"]
    place = tmp_path / "projects" / known.key / "versions" / version
    place.mkdir(parents=True)
    for file in ("manifest.json", "weights.safetensors"):
        shutil.copy(folder / file, place / file)
    store.point(known.key, version, reason="written by an earlier release")
    tree = LabelTree.from_json(store.manifest(known.key, version)["tree"])
    with pytest.raises(EarlierReleaseError, match=f"{version} was trained by an earlier release"):
        Predictors(store).get(known, version, tree)
    # Pages go on: its figures are read as before.
    assert Records(store).summary(known.key, version)["metrics"]
    assert Records(store).calibration(known, version)["rule"]
