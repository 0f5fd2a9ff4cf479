"""A labelling campaign replayed: ask, be answered, train anew, ask again.

Every picture's true node is known, so what an annotator would answer is too. All strategies get the
same annotators, the same head and the same loop; only the pictures that are asked about differ.
P training pictures, N nodes, L levels.
"""

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, replace
from functools import cached_property
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from evaluation.curves import Campaign, Curve, Point
from evaluation.errors import ExperimentError
from evaluation.material import Material
from hierarchy import LabelTree
from hierarchy.acquisition import (
    Space,
    Tail,
    ask,
    badge,
    central,
    entropy,
    k_center,
    leaf_probabilities,
    margin,
    typical,
)
from hierarchy.acquisition.asking import CHOICE
from hierarchy.choice import candidates
from hierarchy.metrics import accuracy_by_level
from hierarchy.network import FrozenHead
from hierarchy.pseudo import WEIGHT, safe_targets
from hierarchy.tree import TOP
from inference.views import PLAIN
from worker import trainer
from worker.fitting import Rows
from worker.recipe import Recipe

log = logging.getLogger(__name__)

Ints = NDArray[np.int64]
Floats = NDArray[np.float32]
Doubles = NDArray[np.float64]


@dataclass(frozen=True)
class Plan:
    """What all campaigns of a comparison share.

    Attributes:
        start: pictures asked about before the first training.
        batch: pictures asked about between two trainings.
        rounds: batches.
        know: the probability with which an annotator knows a node; one who does not answers its
            parent with the same probability, and so on up to the top, which everyone knows.
        random_share: of a batch of the mix, drawn at random.
    """

    start: int
    batch: int = 100
    rounds: int = 10
    know: float = 1.0
    random_share: float = 0.05

    def __post_init__(self) -> None:
        if self.start < 2 or self.batch < 1 or self.rounds < 0:
            raise ExperimentError(
                "expected a start of 2 pictures or more, a batch of 1 or more and rounds of 0 or "
                f"more, got {self.start}, {self.batch} and {self.rounds}"
            )
        for name in ("know", "random_share"):
            if not 0 <= getattr(self, name) <= 1:
                raise ExperimentError(f"{name} must be 0 to 1, got {getattr(self, name)}")


def answers(targets: Ints, tree: LabelTree, know: float, seed: int) -> Ints:
    """What annotators would answer, ``(P,)`` nodes on the true paths; independent of the photo."""
    rng = np.random.default_rng([seed, 1])
    found = targets.copy()
    parents = np.array(tree.parents)
    unsure = rng.random(len(found)) >= know
    while unsure.any():
        above = parents[found]
        unsure &= above != TOP
        found = np.where(unsure, above, found)
        unsure &= rng.random(len(found)) >= know
    return found


@dataclass(frozen=True)
class Desk:
    """What a strategy may look at when it chooses.

    Attributes:
        tree: N nodes.
        features: ``(P, C)`` of the whole pool.
        vectors: ``(P, c)`` the same as unit vectors.
        asked: positions asked so far, in order.
        log_p: ``(P, N)`` what the newest head says of the pool; None before the first.
        plan: of the campaign.
        seed: of this choice.
    """

    tree: LabelTree
    features: Floats
    vectors: Floats
    asked: Ints
    log_p: Doubles | None
    plan: Plan
    seed: int

    @cached_property
    def open(self) -> Ints:
        """Positions not asked yet, ascending."""
        return np.setdiff1d(np.arange(len(self.features)), self.asked)

    @cached_property
    def said(self) -> Doubles:
        """``(open, N)`` what the head says of those."""
        assert self.log_p is not None  # noqa: S101 - only asked for after a training
        return self.log_p[self.open]


Choose = Callable[[Desk, int], Ints]


def _random(desk: Desk, count: int) -> Ints:
    rng = np.random.default_rng(desk.seed)
    return rng.choice(desk.open, min(count, len(desk.open)), replace=False)


def _typiclust(desk: Desk, count: int) -> Ints:
    taken = desk.vectors[desk.asked]
    return desk.open[typical(desk.vectors[desk.open], count, taken=taken, seed=desk.seed)]


def _central(desk: Desk, count: int) -> Ints:
    return desk.open[central(desk.vectors[desk.open], count, seed=desk.seed)]


def _margin(desk: Desk, count: int) -> Ints:
    return desk.open[np.argsort(margin(desk.said, desk.tree), kind="stable")[:count]]


def _entropy(desk: Desk, count: int) -> Ints:
    return desk.open[np.argsort(-entropy(desk.said, desk.tree), kind="stable")[:count]]


def _margin_k_center(desk: Desk, count: int) -> Ints:
    some = _margin(desk, CHOICE * count)
    return some[k_center(desk.vectors[some], count, taken=desk.vectors[desk.asked])]


def _badge(desk: Desk, count: int) -> Ints:
    leaves = leaf_probabilities(desk.said, desk.tree)
    return desk.open[badge(desk.vectors[desk.open], leaves, count, seed=desk.seed)]


def _mix(tail: Tail | None = None) -> Choose:
    def choose(desk: Desk, count: int) -> Ints:
        asked = ask(
            desk.features[desk.open],
            None if desk.log_p is None else desk.said,
            desk.tree,
            taken=desk.features[desk.asked],
            count=count,
            labels=len(desk.asked),
            seed=desk.seed,
            random_share=desk.plan.random_share,
            **({} if tail is None else {"tail": tail}),
        )
        return desk.open[asked.order[:count]]

    return choose


#: By name: how the first pictures are chosen, and how the others.
STRATEGIES: Mapping[str, tuple[Choose, Choose]] = {
    "random": (_random, _random),
    "mix": (_mix(), _mix()),
    "mix-kcenter": (_mix("k-center"), _mix("k-center")),
    "mix-badge": (_mix("badge"), _mix("badge")),
    "typiclust": (_typiclust, _typiclust),
    "kmeans": (_central, _central),
    "margin": (_random, _margin),
    "margin-kcenter": (_random, _margin_k_center),
    "badge": (_random, _badge),
    "entropy": (_random, _entropy),
}


def check_strategy(name: str) -> None:
    """Refuse a name that is none.

    Raises:
        ExperimentError: with those there are.
    """
    if name not in STRATEGIES:
        raise ExperimentError(f"no strategy {name!r}: expected one of {', '.join(STRATEGIES)}")


def replay(campaign: Campaign, plan: Plan, material: Material, recipe: Recipe) -> Curve:
    """Run one campaign and judge the head after each training.

    Each training starts from scratch. It ends early when every picture has been asked about.

    Raises:
        ExperimentError: there is no such strategy, or the first answers leave nothing to learn.
    """
    check_strategy(campaign.strategy)
    first, later = STRATEGIES[campaign.strategy]
    own = replace(recipe, seed=campaign.seed)
    told = answers(material.targets, material.tree, plan.know, campaign.seed)
    features = material.views[PLAIN].means.numpy()
    vectors = Space.of(features).vectors(features)
    asked: Ints = np.zeros(0, dtype=np.int64)
    log_p: Doubles | None = None
    points: list[Point] = []
    for number in range(plan.rounds + 1):
        seed = 1000 * campaign.seed + number
        desk = Desk(material.tree, features, vectors, asked, log_p, plan, seed)
        if not len(desk.open):
            break
        choose, count = (later, plan.batch) if number else (first, plan.start)
        asked = np.concatenate([asked, choose(desk, count)])
        head, learnt = _learn(campaign, asked, told, material, own)
        log_p = trainer.log_probabilities(head, material.tree, material.views[PLAIN])
        seen = float(len(np.unique(material.targets[asked])))
        figures = {**judge(head, material), **learnt, "classes": seen}
        points.append(Point(len(asked), figures))
        log.info("campaign=%s questions=%d leaf=%.3f", campaign, len(asked), figures["leaf"])
    return Curve(campaign, tuple(points))


def _learn(
    campaign: Campaign, asked: Ints, told: Ints, material: Material, recipe: Recipe
) -> tuple[FrozenHead, dict[str, float]]:
    """Fit a head to the answers and, where asked for, once more with the labels it gives itself."""
    tree = material.tree
    usable = asked
    if campaign.coarse == "drop":
        usable = asked[np.isin(told[asked], tree.leaves)]
    if len(np.unique(told[usable])) < 2:
        raise ExperimentError(
            f"{campaign.name}: the first {len(asked)} answers leave {len(usable)} to learn from, "
            "which name fewer than 2 nodes: ask about more at the start"
        )
    weight = np.ones(len(usable), dtype=np.float32)
    head = _fit(usable, told[usable], weight, material, recipe)
    figures = {"used": float(len(usable))}
    if campaign.pseudo is None:
        return head, figures
    said = trainer.log_probabilities(head, tree, material.views[PLAIN])
    guess = safe_targets(said, tree, least=campaign.pseudo)
    guess[asked] = -1
    given = np.flatnonzero(guess >= 0)
    if not len(given):
        return head, {**figures, "pseudo": 0.0}
    right = [tree.covers(g, t) for g, t in zip(guess[given], material.targets[given], strict=True)]
    figures |= {"pseudo": float(len(given)), "pseudo right": float(np.mean(right))}
    weight = np.concatenate([weight, np.full(len(given), WEIGHT, dtype=np.float32)])
    nodes = np.concatenate([told[usable], guess[given]])
    return _fit(np.concatenate([usable, given]), nodes, weight, material, recipe), figures


def _fit(
    pictures: Ints, nodes: Ints, weight: Floats, material: Material, recipe: Recipe
) -> FrozenHead:
    rows = Rows(torch.from_numpy(pictures), torch.from_numpy(nodes), torch.from_numpy(weight))
    head = trainer.new_head(material.tree, material.reduction, recipe)
    views = material.views[: len(recipe.views)]
    trainer.learn(head, trainer.Lesson(material.tree, views, rows), recipe, lambda *_, **__: None)
    return head


def judge(head: FrozenHead, material: Material) -> dict[str, float]:
    """Accuracy of the best leaf and of each level's best node; on test without a prefix."""
    figures: dict[str, float] = {}
    for name, judged in material.judged.items():
        if not len(judged.targets):
            continue
        prefix = "" if name == "test" else f"{name} "
        found = candidates(
            trainer.log_probabilities(head, material.tree, judged.seen), material.tree
        )
        is_leaf = np.isin(judged.targets, material.tree.leaves)
        if is_leaf.any():
            figures[f"{prefix}leaf"] = float((found.leaf == judged.targets)[is_leaf].mean())
        for row in accuracy_by_level(found.nodes, judged.targets, material.tree):
            figures[f"{prefix}level {row['level']}"] = float(row["accuracy"])
    return figures


def replay_all(
    campaigns: Sequence[Campaign], plan: Plan, folder: Path, recipe: Recipe, *, jobs: int
) -> Iterator[Curve]:
    """Run campaigns, ``jobs`` at a time with one thread each, and yield each as it ends.

    Args:
        campaigns: what to do.
        plan: what they share.
        folder: where `Material.save` wrote.
        recipe: views, networks and loop; a campaign brings its seed.
        jobs: processes.
    """
    pool = ProcessPoolExecutor(
        jobs, mp_context=get_context("spawn"), initializer=_start, initargs=(folder,)
    )
    try:
        under_way = [pool.submit(_do, one, plan, recipe) for one in campaigns]
        for future in as_completed(under_way):
            yield future.result()
    finally:  # one campaign that fails ends the comparison now, not after all the others
        pool.shutdown(cancel_futures=True)


_material: Material | None = None


def _start(folder: Path) -> None:
    """Once a process, which shares the material's pages with the others."""
    global _material  # noqa: PLW0603 - a pool's initialiser has no other way to hand things over
    torch.set_num_threads(1)
    _material = Material.load(folder)


def _do(campaign: Campaign, plan: Plan, recipe: Recipe) -> Curve:
    assert _material is not None  # noqa: S101 - the pool started us
    return replay(campaign, plan, _material, recipe)
