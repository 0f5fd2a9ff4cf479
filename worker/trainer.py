"""Examples in, a trained head with its depth rule and its honest figures out.

Knows no queue, no HTTP and no Label Studio. Letters: P pictures, R labels (rows), V views, N nodes,
C and c channels before and after the reduction, H x W the grid.
"""

import logging
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hierarchy import LabelTree, log_marginals
from hierarchy.calibration import Evidence, Fitted, evidence, fit_rule
from hierarchy.choice import candidates
from hierarchy.metrics import accuracy_by_level, expected_calibration_error
from hierarchy.network import Features, FrozenHead, Reduction, ResidualHead
from models.views import PLAIN
from worker.fitting import Report, Rows, Tally, fit, side_by_side
from worker.folds import assign_folds
from worker.recipe import Recipe

log = logging.getLogger(__name__)

#: Pictures read at once while reducing: 64 maps of lite0 are 16 MB in float32.
CHUNK = 64

#: Pictures whose maps fit the PCA; more change the basis by less than the seed does.
REDUCTION_SAMPLE = 500

#: Pictures scored at once.
READ_AT_ONCE = 256

Maps = NDArray[np.float16]
ReadMaps = Callable[[Sequence[int], int], Maps]


@dataclass(frozen=True)
class Examples:
    """What to learn from.

    Attributes:
        read: picture positions and a view -> ``(len, C, H, W)`` float16 maps.
        views: those there are, the plain one first (``models.views``).
        pictures: how many pictures there are, P.
        picture: ``(R,)`` the picture that each label belongs to.
        target: ``(R,)`` the node it names, or ``(R, K)``, one of these, filled up with -1.
        weight: ``(R,)`` what it counts.
        truth: ``(P,)`` what a picture's annotators agree on, -1 where they agree on nothing.
        groups: for each picture the group it may not be parted from (a session, a store), or None.
    """

    read: ReadMaps
    views: tuple[int, ...]
    pictures: int
    picture: NDArray[np.int64]
    target: NDArray[np.int64]
    weight: NDArray[np.float32]
    truth: NDArray[np.int64]
    groups: Sequence[str | None]

    @property
    def named(self) -> set[int]:
        """All nodes that some label names."""
        return set(np.unique(self.target).tolist()) - {-1}

    def rows(self, learn: NDArray[np.bool_]) -> Rows:
        """The labels that ``(R,)`` ``learn`` keeps, for the training loop."""
        return Rows(
            torch.from_numpy(self.picture[learn]),
            torch.from_numpy(self.target[learn]),
            torch.from_numpy(self.weight[learn]),
        )


@dataclass(frozen=True)
class Trained:
    """A head, when it answers, and how good it is.

    Attributes:
        head: trained on all examples, in eval mode.
        fitted: the depth rule with its standing.
        seen: the evidence it was fitted on.
        metrics: from pictures each judged by a head that had not seen it.
        held_out: ``(P, N)`` their log-probabilities; NaN rows for pictures not held out.
    """

    head: FrozenHead | ResidualHead
    fitted: Fitted
    seen: Evidence
    metrics: dict[str, Any]
    held_out: NDArray[np.float64]


class TooFewLabelsError(Exception):
    """There is not enough to learn from yet; the message says what is missing."""


def train(  # noqa: PLR0913 - the examples, and each choice that a project may make
    tree: LabelTree,
    examples: Examples,
    recipe: Recipe,
    *,
    target: float,
    minimum: int = 1,
    maximum: int | None = None,
    strict: bool = False,
    report: Report,
    device: str = "cpu",
) -> Trained:
    """Cross-fit for honest figures and the depth rule, then fit on everything.

    Raises:
        TooFewLabelsError: fewer than two different nodes named, or fewer than four pictures.
        FloatingPointError: feature maps or the loss are not finite.
    """
    check_enough(examples.pictures, examples.named)
    reduction = fit_reduction(examples, recipe, report)
    views = reduce_all(examples, reduction, report)
    folds = _folds(examples, views[PLAIN].means.numpy(), recipe)
    parts = [
        part for part in sorted(set(folds.tolist()) - {-1}) if _learnable(part, folds, examples)
    ]
    masks = [folds[examples.picture] != part for part in parts]
    masks.append(np.ones(len(examples.target), dtype=bool))
    lessons = [Lesson(tree, views, examples.rows(mask)) for mask in masks]
    heads = learn_all(lessons, reduction, recipe, report, device)
    held_out = np.full((examples.pictures, len(tree)), np.nan)
    for part, checked in zip(parts, heads, strict=False):
        judged = np.flatnonzero(folds == part)
        held_out[judged] = log_probabilities(checked, tree, views[PLAIN][torch.from_numpy(judged)])
    head = heads[-1]
    report("calibrating", 0, 1)
    seen, metrics = judge(tree, examples, held_out)
    fitted = fit_rule(seen, target=target, minimum=minimum, maximum=maximum, strict=strict)
    report("calibrating", 1, 1)
    return Trained(head.cpu(), fitted, seen, metrics, held_out)


def check_enough(pictures: int, named: Collection[int]) -> None:
    """Refuse what nothing can be learnt from.

    Raises:
        TooFewLabelsError: with what is missing.
    """
    if pictures < 4 or len(named) < 2:
        raise TooFewLabelsError(
            "expected at least 4 labelled pictures that name at least 2 different nodes, "
            f"got {pictures} pictures naming {len(named)}: label some more, then train again"
        )


def fit_reduction(examples: Examples, recipe: Recipe, report: Report) -> Reduction:
    """Standardise each channel, and a PCA over map positions where a network looks at those."""
    report("reducing", 0, examples.pictures)
    generator = np.random.default_rng(recipe.seed)
    sample = generator.permutation(examples.pictures)[:REDUCTION_SAMPLE]
    count, means = 0, []
    total = products = torch.zeros(0)
    for start in range(0, len(sample), CHUNK):
        maps = _read(examples, sample[start : start + CHUNK].tolist(), PLAIN)
        means.append(maps.mean(dim=(2, 3)))
        vectors = maps.movedim(1, -1).flatten(0, 2)  # (positions, C)
        if not count:
            total = torch.zeros(maps.shape[1], dtype=torch.float64)
            products = torch.zeros(maps.shape[1], maps.shape[1], dtype=torch.float64)
        count += len(vectors)
        total += vectors.sum(0)
        if recipe.spatial:
            products += vectors.T @ vectors
    whole = torch.cat(means)  # (sample, C)
    centre, deviation = whole.mean(dim=0), whole.std(dim=0, correction=0)
    spread = deviation + 1e-3 * deviation.mean().clamp_min(1e-6)  # a dead channel stays at zero
    if not recipe.spatial:
        return Reduction(torch.zeros(0, len(centre)), torch.zeros(0), centre, spread)
    weight, bias = _principal(total / count, products / count, recipe.reduced)
    return Reduction(weight, bias, centre, spread)


def _principal(mean: Tensor, products: Tensor, kept: int) -> tuple[Tensor, Tensor]:
    """``(C,)`` mean and ``(C, C)`` mean product of positions -> PCA of the correlations.

    Returns:
        ``(c, C)`` weight and ``(c,)`` bias such that ``weight @ x + bias`` is the reduced vector.
    """
    covariance = products - mean[:, None] * mean[None, :]
    spread = covariance.diagonal().clamp_min(1e-8).sqrt()  # a dead channel stays at zero
    correlation = covariance / spread[:, None] / spread[None, :]
    _, vectors = torch.linalg.eigh(correlation.float())
    basis = vectors[:, -min(kept, len(mean)) :].flip(1).T.double()  # (c, C)
    weight = basis / spread[None, :]
    return weight.float(), -(weight @ mean).float()


def _read(examples: Examples, positions: Sequence[int], view: int) -> Tensor:
    """``(len, C, H, W)`` float32 maps, all of them finite."""
    maps = torch.from_numpy(examples.read(positions, view)).float()
    finite = maps.isfinite().flatten(1).all(1).tolist()
    if not all(finite):
        raise FloatingPointError(
            f"the features of picture {positions[finite.index(False)]} are not finite numbers: "
            "the backbone does not work here, `hrn doctor` says more"
        )
    return maps


def reduce_all(examples: Examples, reduction: Reduction, report: Report) -> list[Features]:
    """Features of all P pictures in each view; the maps in bfloat16."""
    views: list[Features] = []
    for view in examples.views:
        kept: Features | None = None
        for start in range(0, examples.pictures, CHUNK):
            stop = min(start + CHUNK, examples.pictures)
            some = reduction.of(_read(examples, range(start, stop), view))
            kept = kept or empty_like(some, examples.pictures)
            kept.maps[start:stop], kept.means[start:stop] = some.maps, some.means
            done = len(views) * examples.pictures + stop
            report("reducing", done, len(examples.views) * examples.pictures)
        assert kept is not None  # noqa: S101 - check_enough ran
        views.append(kept)
    return views


def empty_like(some: Features, pictures: int) -> Features:
    """Room for so many pictures' features."""
    return Features(
        torch.empty(pictures, *some.maps.shape[1:], dtype=torch.bfloat16),
        torch.empty(pictures, some.means.shape[1]),
    )


def log_probabilities(head: FrozenHead, tree: LabelTree, seen: Features) -> NDArray[np.float64]:
    """Features of n pictures -> ``(n, N)`` log P(node)."""
    head.eval()
    device = head.centre.device
    parts = []
    with torch.inference_mode():
        for start in range(0, len(seen), READ_AT_ONCE):
            some = seen[start : start + READ_AT_ONCE]
            exact = Features(some.maps.to(device).float(), some.means.to(device))
            parts.append(log_marginals(head.from_features(exact).double(), tree).cpu())
    return torch.cat(parts).numpy() if parts else np.empty((0, len(tree)))


def judge(
    tree: LabelTree, examples: Examples, held_out: NDArray[np.float64]
) -> tuple[Evidence, dict[str, Any]]:
    """Evidence and figures from each picture that was held out and whose annotators agree.

    Args:
        tree: of the nodes.
        examples: with each picture's truth.
        held_out: ``(P, N)`` log-probabilities, NaN rows for pictures that were not held out.
    """
    pictures = np.flatnonzero(~np.isnan(held_out[:, 0]) & (examples.truth >= 0))
    targets = examples.truth[pictures]
    found = candidates(held_out[pictures], tree)
    seen = evidence(found, targets, tree)
    deepest = np.isin(targets, tree.leaves)
    leaf_right = (found.leaf == targets)[deepest]
    metrics: dict[str, Any] = {
        "held_out": len(pictures),
        "levels": accuracy_by_level(seen.right),
        "leaf_checked": int(deepest.sum()),
        "leaf_accuracy": _mean(leaf_right),
        "leaf_ece": expected_calibration_error(found.confidence[deepest], leaf_right),
        "log_loss": _mean(-held_out[pictures, targets]),  # nats
    }
    return seen, metrics


def _mean(values: NDArray[Any]) -> float | None:
    return round(float(values.mean()), 4) if len(values) else None


def _folds(examples: Examples, means: NDArray[np.float32], recipe: Recipe) -> NDArray[np.int64]:
    folds = assign_folds(
        means, examples.truth, examples.groups, folds=recipe.folds, seed=recipe.seed
    )
    if examples.pictures > recipe.cross_fit_up_to:
        folds = np.where(folds == 0, 0, -1)
    return folds


def _learnable(part: int, folds: NDArray[np.int64], examples: Examples) -> bool:
    """Is there anything left to learn from when this part is held out?"""
    if (folds[examples.picture] != part).sum() >= 2:
        return True
    log.warning("nothing can be held out: the pictures are one group, or nearly so")
    return False


@dataclass(frozen=True)
class Lesson:
    """What one head learns from: all pictures' features, and some of the labels.

    Attributes:
        tree: of the nodes.
        views: features of all P pictures, V times, the plain ones first.
        rows: the labels.
    """

    tree: LabelTree
    views: Sequence[Features]
    rows: Rows


def learn_all(
    lessons: Sequence[Lesson],
    reduction: Reduction,
    recipe: Recipe,
    report: Report,
    device: str = "cpu",
) -> list[FrozenHead]:
    """One head a lesson, side by side; the last one's curve is told."""
    heads = [new_head(lesson.tree, reduction, recipe, device) for lesson in lessons]
    tally = Tally(report, "fitting", len(lessons))
    side_by_side(
        [
            partial(learn, head, lesson, recipe, tally.voice(number))
            for number, (head, lesson) in enumerate(zip(heads, lessons, strict=True))
        ],
        device=device,
    )
    return heads


def new_head(
    tree: LabelTree, reduction: Reduction, recipe: Recipe, device: str = "cpu"
) -> FrozenHead:
    """A head with fresh weights behind the fitted reduction."""
    torch.manual_seed(recipe.seed)
    head = FrozenHead(
        tree,
        len(reduction.centre),
        **{**recipe.sizes(), "reduced": max(1, len(reduction.weight))},
        dropout=recipe.dropout,
    )
    head.set_reduction(reduction)
    return head.to(device)


def learn(head: FrozenHead, lesson: Lesson, recipe: Recipe, tell: Callable[..., None]) -> None:
    """Fit the head in place."""
    head.seed(recipe.seed)
    device = head.centre.device.type
    fit(head, head.objective, lesson.views, lesson.rows, recipe, tell, device=device)
