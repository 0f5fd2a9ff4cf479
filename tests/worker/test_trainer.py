"""Training learns from labels of any depth, judges honestly, and stops when told to."""

import itertools
import json
from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch
from hierarchy.network import Features, FrozenHead
from hierarchy.quantised import in_bytes
from numpy.typing import NDArray
from worker.recipe import Recipe

from hierarchy import LabelTree, log_marginals
from hierarchy.choice import candidates
from inference.augmentation import MIRRORED, PLAIN
from worker import trainer
from worker.trainer import (
    Examples,
    Maps,
    TooFewLabelsError,
    Trained,
    fit_reduction,
    judge,
    reduced,
    train,
)
from worker.trainer import log_probabilities as judged_by

TREE = LabelTree.from_paths(
    [("Fruit", "Apple"), ("Fruit", "Pear"), ("Dairy", "Milk"), ("Dairy", "Cream")]
)
LEAVES = np.array(TREE.leaves)
CHANNELS = 12

SMALL = Recipe(
    views=(0, 1),
    reduced=8,
    width=16,
    pooled=1,
    hidden=16,
    epochs=4,
    least_steps=80,
    batch=32,
    folds=3,
    rate=5e-3,
    pooled_rate=5e-3,
)


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """Networks this small wait for each other's threads longer than they compute."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def silent(stage: str, done: int, total: int, **figures: float) -> None:
    """Nobody listens."""


def pictures(leaves: NDArray[np.int64], *, seed: int, noise: float = 1.0) -> Maps:
    """``(P, C, 4, 4)``: each node on a picture's path adds a pattern of its own; mirrored alike."""
    patterns = np.random.default_rng(0).normal(size=(len(TREE), CHANNELS))
    draw = np.random.default_rng(seed)
    signal = patterns[leaves] + patterns[np.array(TREE.parents)[leaves]]
    maps = signal[:, :, None, None] + draw.normal(size=(len(leaves), CHANNELS, 4, 4)) * noise
    return np.asarray(maps, dtype=np.float16)


def examples(
    maps: Maps,
    target: NDArray[np.int64],
    *,
    groups: Sequence[str | None] | None = None,
) -> Examples:
    """One label a picture."""

    def read(positions: Sequence[int], view: int) -> Maps:
        found = maps[list(positions)]
        return found[..., ::-1].copy() if view == MIRRORED else found

    return Examples(
        read=read,
        views=SMALL.views,
        pictures=len(maps),
        picture=np.arange(len(maps)),
        target=target,
        weight=np.ones(len(maps), np.float32),
        truth=target,
        groups=groups or [None] * len(maps),
    )


def leaves_of(count: int, seed: int = 1) -> NDArray[np.int64]:
    return np.random.default_rng(seed).permutation(np.resize(LEAVES, count))


def accuracy(trained: Trained, *, level: int, noise: float = 1.0) -> float:
    """On 400 new pictures."""
    truth = leaves_of(400, seed=99)
    maps = torch.from_numpy(pictures(truth, seed=99, noise=noise)).float()
    with torch.inference_mode():
        log_p = log_marginals(trained.head(maps).double(), TREE).numpy()
    meant = truth if level == 1 else np.array(TREE.parents)[truth]
    return float((candidates(log_p, TREE).nodes[:, level] == meant).mean())


@pytest.fixture(scope="module")
def plain() -> Examples:
    leaves = leaves_of(120)
    return examples(pictures(leaves, seed=1), leaves)


@pytest.fixture(scope="module")
def trained(plain: Examples) -> Trained:
    return train(TREE, plain, SMALL, target=0.9, report=silent)


def test_what_can_be_learnt_is_learnt(trained: Trained) -> None:
    assert accuracy(trained, level=1) > 0.95
    assert accuracy(trained, level=0) > 0.97


def test_held_out_figures_are_those_of_new_pictures(trained: Trained) -> None:
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
    noise = examples(pictures(leaves_of(80, seed=4), seed=4, noise=3), target)
    found = train(TREE, noise, SMALL, target=0.9, report=silent)
    assert found.metrics["leaf_accuracy"] < 0.5
    assert found.fitted.given < 0.2


def test_coarse_labels_teach_their_level() -> None:
    leaves = leaves_of(100)
    maps = pictures(leaves, seed=1, noise=6)
    coarse = np.where(np.arange(100) < 8, leaves, np.array(TREE.parents)[leaves])
    few = train(TREE, examples(maps[:8], leaves[:8]), SMALL, target=0.9, report=silent)
    more = train(TREE, examples(maps, coarse), SMALL, target=0.9, report=silent)
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
    name = "trunk.convolve.weight"
    assert not torch.equal(other.head.state_dict()[name], trained.head.state_dict()[name])


def test_the_trained_head_takes_maps_as_they_come(plain: Examples, trained: Trained) -> None:
    """Training sees reduced maps in bfloat16, serving sees the backbone's."""
    head = trained.head
    assert isinstance(head, FrozenHead)
    assert not head.training
    maps = torch.from_numpy(plain.read(range(20), PLAIN)).float()
    with torch.inference_mode():
        served = log_marginals(head(maps).double(), TREE).numpy()
        assert head.reduce is not None
        means = (maps.mean(dim=(2, 3)) - head.centre) / head.spread
        seen = Features(head.reduce(maps).bfloat16(), means)
    np.testing.assert_allclose(judged_by(head, TREE, seen), served, atol=0.3)


def test_several_annotators_count_for_their_weight() -> None:
    """Two of three labels of each picture are wrong, but weigh a hundredth each."""
    leaves = leaves_of(90)
    base = examples(pictures(leaves, seed=1), leaves)
    wrong = np.roll(LEAVES, 1)[np.searchsorted(LEAVES, leaves)]
    crowd = replace(
        base,
        picture=np.tile(base.picture, 3),
        target=np.concatenate([leaves, wrong, wrong]),
        weight=np.repeat(np.array([1, 0.01, 0.01], np.float32), 90),
    )
    assert accuracy(train(TREE, crowd, SMALL, target=0.9, report=silent), level=1) > 0.9
    turned = replace(crowd, weight=np.repeat(np.array([0.01, 1, 1], np.float32), 90))
    assert accuracy(train(TREE, turned, SMALL, target=0.9, report=silent), level=1) < 0.1


def test_groups_are_never_split() -> None:
    """Each group has labels of its own invention: only a split group could be guessed."""
    target = np.repeat(LEAVES, 20)
    noise = np.repeat(np.random.default_rng(5).normal(size=(4, CHANNELS, 1, 1)) * 3, 20, axis=0)
    maps = np.asarray(noise + np.zeros((80, CHANNELS, 4, 4)), dtype=np.float16)
    split = train(TREE, examples(maps, target), SMALL, target=0.9, report=silent)
    whole = train(
        TREE,
        examples(maps, target, groups=[f"session {leaf}" for leaf in target]),
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
    seen, metrics = judge(TREE, replace(plain, truth=truth), log_p)
    assert len(seen) == metrics["held_out"] == 90


def test_limits_and_target_reach_the_rule(plain: Examples) -> None:
    found = train(TREE, plain, SMALL, target=0.8, minimum=2, maximum=2, strict=True, report=silent)
    rule = found.fitted.rule
    assert (rule.target, rule.minimum, rule.maximum, rule.strict) == (0.8, 2, 2, True)


@pytest.mark.parametrize(("count", "target"), [(0, []), (3, [0, 1, 2]), (5, [1] * 5)])
def test_too_few_labels_are_told_with_what_is_missing(count: int, target: list[int]) -> None:
    few = examples(pictures(leaves_of(count), seed=1), np.array(target, dtype=np.int64))
    with pytest.raises(TooFewLabelsError, match=r"at least 4 .* at least 2 different nodes, got"):
        train(TREE, few, SMALL, target=0.9, report=silent)


def test_the_least_there_can_be_is_enough() -> None:
    target = np.array([LEAVES[0], LEAVES[1], LEAVES[0], LEAVES[1]])
    found = train(
        TREE, examples(pictures(target, seed=1), target), SMALL, target=0.9, report=silent
    )
    assert found.fitted.standing in {"none", "estimated"}


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("at", [0, 119])
def test_features_that_are_no_numbers_are_refused(value: float, at: int) -> None:
    maps = pictures(leaves_of(120), seed=1)
    maps[at, 3, 1, 1] = value
    with pytest.raises(FloatingPointError, match=f"features of picture {at} are not finite"):
        train(TREE, examples(maps, leaves_of(120)), SMALL, target=0.9, report=silent)


def test_a_dead_channel_is_no_harm() -> None:
    leaves = leaves_of(60)
    maps = pictures(leaves, seed=1)
    maps[:, 0] = 0
    found = train(TREE, examples(maps, leaves), SMALL, target=0.9, report=silent)
    assert found.metrics["leaf_accuracy"] > 0.8
    assert all(value.isfinite().all() for value in found.head.state_dict().values())


def test_progress_only_goes_forward(plain: Examples) -> None:
    told: list[tuple[str, float, dict[str, float]]] = []

    def report(stage: str, done: int, total: int, **figures: float) -> None:
        told.append((stage, done / total, figures))

    train(TREE, plain, SMALL, target=0.9, report=report)
    by_stage = [(stage, list(rows)) for stage, rows in itertools.groupby(told, lambda row: row[0])]
    assert [stage for stage, _ in by_stage] == ["reducing", "fitting", "calibrating"]
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


@pytest.mark.parametrize("stage", ["reducing", "fitting", "calibrating"])
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


def test_no_maps_have_no_probabilities(trained: Trained) -> None:
    none = Features(torch.empty(0, 8, 4, 4), torch.empty(0, CHANNELS))
    assert isinstance(trained.head, FrozenHead)
    assert judged_by(trained.head, TREE, none).shape == (0, len(TREE))


@pytest.mark.parametrize("has", [True, False])
def test_bfloat16_is_used_where_the_processor_has_it_and_nowhere_else(
    has: bool,  # noqa: FBT001
    plain: Examples,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Emulated, it takes more than ten times as long as float32."""
    seen: set[tuple[bool, torch.dtype]] = set()
    each = FrozenHead.each

    def watched(head: FrozenHead, features: Features) -> torch.Tensor:
        if head.training:
            seen.add((torch.is_autocast_enabled("cpu"), features.maps.dtype))
        return each(head, features)

    monkeypatch.setattr("inference.precision.cpu_has_bf16", lambda: has)
    monkeypatch.setattr(FrozenHead, "each", watched)
    head = train(TREE, plain, SMALL, target=0.9, report=silent)
    assert seen == {(has, torch.bfloat16 if has else torch.float32)}
    assert accuracy(head, level=1) > 0.9


def test_a_recipe_is_plain_data() -> None:
    written = json.loads(json.dumps(SMALL.to_json()))
    assert Recipe(**{**written, "views": tuple(written["views"])}) == SMALL


def test_one_of_these_is_learnt_as_such() -> None:
    """Each picture is said to be its leaf or another, drawn anew: only the leaf is always named."""
    leaves = leaves_of(160)
    other = np.random.default_rng(0).choice(LEAVES, len(leaves))
    base = examples(pictures(leaves, seed=1), leaves)
    pairs = np.where(other == leaves, -1, other)
    unions = replace(base, target=np.stack([leaves, pairs], axis=1))
    assert accuracy(train(TREE, unions, SMALL, target=0.9, report=silent), level=1) > 0.9


def test_both_kinds_of_network_have_learnt(plain: Examples, trained: Trained) -> None:
    head = trained.head
    assert isinstance(head, FrozenHead)
    maps = torch.from_numpy(plain.read(range(40), PLAIN)).float()
    right = torch.from_numpy(plain.truth[:40])
    with torch.inference_mode():
        assert head.reduce is not None
        seen = Features(head.reduce(maps), (maps.mean(dim=(2, 3)) - head.centre) / head.spread)
        spatial, pooled = head.each(seen).unbind(1)
    assert (spatial - pooled).abs().mean() > 0.1
    for own in (spatial, pooled):
        best = torch.from_numpy(LEAVES)[log_marginals(own, TREE)[:, LEAVES].argmax(1)]
        assert (best == right).float().mean() > 0.8


def test_the_fast_recipe_learns_without_looking_at_positions(plain: Examples) -> None:
    quick = replace(Recipe.fast(), views=SMALL.views, hidden=16, least_steps=80, folds=3)
    found = train(TREE, plain, quick, target=0.9, report=silent)
    assert isinstance(found.head, FrozenHead)
    assert found.head.trunk is None
    assert accuracy(found, level=1) > 0.9


def test_networks_that_see_means_learn_at_a_rate_of_their_own(plain: Examples) -> None:
    frozen = replace(SMALL, pooled_rate=0.0)
    head = train(TREE, plain, frozen, target=0.9, report=silent).head
    torch.manual_seed(frozen.seed)
    state = head.state_dict()
    fresh = FrozenHead(TREE, CHANNELS, **frozen.sizes()).state_dict()
    assert torch.equal(state["hidden.connect.weight"], fresh["hidden.connect.weight"])
    assert torch.equal(state["score.1.weight"], fresh["score.1.weight"])
    assert not torch.equal(state["score.0.weight"], fresh["score.0.weight"])


def test_a_fast_training_reads_means_and_no_map() -> None:
    leaves = leaves_of(120)
    base = examples(pictures(leaves, seed=1), leaves)
    asked: list[int] = []

    def means(positions: Sequence[int], view: int) -> NDArray[np.float32]:
        asked.extend(positions)
        maps = torch.from_numpy(base.read(positions, view)).float()
        return np.asarray(maps.mean(dim=(2, 3)))

    def refuse(positions: Sequence[int], view: int) -> Maps:
        raise AssertionError((positions, view))

    quick = replace(Recipe.fast(), views=SMALL.views, hidden=16, least_steps=80, folds=3)
    given = replace(base, read=refuse, means=means)
    head = train(TREE, given, quick, target=0.9, report=silent).head.state_dict()
    assert len(asked) == 120 * (1 + len(SMALL.views))  # the plain ones once more, to standardise
    other = train(TREE, base, quick, target=0.9, report=silent).head.state_dict()
    for name, value in head.items():
        assert torch.equal(value, other[name]), name


def test_maps_are_reduced_as_they_are_when_served(plain: Examples) -> None:
    """In bfloat16 where the processor has it: off by its rounding, not more."""
    reduction = fit_reduction(plain, SMALL, silent)
    maps = torch.from_numpy(plain.read(range(40), PLAIN)).float()
    exact, found = reduction.of(maps), reduced(reduction, maps)
    torch.testing.assert_close(found.means, exact.means)
    error = (found.maps.float() - exact.maps).norm() / exact.maps.norm()
    assert error < 0.01


def test_features_that_are_not_finite_are_told_by_picture(plain: Examples) -> None:
    maps = plain.read(range(plain.pictures), PLAIN).copy()
    maps[7, 0, 0, 0] = np.inf
    broken = examples(maps, plain.truth)
    for recipe in (SMALL, replace(Recipe.fast(), views=SMALL.views)):
        with pytest.raises(FloatingPointError, match="picture 7 "):
            train(TREE, broken, recipe, target=0.9, report=silent)


def test_a_channel_that_hardly_moves_leaves_the_others_their_weights() -> None:
    """Blown up to the others' size, its weight alone would be left of a row in bytes."""
    draw = torch.Generator().manual_seed(0)
    vectors = torch.randn(400, 16, generator=draw) @ torch.randn(16, 64, generator=draw)
    vectors[:, 3] *= 1e-3
    vectors[:, 4] = 0
    mean, products = vectors.mean(dim=0).double(), (vectors.T @ vectors / 400).double()
    weight, bias = trainer._principal(mean, products, 16)
    numbers, step = in_bytes(weight)
    assert torch.equal(numbers * step, weight.double())
    assert (weight != 0).float().mean() > 0.9
    # What is kept tells all that there was of the channels that move.
    moving = torch.cat([vectors[:, :3], vectors[:, 5:]], dim=1)
    seen = torch.cat([vectors @ weight.T + bias, torch.ones(400, 1)], dim=1)
    left = moving - seen @ torch.linalg.lstsq(seen, moving).solution
    assert left.pow(2).sum() < 0.01 * (moving - moving.mean(dim=0)).pow(2).sum()
