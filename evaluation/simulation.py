"""A labelling campaign replayed: ask, be answered, train anew, ask again.

Every image's true node is known, so what an annotator would answer is too. All strategies get the
same annotators and the same training; only the images that are asked about differ.
P training images, N nodes, C channels.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from statistics import fmean
from types import MappingProxyType
from typing import Final, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from evaluation.errors import ExperimentError
from evaluation.features import Features
from evaluation.methods import fit_hrn
from evaluation.results import Results, Row, markdown
from hierarchy import LabelTree
from hierarchy.acquisition import Space, ask, entropy, k_center, margin, typical
from hierarchy.acquisition.strategy import CHOICE
from hierarchy.depth_selection import candidates
from hierarchy.heads import HRNHead
from hierarchy.metrics import accuracy_by_level
from hierarchy.tree import TOP
from inference.augmentation import PLAIN
from worker.fitting import Rows
from worker.training_config import TrainingConfig

Ints = NDArray[np.int64]
Floats = NDArray[np.float32]
Doubles = NDArray[np.float64]

Coarse = Literal["use", "drop"]

#: The strategy that the others are measured against.
REFERENCE: Final = "random"


@dataclass(frozen=True)
class Plan:
    """Settings that all campaigns of a comparison share.

    Attributes:
        start: images asked about before the first training.
        batch: images asked about between two trainings.
        rounds: batches.
        know: the probability with which an annotator knows a node; one who does not answers its
            parent with the same probability, and so on up to the root node, which everyone knows.
        random_share: of a batch of the mix, drawn at random.

    Raises:
        ExperimentError: a number is out of range.
    """

    start: int
    batch: int = 100
    rounds: int = 10
    know: float = 1.0
    random_share: float = 0.05

    def __post_init__(self) -> None:
        if self.start < 2 or self.batch < 1 or self.rounds < 0:
            raise ExperimentError(
                "expected a start of 2 images or more, a batch of 1 or more and rounds of 0 or "
                f"more, got {self.start}, {self.batch} and {self.rounds}"
            )
        for name in ("know", "random_share"):
            if not 0 <= getattr(self, name) <= 1:
                raise ExperimentError(f"{name} must be 0 to 1, got {getattr(self, name)}")


def answers(targets: Ints, tree: LabelTree, know: float, seed: int) -> Ints:
    """Draw what annotators would answer, ``(P,)`` nodes on the true paths, whatever the image."""
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
class Pool:
    """Images and predictions that a strategy chooses from.

    Attributes:
        tree: N nodes.
        features: ``(P, C)`` of all images.
        vectors: ``(P, c)`` the same as unit vectors.
        asked: positions asked so far, in order.
        log_p: ``(P, N)`` what the newest head says; None before the first.
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
    def predicted(self) -> Doubles:
        """``(open, N)`` what the head says of those."""
        assert self.log_p is not None  # noqa: S101 - only asked for after a training
        return self.log_p[self.open]


Choose = Callable[[Pool, int], Ints]


def _random(pool: Pool, count: int) -> Ints:
    rng = np.random.default_rng(pool.seed)
    return rng.choice(pool.open, min(count, len(pool.open)), replace=False)


def _typiclust(pool: Pool, count: int) -> Ints:
    taken = pool.vectors[pool.asked]
    return pool.open[typical(pool.vectors[pool.open], count, taken=taken, seed=pool.seed)]


def _margin(pool: Pool, count: int) -> Ints:
    return pool.open[np.argsort(margin(pool.predicted, pool.tree), kind="stable")[:count]]


def _entropy(pool: Pool, count: int) -> Ints:
    return pool.open[np.argsort(-entropy(pool.predicted, pool.tree), kind="stable")[:count]]


def _margin_k_center(pool: Pool, count: int) -> Ints:
    some = _margin(pool, CHOICE * count)
    return some[k_center(pool.vectors[some], count, taken=pool.vectors[pool.asked])]


def _mix(pool: Pool, count: int) -> Ints:
    asked = ask(
        pool.features[pool.open],
        None if pool.log_p is None else pool.predicted,
        pool.tree,
        taken=pool.features[pool.asked],
        count=count,
        labels=len(pool.asked),
        seed=pool.seed,
        random_share=pool.plan.random_share,
    )
    return pool.open[asked.order[:count]]


#: By name: how the first images are chosen, and how the others.
STRATEGIES: Mapping[str, tuple[Choose, Choose]] = MappingProxyType(
    {
        "random": (_random, _random),
        "mix": (_mix, _mix),
        "typiclust": (_typiclust, _typiclust),
        "margin": (_random, _margin),
        "margin-kcenter": (_random, _margin_k_center),
        "entropy": (_random, _entropy),
    }
)


def check_strategy(name: str) -> None:
    """Refuse a name that is none.

    Raises:
        ExperimentError: with those there are.
    """
    if name not in STRATEGIES:
        raise ExperimentError(f"no strategy {name!r}: expected one of {', '.join(STRATEGIES)}")


def campaign_name(strategy: str, coarse: Coarse) -> str:
    """Return what a campaign is called in tables, whatever its seed."""
    return strategy if coarse == "use" else f"{strategy}, coarse dropped"


def replay(
    features: Features, *, strategy: str, plan: Plan, seed: int, coarse: Coarse = "use"
) -> list[Row]:
    """Run one campaign and judge the head after each training, which starts from scratch.

    It ends early when every image has been asked about.

    Args:
        features: the pool to ask about, and what to judge on.
        strategy: a name in ``STRATEGIES``.
        plan: what the campaign shares with others.
        seed: of the choice, the annotators and the training.
        coarse: whether answers above the leaf are learnt from.

    Returns:
        One row per training, its protocol the number of questions asked so far.

    Raises:
        ExperimentError: there is no such strategy, or the first answers leave nothing to learn.
    """
    check_strategy(strategy)
    first, later = STRATEGIES[strategy]
    name = campaign_name(strategy, coarse)
    tree, targets = features.tree, features.targets
    answered = answers(targets, tree, plan.know, seed)
    plain = features.train[:, PLAIN].astype(np.float32)
    vectors = Space.of(plain).vectors(plain)
    asked: Ints = np.zeros(0, dtype=np.int64)
    log_p: Doubles | None = None
    rows: list[Row] = []
    for number in range(plan.rounds + 1):
        pool = Pool(tree, plain, vectors, asked, log_p, plan, 1000 * seed + number)
        if not len(pool.open):
            break
        choose, count = (later, plan.batch) if number else (first, plan.start)
        asked = np.concatenate([asked, choose(pool, count)])
        usable = asked
        if coarse == "drop":
            usable = asked[np.isin(answered[asked], tree.leaves)]
        if len(np.unique(answered[usable])) < 2:
            raise ExperimentError(
                f"{name}: the first {len(asked)} answers leave {len(usable)} to learn from, "
                "which name fewer than 2 nodes: ask about more at the start"
            )
        head = _fit(features, usable, answered[usable], seed)
        log_p = head.log_probabilities(features.train[:, PLAIN])
        figures = {
            **judge(head, features),
            "questions": float(len(asked)),
            "classes": float(len(np.unique(targets[asked]))),
        }
        rows.append(Row(name, str(len(asked)), seed, figures))
    return rows


def _fit(features: Features, images: Ints, nodes: Ints, seed: int) -> HRNHead:
    vectors = torch.from_numpy(features.train[images])
    rows = Rows(torch.arange(len(nodes)), torch.from_numpy(nodes), torch.ones(len(nodes)))
    config = TrainingConfig.for_networks(features.networks, seed=seed)
    return fit_hrn(features.tree, vectors, rows, config)


def judge(head: HRNHead, features: Features) -> dict[str, float]:
    """Return the accuracy of the best leaf and of each level's best node, on val and test."""
    tree = features.tree
    figures: dict[str, float] = {}
    for name, judged in features.judged.items():
        if not len(judged.targets):
            continue
        prefix = "" if name == "test" else f"{name} "
        found = candidates(head.log_probabilities(judged.vectors), tree)
        is_leaf = np.isin(judged.targets, tree.leaves)
        if is_leaf.any():
            figures[f"{prefix}leaf"] = float((found.leaf == judged.targets)[is_leaf].mean())
        for row in accuracy_by_level(found.nodes, judged.targets, tree):
            figures[f"{prefix}level {row['level']}"] = float(row["accuracy"])
    return figures


def needed(questions: Sequence[float], values: Sequence[float], level: float) -> float | None:
    """Return how many questions it takes a curve to reach a level, in straight lines.

    Example:
        >>> needed([100, 200, 300], [0.5, 0.7, 0.8], 0.75)
        250.0
        >>> needed([100, 200], [0.5, 0.6], 0.7) is None
        True
    """
    before: tuple[float, float] | None = None
    for at, value in zip(questions, values, strict=True):
        if value >= level:
            if before is None:
                return float(at)
            share = (level - before[1]) / (value - before[1])
            return round(float(before[0] + share * (at - before[0])), 6)
        before = (at, value)
    return None


def summary(results: Results, figure: str) -> str:
    """Write each strategy in a few numbers, as Markdown.

    The mean of its curve, that mean's lead over random's and the least lead at any point, the
    questions it needs for what random ends with (on the mean curves; in brackets each seed against
    random with that seed), and the classes that the first images cover.
    """
    head = ["", "curve mean", "over random", "least lead", "questions to random's end", "classes"]
    text = markdown([head[0] or figure, *head[1:]]) + markdown(["---", *["---:"] * 5])
    reference = results.line(REFERENCE, "questions", figure)
    for method in results.methods:
        curve = results.line(method, "questions", figure)
        if not len(curve):
            continue
        cells = [method, f"{100 * curve[:, 1].mean():.1f}", "", "", ""]
        if np.array_equal(curve[:, 0], reference[:, 0]):
            lead = curve[:, 1] - reference[:, 1]
            each = [
                needed(*_of_seed(results, method, seed, figure), values[-1])
                for seed in sorted({row.seed for row in results.rows if row.method == method})
                if (values := _of_seed(results, REFERENCE, seed, figure)[1])
            ]
            x, y = curve.T.tolist()
            mean = needed(x, y, float(reference[-1, 1]))
            cells[2:] = [
                f"{100 * lead.mean():+.1f}",
                f"{100 * lead.min():+.1f}",
                f"{_count(mean)} ({', '.join(map(_count, each))})",
            ]
        first = results.values(method, results.protocols[0], "classes")
        text += markdown([*cells, f"{fmean(first):.1f}" if first else ""])
    return text


def _of_seed(
    results: Results, method: str, seed: int, figure: str
) -> tuple[list[float], list[float]]:
    """Return one campaign's numbers of questions and its figures there."""
    rows = [row for row in results.rows if (row.method, row.seed) == (method, seed)]
    points = sorted((row.figures["questions"], row.figures[figure]) for row in rows)
    return [at for at, _ in points], [value for _, value in points]


def _count(questions: float | None) -> str:
    return "not reached" if questions is None else f"{questions:.0f}"
