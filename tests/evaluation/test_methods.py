"""Every method learns what can be learnt, through one and the same loop."""

from dataclasses import replace

import numpy as np
import pytest

from evaluation import methods
from evaluation.comparison import compare
from evaluation.errors import ExperimentError
from evaluation.protocols import Protocol
from tests.evaluation.stand import TREE, features
from worker.training_config import TrainingConfig

LEAVES = np.array(TREE.leaves)

pytestmark = pytest.mark.usefixtures("quick")


@pytest.mark.parametrize("method", methods.METHODS)
def test_each_method_learns(method: str) -> None:
    whole = features()
    found = methods.learn(method, whole, Protocol(), 0)
    log_p = found.log_probability["test"]
    assert log_p.shape == (150, len(TREE))
    assert np.isfinite(log_p).all()
    right = LEAVES[log_p[:, LEAVES].argmax(1)] == whole.judged["test"].targets
    assert right.mean() > 0.7  # chance is 0.2
    assert found.seconds > 0


@pytest.mark.parametrize("method", ["hrn", "chang", "published"])
def test_a_seed_gives_the_same_figures_again(method: str) -> None:
    first, again = (methods.learn(method, features(), Protocol(0.5), 1) for _ in range(2))
    for name, log_p in first.log_probability.items():
        np.testing.assert_array_equal(log_p, again.log_probability[name])


def test_coarse_labels_help_ours_and_are_dropped_by_flat() -> None:
    hard = features(300, noise=3.0)
    gains = []
    for seed in range(3):  # one training's accuracy moves by more than the difference
        (ours,), (flat,) = (
            compare(hard, method=method, protocol=Protocol(0.9), seed=seed)
            for method in ("hrn", "flat")
        )
        gains.append(ours.figures["level 1"] - flat.figures["level 1"])
    assert np.mean(gains) > 0.02


def test_poor_vectors_stand_in_for_relabelled_images_alone(quick: TrainingConfig) -> None:
    whole = features()
    poor = replace(whole, poor=np.zeros_like(whole.train))
    same = methods.learn("hrn", poor, Protocol(0.0, low_res=True), 0)
    plain = methods.learn("hrn", whole, Protocol(0.0), 0)
    np.testing.assert_array_equal(same.log_probability["test"], plain.log_probability["test"])
    worse = methods.learn("hrn", poor, Protocol(0.9, low_res=True), 0)
    better = methods.learn("hrn", whole, Protocol(0.9), 0)
    assert not np.array_equal(worse.log_probability["test"], better.log_probability["test"])
    assert quick.least_shown == 2400


def test_a_run_gives_all_figures_and_those_of_depth_where_asked_for() -> None:
    protocol = Protocol(0.5, per_leaf=8, leaves=3)
    (row,) = compare(features(noise=2.0), method="hrn", protocol=protocol, seed=0, with_depth=True)
    assert (row.method, row.protocol, row.seed) == ("hrn", "50 %, 8 per leaf, 3 leaves", 0)
    expected = {"leaf", "siblings leaf", "level 1", "level 2", "leaf ece", "consistency", "prc"}
    expected |= {"h-f", "severity", "aurc", "haurc", "val leaf", "seconds", "val: given at 90 %"}
    expected |= {"kept at 95 %", "depth at 95 %, strict", "given at 90 %, 20 % answered"}
    assert expected - row.figures.keys() == set()


def test_groups_stand_for_several_methods_and_a_wrong_name_lists_the_right_ones() -> None:
    assert methods.check_methods(["hrn", "losses", "flat"]) == [
        *("hrn", "marginal", "level-ce", "soft", "hxe", "flat")
    ]
    with pytest.raises(ExperimentError, match="no method hrm: expected some of hrn; "):
        methods.check_methods(["hrm"])
