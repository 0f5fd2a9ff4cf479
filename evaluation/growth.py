"""What a grown head is worth: leaves come late, and the head that is there learns them.

Some leaves are withheld, a head learns the smaller tree, the tree grows, and three heads are
compared: the grown one as it is, the grown one after it has learnt what is new, and one trained
from scratch. P pictures, V views, N nodes.
"""

import json
import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal, Self

import numpy as np
import torch
from numpy.typing import NDArray

from hierarchy import LabelTree
from hierarchy.growth import Change, Graft, awaken
from hierarchy.network import Features, FrozenHead, Reduction, carry_over
from hierarchy.tree import TOP
from inference.views import PLAIN
from worker.fitting import Rows, fit
from worker.recipe import Recipe
from worker.trainer import (
    Examples,
    Lesson,
    ReadMaps,
    fit_reduction,
    learn,
    log_probabilities,
    new_head,
    reduce_all,
)

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Photos:
    """Pictures whose leaves are known.

    Attributes:
        read: picture positions and a view -> ``(len, C, H, W)`` float16 maps.
        leaf: ``(P,)`` the leaf of each picture, as an id of the whole tree.
    """

    read: ReadMaps
    leaf: NDArray[np.int64]


@dataclass(frozen=True)
class Plan:
    """What is withheld, and how the grown head learns it.

    Attributes:
        leaves: how many leaves come late.
        before: what the late leaves' pictures were labelled until then: their ``parent``, or
            nothing (``unlabelled``).
        learns: what of the grown head learns: the new nodes' ``rows`` alone, or ``all``.
        epochs: passes over the labels after growth, old and new.
        rate: AdamW's peak learning rate then, cosine to 0.
        decay: AdamW's weight decay then.
    """

    leaves: int = 10
    before: Literal["parent", "unlabelled"] = "parent"
    learns: Literal["rows", "all"] = "rows"
    epochs: int = 8
    rate: float = 1e-2
    decay: float = 0.1


@dataclass(frozen=True)
class Figures:
    """How good a head is on one set of pictures; shares in [0, 1], None where there are none.

    Attributes:
        old: pictures of old leaves whose best leaf, of all leaves of the head, is right.
        old_among_old: the same with only old leaves to choose from.
        new: pictures of late leaves whose best leaf is right.
        every: all pictures together.
    """

    old: float | None
    old_among_old: float | None
    new: float | None
    every: float | None


@dataclass(frozen=True)
class Head:
    """One head of the comparison.

    Attributes:
        seconds: of training, after the maps were reduced.
        figures: by the name of each set of pictures.
    """

    seconds: float
    figures: dict[str, Figures]


@dataclass(frozen=True)
class Outcome:
    """One seed's comparison.

    Attributes:
        seed: of the draw of leaves and of training.
        withheld: paths of the leaves that came late.
        before: the head of the smaller tree.
        grown: carried over to the whole tree, not trained.
        warm: the grown head after it has learnt the late leaves.
        scratch: trained anew on everything.
    """

    seed: int
    withheld: tuple[tuple[str, ...], ...]
    before: Head
    grown: Head
    warm: Head
    scratch: Head


@dataclass(frozen=True)
class Study:
    """All seeds' outcomes, and what was asked."""

    plan: Plan
    outcomes: tuple[Outcome, ...]

    def mean(self, head: Literal["before", "grown", "warm", "scratch"], where: str) -> Figures:
        """Mean figures of a head on one set of pictures, over the seeds."""
        found = [asdict(getattr(one, head).figures[where]) for one in self.outcomes]
        return Figures(**{name: _mean([one[name] for one in found]) for name in found[0]})

    def to_json(self) -> dict[str, Any]:
        """Plain data: the plan, and one object a seed."""
        plain: dict[str, Any] = json.loads(json.dumps(asdict(self)))
        return plain


def study(  # noqa: PLR0913 - the pictures, and each choice
    tree: LabelTree,
    photos: Photos,
    checks: Mapping[str, Photos],
    recipe: Recipe,
    plan: Plan,
    *,
    seeds: Sequence[int],
) -> Study:
    """Compare growth with training anew, once a seed.

    Args:
        tree: with all leaves.
        photos: pictures to learn from.
        checks: sets of pictures to judge on, by name.
        recipe: of both full trainings; its seed is replaced.
        plan: what comes late and how it is learnt.
        seeds: one comparison each.

    Raises:
        ValueError: if the plan withholds no leaf, or leaves fewer than two.
    """
    if not 0 < plan.leaves <= len(tree.leaves) - 2:
        raise ValueError(
            f"leaves: expected 1 to {len(tree.leaves) - 2}, so that two stay, got {plan.leaves}"
        )
    examples = _examples(photos, recipe.views)
    reduction = fit_reduction(examples, recipe, _silent)
    views = reduce_all(examples, reduction, _silent)
    judged = {}
    for name, one in checks.items():
        (plain,) = reduce_all(_examples(one, (PLAIN,)), reduction, _silent)
        judged[name] = (plain, one.leaf)
    bench = Bench(tree, photos.leaf, views, reduction, judged, recipe)
    return Study(plan, tuple(bench.compare(plan, seed) for seed in seeds))


@dataclass(frozen=True)
class Late:
    """One draw of the leaves that come late.

    Attributes:
        seed: of the draw, and of all training that follows.
        leaves: their ids in the whole tree, ascending.
        old: ids of the other leaves.
        tree: the tree without them.
        change: from that tree to the whole one.
    """

    seed: int
    leaves: NDArray[np.int64]
    old: NDArray[np.int64]
    tree: LabelTree
    change: Change

    @classmethod
    def draw(cls, tree: LabelTree, leaves: int, seed: int) -> Self:
        """Draw so many leaves of the tree."""
        late = np.sort(np.random.default_rng(seed).choice(tree.leaves, leaves, replace=False))
        small = without(tree, late.tolist())
        old = np.setdiff1d(np.array(tree.leaves), late)
        return cls(seed, late, old, small, Change.between(small, tree))


@dataclass(frozen=True)
class Bench:
    """What all seeds share.

    Attributes:
        tree: with all leaves.
        leaf: ``(P,)`` the leaf of each picture to learn from.
        views: their features, V times, the plain ones first.
        reduction: what reduced them.
        judged: by name the plain features and leaves of other pictures.
        recipe: of full trainings.
    """

    tree: LabelTree
    leaf: NDArray[np.int64]
    views: Sequence[Features]
    reduction: Reduction
    judged: Mapping[str, tuple[Features, NDArray[np.int64]]]
    recipe: Recipe

    def compare(self, plan: Plan, seed: int) -> Outcome:
        """Train, grow, learn what is new, and train anew."""
        late = Late.draw(self.tree, plan.leaves, seed)
        small, first = self.small(late, plan)
        grown = self.grow(small, late)
        warm, seconds = self.warm(small, late, plan)
        anew, anew_seconds = self.trained(self.tree, self.leaf, seed)
        outcome = Outcome(
            seed,
            tuple(self.tree.path(node) for node in late.leaves.tolist()),
            before=Head(first, self._figures(small, late, small_tree=True)),
            grown=Head(0.0, self._figures(grown, late)),
            warm=Head(seconds, self._figures(warm, late)),
            scratch=Head(anew_seconds, self._figures(anew, late)),
        )
        log.info("compared seed=%d warm=%.1fs scratch=%.1fs", seed, seconds, anew_seconds)
        return outcome

    def small(self, late: Late, plan: Plan) -> tuple[FrozenHead, float]:
        """A head that knows nothing of the late leaves, and the seconds it took."""
        coarse = Change.between(self.tree, late.tree).move(self.leaf)
        if plan.before == "unlabelled":
            coarse = np.where(np.isin(self.leaf, late.leaves), -1, coarse)
        return self.trained(late.tree, coarse, late.seed)

    def trained(
        self, tree: LabelTree, target: NDArray[np.int64], seed: int
    ) -> tuple[FrozenHead, float]:
        """A head trained as for a project, from the pictures with a target, and its seconds."""
        recipe = replace(self.recipe, seed=seed)
        head = new_head(tree, self.reduction, recipe)
        started = time.monotonic()
        learn(head, self._lesson(tree, target), recipe, _told)
        return head, round(time.monotonic() - started, 2)

    def grow(self, small: FrozenHead, late: Late, *, awake: bool = False) -> FrozenHead:
        """The small tree's head carried over to the whole one."""
        head = new_head(self.tree, self.reduction, replace(self.recipe, seed=late.seed))
        state = carry_over(small.state_dict(), late.tree, self.tree, head.state_dict())
        head.load_state_dict(awaken(state, late.tree, self.tree) if awake else state)
        return head.eval()

    def warm(self, small: FrozenHead, late: Late, plan: Plan) -> tuple[FrozenHead, float]:
        """The grown head after it has learnt the late leaves, and the seconds that took."""
        started = time.monotonic()
        head = self.grow(small, late, awake=True)
        lesson = self._lesson(self.tree, self.leaf)
        recipe = replace(
            self.recipe,
            epochs=plan.epochs,
            rate=plan.rate,
            pooled_rate=plan.rate,
            decay=plan.decay,
            pooled_decay=plan.decay,
            least_steps=0,
            seed=late.seed,
        )
        head.seed(late.seed)
        if plan.learns == "all":
            fit(head, head.objective, self.views, lesson.rows, recipe, _told)
        else:
            graft = Graft(head, late.change.added, self.recipe.dropout)
            graft.dropout.seed(late.seed)
            features = [Graft.features(head, view) for view in self.views]
            fit(graft, graft.objective, features, lesson.rows, recipe, _told)
            graft.write_to(head)
        return head, round(time.monotonic() - started, 2)

    def _lesson(self, tree: LabelTree, target: NDArray[np.int64]) -> Lesson:
        at = torch.from_numpy(np.flatnonzero(target >= 0))
        rows = Rows(at, torch.from_numpy(target)[at], torch.ones(len(at)))
        return Lesson(tree, self.views, rows)

    def _figures(
        self, head: FrozenHead, late: Late, *, small_tree: bool = False
    ) -> dict[str, Figures]:
        """Judge by the best of the leaves of the whole tree that the head has."""
        leaves = late.old if small_tree else np.array(self.tree.leaves)
        columns = np.array(late.change.source)[leaves] if small_tree else leaves
        tree = late.tree if small_tree else self.tree
        is_old = np.isin(leaves, late.old)
        found = {}
        for name, (seen, truth) in self.judged.items():
            log_p = log_probabilities(head, tree, seen)[:, columns]
            right = leaves[log_p.argmax(1)] == truth
            among = leaves[is_old][log_p[:, is_old].argmax(1)] == truth
            of_old = np.isin(truth, late.old)
            found[name] = Figures(
                old=_share(right[of_old]),
                old_among_old=_share(among[of_old]),
                new=_share(right[~of_old]),
                every=_share(right),
            )
        return found


def without(tree: LabelTree, nodes: Sequence[int]) -> LabelTree:
    """The tree without these nodes and all below them; the others keep their order.

    Raises:
        TreeError: if none is left.
    """
    gone = set(nodes)
    for node in tree.preorder:
        if tree.parents[node] in gone:
            gone.add(node)
    stay = [node for node in range(len(tree)) if node not in gone]
    place = {node: at for at, node in enumerate(stay)} | {TOP: TOP}
    return LabelTree.from_parents(
        [place[tree.parents[node]] for node in stay], [tree.names[node] for node in stay]
    )


def _examples(photos: Photos, views: tuple[int, ...]) -> Examples:
    count = len(photos.leaf)
    return Examples(
        read=photos.read,
        views=views,
        pictures=count,
        picture=np.arange(count),
        target=photos.leaf,
        weight=np.ones(count, dtype=np.float32),
        truth=photos.leaf,
        groups=[None] * count,
    )


def _silent(stage: str, done: int, total: int, **figures: float) -> None:
    log.debug("%s %d of %d %s", stage, done, total, figures)


def _told(done: int, total: int, **figures: float) -> None:
    log.debug("epoch %d of %d %s", done, total, figures)


def _share(right: NDArray[np.bool_]) -> float | None:
    return float(right.mean()) if len(right) else None


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None
