"""Every method learns what can be learnt, through one and the same loop."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hierarchy.network import Features, Reduction
from numpy.typing import NDArray
from worker.recipe import Recipe

from evaluation import methods
from evaluation.errors import ExperimentError
from evaluation.evaluation import Run, do
from evaluation.material import Judged, Material
from hierarchy import LabelTree

TREE = LabelTree.from_paths(
    [("Fruit", "Apple"), ("Fruit", "Pear"), ("Dairy", "Milk"), ("Dairy", "Cream")]
)
LEAVES = np.array(TREE.leaves)
CHANNELS = 12
RECIPE = replace(
    Recipe(),
    views=(0,),
    reduced=CHANNELS,
    width=16,
    hidden=32,
    dropout=0.3,
    epochs=6,
    least_steps=150,
    rate=5e-3,
    batch=32,
)


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def pictures(leaves: NDArray[np.int64], seed: int, noise: float) -> Features:
    patterns = np.random.default_rng(0).normal(size=(len(TREE), CHANNELS))
    signal = patterns[leaves] + patterns[np.array(TREE.parents)[leaves]]
    maps = np.random.default_rng(seed).normal(size=(len(leaves), CHANNELS, 4, 4)) * noise
    whole = torch.from_numpy(signal[:, :, None, None] + maps).float()
    return Features(whole.bfloat16(), whole.mean(dim=(2, 3)))


def judged(count: int, seed: int, noise: float = 1.0) -> Judged:
    leaves = np.random.default_rng(seed).choice(LEAVES, count)
    return Judged(pictures(leaves, seed, noise), leaves)


@pytest.fixture(scope="module")
def material() -> Material:
    return made(noise=1)


def made(noise: float) -> Material:
    train = judged(96, 1, noise)
    none = torch.zeros(CHANNELS)
    reduction = Reduction(torch.eye(CHANNELS), none, none, none + 1)
    sets = {"val": judged(60, 2, noise), "test": judged(200, 3, noise)}
    return Material(TREE, reduction, [train.seen], [], train.targets, sets)


@pytest.mark.parametrize("method", [m for m in methods.METHODS if m not in methods.ABLATIONS])
def test_each_method_learns(material: Material, method: str) -> None:
    found = methods.learn(method, material, material.targets, RECIPE)
    log_p = found.log_probability["test"]
    assert log_p.shape == (200, len(TREE))
    right = LEAVES[log_p[:, LEAVES].argmax(1)] == material.judged["test"].targets
    assert right.mean() > 0.8
    assert found.seconds > 0


@pytest.mark.parametrize("method", methods.ABLATIONS)
def test_each_ablation_runs(material: Material, method: str) -> None:
    found = methods.learn(method, material, material.targets, replace(RECIPE, least_steps=4))
    assert np.isfinite(found.log_probability["test"]).all()


@pytest.mark.parametrize("method", ["hrn", "chang", "published"])
def test_a_seed_gives_the_same_figures_again(material: Material, method: str) -> None:
    first, again = (methods.learn(method, material, material.targets, RECIPE) for _ in range(2))
    for name, log_p in first.log_probability.items():
        np.testing.assert_array_equal(log_p, again.log_probability[name])


def test_coarse_labels_help_ours_and_are_dropped_by_flat() -> None:
    hard = made(noise=6)
    runs = {
        (method, share): do(Run(method, share, 0), hard, RECIPE).row.figures
        for method in ("hrn", "flat")
        for share in (0.0, 0.9)
    }
    assert runs["hrn", 0.9]["level 1"] > runs["flat", 0.9]["level 1"] + 0.02
    assert runs["hrn", 0.0]["leaf"] == pytest.approx(runs["flat", 0.0]["leaf"], abs=0.08)


def test_a_run_gives_all_figures() -> None:
    done = do(Run("hrn", 0.5, 0), made(noise=6), RECIPE)
    expected = {"leaf", "siblings leaf", "level 1", "level 2", "leaf ece", "consistency", "prc"}
    expected |= {"h-f", "severity", "aurc", "haurc", "val leaf", "seconds", "given at 90 %"}
    assert expected <= done.row.figures.keys()
    assert done.log_probability["test"].dtype == np.float32


def test_a_wrong_name_lists_the_right_ones(material: Material) -> None:
    with pytest.raises(ExperimentError, match="no method 'hrm': expected one of hrn, "):
        methods.learn("hrm", material, material.targets, RECIPE)
