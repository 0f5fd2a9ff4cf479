"""Versions that earlier releases wrote are served by this one, with the same answers."""

import json
import shutil
from pathlib import Path
from typing import Final

import numpy as np
import pytest

from hierarchy import LabelTree
from inference.predictor import Predictors
from inference.store import ModelStore
from tests.published import project

#: One folder a release that changed what is written; never changed once it is there.
WRITTEN: Final = Path(__file__).parents[1] / "fixtures" / "versions"


def maps_of(channels: int) -> np.ndarray[tuple[int, ...], np.dtype[np.float16]]:
    """``(3, C, 5, 5)`` of three pictures, the same for ever: no generator may change them."""
    count = 3 * channels * 25
    steps = (np.arange(count) * 7919) % 1009
    return (steps / 1009 * 0.01).reshape(3, channels, 5, 5).astype(np.float16)


@pytest.mark.parametrize("name", sorted(path.name for path in WRITTEN.iterdir()))
def test_a_written_version_still_answers_as_it_did(name: str, tmp_path: Path) -> None:
    store = ModelStore(tmp_path)
    known = store.register(project("http://studio.example"))
    folder = WRITTEN / name
    version = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))["version"]
    place = tmp_path / "projects" / known.key / "versions" / version
    place.mkdir(parents=True)
    for file in ("manifest.json", "weights.safetensors"):
        shutil.copy(folder / file, place / file)
    store.point(known.key, version, reason="written by an earlier release")
    manifest = store.manifest(known.key, version)
    tree = LabelTree.from_json(manifest["tree"])
    predictor = Predictors(store).get(known, version, tree)
    told = predictor.log_probabilities(maps_of(manifest["network"]["channels"]))
    expected = json.loads((folder / "answers.json").read_text(encoding="utf-8"))
    np.testing.assert_allclose(told, expected["log_probabilities"], atol=1e-3)
    assert predictor.rule.to_json() == manifest["calibration"]["rule"]
