"""Every head trains along with a real, small backbone and is judged."""

import argparse
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cli.evaluate import add_arguments
from cli.finetuning import command
from evaluation import finetuning
from evaluation.data import Dataset, load
from evaluation.errors import DatasetError, ExperimentError
from evaluation.finetuning import HEADS, Key, Plan, shelf, tune
from evaluation.protocols import Protocol
from inference.backbone import Backbone, load_backbone
from tests.evaluation.stand import draw
from tests.inference.small import NAME, weights_file
from worker.photos import Shelf
from worker.settings import Settings
from worker.tune_recipe import TuneRecipe

#: Two epochs of two steps.
TINY = TuneRecipe(hidden=8, epochs=2, batch=8, rate=0.05, precision="f32")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images, and the backbone's weights beside them."""
    home = tmp_path_factory.mktemp("home")
    weights_file(home)
    return draw(home / "images", {"train": 4, "val": 2, "test": 3}, side=180)


@pytest.fixture(scope="module")
def dataset(folder: Path) -> Dataset:
    return load(folder)


@pytest.fixture(scope="module")
def backbone(folder: Path) -> Backbone:
    return load_backbone(NAME, weights=folder.parent / f"{NAME}-0.safetensors")


def silent(stage: str, done: int, total: int, **figures: float) -> None:
    """Nobody listens."""


def test_each_head_learns_and_is_judged(
    dataset: Dataset, backbone: Backbone, tmp_path: Path
) -> None:
    plan, half = Plan(dataset, backbone, TINY, "cpu"), Protocol(0.5)
    with shelf(dataset, backbone, tmp_path / "shelf") as images:
        rows = [tune(head, half, 0, plan, images, silent, tmp_path / head) for head in HEADS]
    for row in rows:
        expected = {"leaf", "level 1", "level 2", "siblings leaf", "val leaf", "seconds"}
        assert expected <= row.figures.keys()
        assert row.figures["steps"] == 4
        assert row.figures["labels a second"] > 0
    answers = {json.dumps(dict(row.figures) | {"seconds": 0, "labels a second": 0}) for row in rows}
    assert len(answers) == len(HEADS)  # they are different networks


def test_enough_steps_tell_the_colours_apart(
    dataset: Dataset, backbone: Backbone, tmp_path: Path
) -> None:
    recipe = replace(TINY, optimiser="adamw", rate=0.01, epochs=20)
    plan = Plan(dataset, backbone, recipe, "cpu")
    with shelf(dataset, backbone, tmp_path) as images:
        row = tune("hrn", Protocol(), 0, plan, images, silent, tmp_path / "saved")
    assert row.figures["leaf"] >= 0.75  # by chance 0.25


def test_a_stopped_run_goes_on_and_has_the_same_figures(
    dataset: Dataset, backbone: Backbone, tmp_path: Path
) -> None:
    plan, half = Plan(dataset, backbone, TINY, "cpu"), Protocol(0.5)
    steps = list[int]()

    def stop(stage: str, done: int, total: int, **figures: float) -> None:
        if done == 3:
            raise InterruptedError

    def count(stage: str, done: int, total: int, **figures: float) -> None:
        steps.append(done)

    with shelf(dataset, backbone, tmp_path / "shelf") as images:
        whole = tune("hrn", half, 0, plan, images, silent, tmp_path / "whole")
        with pytest.raises(InterruptedError):
            tune("hrn", half, 0, plan, images, stop, tmp_path / "stopped")
        resumed = tune("hrn", half, 0, plan, images, count, tmp_path / "stopped")
    assert steps[0] == 3  # after the first epoch's two
    timing = {"seconds", "labels a second"}
    assert {n: v for n, v in resumed.figures.items() if n not in timing} == {
        n: v for n, v in whole.figures.items() if n not in timing
    }


def test_relabelled_images_are_shrunk_where_that_is_asked_for(
    dataset: Dataset, backbone: Backbone, tmp_path: Path
) -> None:
    asked = set[tuple[int, bool]]()

    class Watched(Shelf[Key]):
        def __getitem__(self, key: Key) -> bytes:
            asked.add(key)
            return super().__getitem__(key)

    with shelf(dataset, backbone, tmp_path / "a") as images:
        with Watched(tmp_path / "b", images.__getitem__) as watched:
            plan = Plan(dataset, backbone, replace(TINY, epochs=1), "cpu")
            protocol = Protocol(0.5, low_res=True)
            tune("flat", protocol, 0, plan, watched, silent, tmp_path / "saved")
        whole, poor = images[0, False], images[0, True]
    assert len(asked) == len(dataset.train)  # each in one of the two forms
    assert sum(key[1] for key in asked) == len(dataset.train) // 2
    assert len(poor) < len(whole)


def test_an_image_that_cannot_be_read_is_named(
    dataset: Dataset, backbone: Backbone, tmp_path: Path
) -> None:
    bad = tmp_path / "bad.png"
    bad.write_bytes(b"no image")
    files = (bad, *dataset.train.files[1:])
    broken = replace(dataset, train=replace(dataset.train, files=files))
    with (
        shelf(broken, backbone, tmp_path / "shelf") as images,
        pytest.raises(DatasetError, match=r"bad\.png: "),
    ):
        images[0, False]


def test_a_trial_is_judged_on_images_from_all_over_the_list(
    dataset: Dataset, backbone: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(finetuning, "TRIAL_JUDGED", 4)
    some = Plan(dataset, backbone, TINY, "cpu", steps=1).judged(dataset.test)
    assert set(some.targets.tolist()) == set(dataset.tree.leaves)
    assert Plan(dataset, backbone, TINY, "cpu").judged(dataset.test) is dataset.test
    assert np.array_equal(some.targets[[0, -1]], dataset.test.targets[[0, -1]])


# The command


def arguments(folder: Path, out: Path, *words: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    weights = str(folder.parent / f"{NAME}-0.safetensors")
    common = ["--data", str(folder), "--backbone", NAME, "--weights", weights, "--out", str(out)]
    return parser.parse_args([*common, "--fine-tune", "--seeds", "1", *words])


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    monkeypatch.setattr(TuneRecipe, "for_device", lambda _: TINY)
    return Settings(home=tmp_path / "home", device="cpu")


def test_a_trial_says_that_it_is_one(
    folder: Path, settings: Settings, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--method", "hrn, one block", "flat", "--steps", "1"]
    assert command(arguments(folder, tmp_path / "out", *words), settings) == 0
    printed = capsys.readouterr()
    assert "hrn, one block" in printed.out
    assert "no run was longer than 1 steps, and 12 of 12 test images" in printed.err
    found = json.loads((tmp_path / "out" / "fine-tuning-trial.json").read_text())
    assert [row["figures"]["steps"] for row in found["rows"]] == [1, 1]
    assert found["settings"]["steps"] == 1
    assert [file.name for file in (tmp_path / "out").iterdir()] == ["fine-tuning-trial.json"]


def test_what_is_done_is_not_done_again_and_the_rest_is(
    folder: Path, settings: Settings, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert command(arguments(folder, out, "--method", "flat", "--json"), settings) == 0
    first = json.loads(capsys.readouterr().out)
    both = arguments(folder, out, "--method", "flat", "linear", "--json", "--epochs", "2")
    assert command(both, settings) == 0
    printed = capsys.readouterr()
    assert "is in" in printed.err
    rows: list[dict[str, Any]] = json.loads(printed.out)["rows"]
    assert [row["method"] for row in rows] == ["flat", "linear"]
    assert rows[0] == first["rows"][0]
    assert not any((out / "checkpoints").iterdir())


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--steps", "0"], "--steps must be 1 or more, got 0"),
        (["--epochs", "-1"], "--epochs must be 1 or more, got -1"),
        (["--method", "flatt"], "no head flatt: expected some of hrn; hrn, one block; linear"),
    ],
)
def test_wrong_arguments_are_told(
    words: list[str], message: str, folder: Path, settings: Settings, tmp_path: Path
) -> None:
    with pytest.raises(ExperimentError, match=message):
        command(arguments(folder, tmp_path, *words), settings)
