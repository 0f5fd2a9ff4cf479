"""Training learns from labels of any depth, judges honestly, and stops when told to."""

import itertools
import json
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from hierarchy import LabelTree
from hierarchy.calibration import LEAST_LIKE, fit_rule
from hierarchy.depth_selection import candidates
from hierarchy.heads import HRNHead
from worker.trainer import Examples, TooFewLabelsError, Trained, judge, train
from worker.training_config import TrainingConfig

pytestmark = pytest.mark.usefixtures("one_thread")

TREE = LabelTree.from_paths(
    [("Fruit", "Apple"), ("Fruit", "Pear"), ("Dairy", "Milk"), ("Dairy", "Cream")]
)
LEAVES = np.array(TREE.leaves)
CHANNELS = 12

SMALL = TrainingConfig(
    augmentations=(0, 1),
    members=2,
    hidden=16,
    epochs=4,
    least_shown=2_560,
    batch=64,
    folds=3,
    rate=5e-3,
)

Vectors = NDArray[np.float16]


def silent(stage: str, done: int, total: int, **figures: float) -> None:
    """Nobody listens."""


def vectors(leaves: NDArray[np.int64], *, seed: int, noise: float = 1.0) -> Vectors:
    """``(P, 2, C)``: each node on an image's path adds a pattern of its own, to both alike."""
    patterns = np.random.default_rng(0).normal(size=(len(TREE), CHANNELS))
    draw = np.random.default_rng(seed)
    signal = patterns[leaves] + patterns[np.array(TREE.parents)[leaves]]
    found = signal[:, None] + draw.normal(size=(len(leaves), 2, CHANNELS)) * noise / 4
    return np.asarray(found, dtype=np.float16)


def examples(
    found: Vectors,
    target: NDArray[np.int64],
    *,
    groups: Sequence[str | None] | None = None,
) -> Examples:
    """One label per image."""
    return Examples(
        vectors=found,
        image=np.arange(len(found)),
        target=target,
        weight=np.ones(len(found), np.float32),
        truth=target,
        groups=groups or [None] * len(found),
    )


def leaves_of(count: int, seed: int = 1) -> NDArray[np.int64]:
    return np.random.default_rng(seed).permutation(np.resize(LEAVES, count))


def accuracy(trained: Trained, *, level: int, noise: float = 1.0) -> float:
    """Share of 400 new images whose best node of a level is right."""
    truth = leaves_of(400, seed=99)
    log_p = trained.head.log_probabilities(vectors(truth, seed=99, noise=noise)[:, 0])
    meant = truth if level == 1 else np.array(TREE.parents)[truth]
    return float((candidates(log_p, TREE).nodes[:, level] == meant).mean())


@pytest.fixture(scope="module")
def plain() -> Examples:
    leaves = leaves_of(120)
    return examples(vectors(leaves, seed=1), leaves)


@pytest.fixture(scope="module")
def trained(plain: Examples) -> Trained:
    return train(TREE, plain, SMALL, target=0.9, report=silent)


def test_levels_stand_side_by_side_in_trees_that_leave_the_memory() -> None:
    for nodes in (20_000, 20_001):
        tree = LabelTree.from_parents([-1] * nodes, [str(node) for node in range(nodes)])
        assert TrainingConfig().sizes(tree)["side_by_side"] is (nodes == 20_000)


def test_what_can_be_learnt_is_learnt(trained: Trained) -> None:
    assert accuracy(trained, level=1) > 0.95
    assert accuracy(trained, level=0) > 0.97


def test_held_out_figures_are_those_of_new_vectors(trained: Trained) -> None:
    assert trained.metrics["held_out"] == trained.metrics["leaf_checked"] == 120
    assert trained.metrics["leaf_accuracy"] == pytest.approx(accuracy(trained, level=1), abs=0.05)
    assert [level["level"] for level in trained.metrics["by_level"]] == [1, 2]


def test_the_rule_shows_what_it_can_stand_behind(trained: Trained) -> None:
    assert trained.fitted.standing == "certified"
    assert trained.fitted.mean_depth > 1.8


def test_every_picture_is_held_out_once(trained: Trained) -> None:
    assert trained.held_out.shape == (120, len(TREE))
    assert np.isfinite(trained.held_out).all()
    assert len(trained.seen) == 120


def test_labels_of_chance_are_not_believed() -> None:
    """Figures come from pictures that were not trained on: noise scores as noise."""
    target = leaves_of(80, seed=3)
    noise = examples(vectors(leaves_of(80, seed=4), seed=4, noise=3), target)
    found = train(TREE, noise, SMALL, target=0.9, report=silent)
    assert found.metrics["leaf_accuracy"] < 0.5
    assert found.fitted.given < 0.2


def test_coarse_labels_teach_their_level() -> None:
    leaves = leaves_of(100)
    some = vectors(leaves, seed=1, noise=6)
    coarse = np.where(np.arange(100) < 8, leaves, np.array(TREE.parents)[leaves])
    few = train(TREE, examples(some[:8], leaves[:8]), SMALL, target=0.9, report=silent)
    more = train(TREE, examples(some, coarse), SMALL, target=0.9, report=silent)
    gain = accuracy(more, level=0, noise=6) - accuracy(few, level=0, noise=6)
    assert gain > 0.03
    assert more.metrics["by_level"][0]["checked"] == 100
    assert more.metrics["leaf_checked"] == 8


def test_the_same_seed_gives_the_same_weights(plain: Examples, trained: Trained) -> None:
    again = train(TREE, plain, SMALL, target=0.9, report=silent).head.state_dict()
    first = trained.head.state_dict()
    assert all(torch.equal(again[name], first[name]) for name in first)


def test_another_seed_gives_other_weights(plain: Examples, trained: Trained) -> None:
    other = train(TREE, plain, replace(SMALL, seed=1), target=0.9, report=silent)
    name = "blocks.0.connect.0.weight"
    assert not torch.equal(other.head.state_dict()[name], trained.head.state_dict()[name])


def test_all_augmentations_are_learnt_from_and_the_plain_one_judges(plain: Examples) -> None:
    """The second augmentation holds other images' features: nothing can be learnt from it."""
    mixed = plain.vectors.copy()
    mixed[:, 1] = mixed[np.random.default_rng(1).permutation(len(mixed)), 1]
    found = train(TREE, replace(plain, vectors=mixed), SMALL, target=0.9, report=silent)
    fine = train(TREE, plain, SMALL, target=0.9, report=silent)
    assert found.metrics["leaf_accuracy"] > 0.8
    assert found.metrics["log_loss"] > fine.metrics["log_loss"] + 0.2


def test_each_network_may_have_members_of_its_own(plain: Examples) -> None:
    config = replace(SMALL, networks=(5, 7), members=1)
    found = train(TREE, plain, config, target=0.9, report=silent)
    assert found.head.members == 2
    assert accuracy(found, level=1) > 0.9


def test_several_annotators_count_for_their_weight() -> None:
    """Two of three labels of each picture are wrong, but weigh a hundredth each."""
    leaves = leaves_of(90)
    base = examples(vectors(leaves, seed=1), leaves)
    wrong = np.roll(LEAVES, 1)[np.searchsorted(LEAVES, leaves)]
    crowd = replace(
        base,
        image=np.tile(base.image, 3),
        target=np.concatenate([leaves, wrong, wrong]),
        weight=np.repeat(np.array([1, 0.01, 0.01], np.float32), 90),
    )
    assert accuracy(train(TREE, crowd, SMALL, target=0.9, report=silent), level=1) > 0.9
    turned = replace(crowd, weight=np.repeat(np.array([0.01, 1, 1], np.float32), 90))
    assert accuracy(train(TREE, turned, SMALL, target=0.9, report=silent), level=1) < 0.1


def test_groups_are_never_split() -> None:
    """Each group has labels of its own invention: only a split group could be guessed."""
    target = np.repeat(LEAVES, 20)
    noise = np.repeat(np.random.default_rng(5).normal(size=(4, 1, CHANNELS)) * 3, 20, axis=0)
    some = np.asarray(noise + np.zeros((80, 2, CHANNELS)), dtype=np.float16)
    split = train(TREE, examples(some, target), SMALL, target=0.9, report=silent)
    whole = train(
        TREE,
        examples(some, target, groups=[f"session {leaf}" for leaf in target]),
        SMALL,
        target=0.9,
        report=silent,
    )
    assert whole.metrics["leaf_accuracy"] == 0
    assert split.metrics["held_out"] == whole.metrics["held_out"] == 80


def test_one_group_of_everything_trains_but_promises_nothing(plain: Examples) -> None:
    found = train(TREE, replace(plain, groups=["a"] * 120), SMALL, target=0.9, report=silent)
    assert accuracy(found, level=1) > 0.9
    assert (found.fitted.standing, found.fitted.rule.price) == ("none", None)
    assert (found.metrics["held_out"], found.metrics["leaf_accuracy"]) == (0, None)


def test_large_projects_hold_out_one_part_only(plain: Examples) -> None:
    recipe = replace(SMALL, cross_fit_up_to=100)
    found = train(TREE, plain, recipe, target=0.9, report=silent)
    assert 20 < found.metrics["held_out"] < 60
    assert int(np.isnan(found.held_out[:, 0]).sum()) == 120 - found.metrics["held_out"]


def test_pictures_that_annotators_disagree_on_judge_nothing(plain: Examples) -> None:
    truth = plain.truth.copy()
    truth[:30] = -1
    log_p = np.log(np.full((120, len(TREE)), 0.5))
    found = judge(TREE, replace(plain, truth=truth), log_p)
    assert len(found.seen) == found.metrics["held_out"] == 90


def test_limits_and_target_reach_the_rule(plain: Examples) -> None:
    found = train(TREE, plain, SMALL, target=0.8, minimum=2, maximum=2, strict=True, report=silent)
    rule = found.fitted.rule
    assert (rule.target, rule.minimum, rule.maximum, rule.strict) == (0.8, 2, 2, True)


@pytest.mark.parametrize(("count", "target"), [(0, []), (3, [0, 1, 2]), (5, [1] * 5)])
def test_too_few_labels_are_told_with_what_is_missing(count: int, target: list[int]) -> None:
    few = examples(vectors(leaves_of(count), seed=1), np.array(target, dtype=np.int64))
    with pytest.raises(TooFewLabelsError, match=r"at least 4 .* at least 2 different nodes, got"):
        train(TREE, few, SMALL, target=0.9, report=silent)


def test_the_least_there_can_be_is_enough() -> None:
    target = np.array([LEAVES[0], LEAVES[1], LEAVES[0], LEAVES[1]])
    found = train(TREE, examples(vectors(target, seed=1), target), SMALL, target=0.9, report=silent)
    assert found.fitted.standing in {"none", "estimated"}


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("at", [0, 119])
def test_features_that_are_no_numbers_are_refused(value: float, at: int) -> None:
    some = vectors(leaves_of(120), seed=1)
    some[at, 1, 3] = value
    with pytest.raises(FloatingPointError, match=f"features of image {at} are not finite"):
        train(TREE, examples(some, leaves_of(120)), SMALL, target=0.9, report=silent)


def test_a_dead_channel_is_no_harm() -> None:
    leaves = leaves_of(60)
    some = vectors(leaves, seed=1)
    some[:, :, 0] = 0
    found = train(TREE, examples(some, leaves), SMALL, target=0.9, report=silent)
    assert found.metrics["leaf_accuracy"] > 0.8
    assert all(value.isfinite().all() for value in found.head.state_dict().values())


def test_progress_only_goes_forward(plain: Examples) -> None:
    told: list[tuple[str, float, dict[str, float]]] = []

    def report(stage: str, done: int, total: int, **figures: float) -> None:
        told.append((stage, done / total, figures))

    train(TREE, plain, SMALL, target=0.9, report=report)
    by_stage = [(stage, list(rows)) for stage, rows in itertools.groupby(told, lambda row: row[0])]
    assert [stage for stage, _ in by_stage] == ["fitting", "calibrating"]
    for _, rows in by_stage:
        shares = [share for _, share, _ in rows]
        assert shares == sorted(shares)
        assert shares[-1] == 1
    losses = [figures["loss"] for _, _, figures in told if "loss" in figures]
    assert losses
    assert min(losses) > 0


def test_accuracy_on_pictures_held_out_is_told_as_it_learns(plain: Examples) -> None:
    told: list[tuple[float, float]] = []

    def report(stage: str, done: int, total: int, **figures: float) -> None:
        if "accuracy" in figures:
            told.append((figures["at"], figures["accuracy"]))

    train(TREE, plain, SMALL, target=0.9, report=report)
    shares = [at for at, _ in told]
    assert len(told) > 2
    assert shares == sorted(set(shares))
    assert shares[-1] == 1
    assert told[-1][1] > told[0][1]
    assert all(0 <= accuracy <= 1 for _, accuracy in told)


@pytest.mark.parametrize("stage", ["fitting", "calibrating"])
def test_raising_in_the_report_stops_the_run(plain: Examples, stage: str) -> None:
    calls = []

    last = stage

    def report(stage: str, done: int, total: int, **figures: float) -> None:
        calls.append(stage)
        if stage == last:
            raise InterruptedError(stage)

    with pytest.raises(InterruptedError, match=last):
        train(TREE, plain, SMALL, target=0.9, report=report)
    assert calls.count(last) == 1


@pytest.mark.parametrize("has", [True, False])
def test_bfloat16_is_used_where_the_processor_has_it_and_nowhere_else(
    has: bool,  # noqa: FBT001
    plain: Examples,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Emulated, it takes more than ten times as long as float32."""
    seen: set[bool] = set()
    each = HRNHead.each

    def watched(head: HRNHead, some: torch.Tensor) -> torch.Tensor:
        if head.training:
            seen.add(torch.is_autocast_enabled("cpu"))
        return each(head, some)

    monkeypatch.setattr("inference.precision.cpu_has_bf16", lambda: has)
    monkeypatch.setattr(HRNHead, "each", watched)
    found = train(TREE, plain, SMALL, target=0.9, report=silent)
    assert seen == {has}
    assert accuracy(found, level=1) > 0.9


def test_a_config_is_plain_data() -> None:
    written = json.loads(json.dumps(SMALL.to_json()))
    lists = {name: tuple(written[name]) for name in ("augmentations", "networks")}
    assert TrainingConfig(**{**written, **lists}) == SMALL


def test_few_labels_are_shown_as_often_as_many() -> None:
    config = TrainingConfig(epochs=2, least_shown=3_200, batch=64, cross_fit_up_to=600)
    assert (config.batch_of(600), config.batch_of(601)) == (32, 64)
    assert config.schedule(4) == (100, 1)  # not 800 steps of 4
    assert config.schedule(320) == (10, 10)
    assert config.schedule(6400) == (2, 100)


def test_one_of_these_is_learnt_as_such() -> None:
    """Each picture is said to be its leaf or another, drawn anew: only the leaf is always named."""
    leaves = leaves_of(160)
    other = np.random.default_rng(0).choice(LEAVES, len(leaves))
    base = examples(vectors(leaves, seed=1), leaves)
    pairs = np.where(other == leaves, -1, other)
    unions = replace(base, target=np.stack([leaves, pairs], axis=1))
    assert accuracy(train(TREE, unions, SMALL, target=0.9, report=silent), level=1) > 0.9


# --- images unlike the labelled ones ---


def test_what_labelled_images_look_like_is_learnt(trained: Trained) -> None:
    known = trained.familiarity
    assert known is not None
    assert len(known.distances) == 120
    assert trained.seen.like is not None
    assert sorted(trained.seen.like) == pytest.approx(np.arange(1, 121) / 120)
    same = known.likeness(vectors(leaves_of(400, seed=7), seed=7)[:, 0])
    assert (same < 0.05).mean() < 0.12
    away = np.random.default_rng(3).normal(size=(400, CHANNELS))
    assert (known.likeness(away) < 0.05).mean() > 0.5


def test_the_rule_counts_what_it_holds_back(trained: Trained) -> None:
    """Two of 120 held-out images are beyond the rest: they are shown nothing."""
    assert trained.seen.like is not None
    beyond = trained.seen.like < LEAST_LIKE
    assert beyond.sum() == 2
    assert trained.fitted.given <= 1 - beyond.mean() + 1e-9
    free = fit_rule(replace(trained.seen, like=None), target=0.9)
    assert free.given > trained.fitted.given
