"""Examples in, a trained head with its depth rule and its honest figures out.

Knows no queue, no HTTP and no Label Studio. Letters: P pictures, R labels (rows), V views, N nodes,
C and c channels before and after the reduction, H x W the grid.
"""

import logging
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from hierarchy import LabelTree, log_marginals
from hierarchy.calibration import Evidence, Fitted, evidence, fit_rule
from hierarchy.choice import DepthRule, candidates
from hierarchy.decisions import Decisions
from hierarchy.metrics import accuracy_by_level, expected_calibration_error
from hierarchy.network import Features, FrozenHead, Reduction, ResidualHead
from hierarchy.quantised import in_bytes
from inference.precision import has_bf16
from inference.views import PLAIN
from worker.fitting import Report, Rows, Tally, fit, shared_out, side_by_side
from worker.folds import assign_folds
from worker.recipe import Recipe
from worker.snapshot import counted
from worker.tune_recipe import TuneRecipe

log = logging.getLogger(__name__)

#: Pictures read at once while reducing: 64 maps of lite0 are 16 MB in float32.
CHUNK = 64

#: Pictures whose maps fit the PCA; more change the basis by less than the seed does.
REDUCTION_SAMPLE = 500

#: Least deviation of a channel over positions that is made equal to the others', as a share of the
#: middle channel's.
LEAST_SPREAD = 0.25

#: Held-out pictures that show, after each epoch, how a head does as it learns.
WATCHED = 128

#: Pictures scored at once.
READ_AT_ONCE = 256

Maps = NDArray[np.float16]
ReadMaps = Callable[[Sequence[int], int], Maps]
ReadMeans = Callable[[Sequence[int], int], NDArray[np.float32]]


@dataclass(frozen=True)
class Examples:
    """What to learn from.

    Attributes:
        read: picture positions and a view -> ``(len, C, H, W)`` float16 maps.
        views: those there are, the plain one first (``inference.views``).
        pictures: how many pictures there are, P.
        picture: ``(R,)`` the picture that each label belongs to.
        target: ``(R,)`` the node it names, or ``(R, K)``, one of these, filled up with -1.
        weight: ``(R,)`` what it counts.
        truth: ``(P,)`` what a picture's annotators agree on, -1 where they agree on nothing.
        groups: for each picture the group it may not be parted from (a session, a store), or None.
        means: like ``read``, but ``(len, C)`` means of the maps; None to take them from the maps.
        drawn: ``(P,)`` which images chance chose to be asked about; None where that is not known.
        before: ``(P,)`` folds in the version before, -1 for none; None for the first version.
    """

    read: ReadMaps
    views: tuple[int, ...]
    pictures: int
    picture: NDArray[np.int64]
    target: NDArray[np.int64]
    weight: NDArray[np.float32]
    truth: NDArray[np.int64]
    groups: Sequence[str | None]
    means: ReadMeans | None = None
    drawn: NDArray[np.bool_] | None = None
    before: NDArray[np.int64] | None = None

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
        folds: ``(P,)`` the part that each image is in, whether or not that part was held out.
    """

    head: FrozenHead | ResidualHead
    fitted: Fitted
    seen: Evidence
    metrics: dict[str, Any]
    held_out: NDArray[np.float64]
    folds: NDArray[np.int64]


class TooFewLabelsError(Exception):
    """There is not enough to learn from yet; the message says what is missing.

    Attributes:
        passed_over: reasons for which labels or images were not learnt from, counted.
    """

    def __init__(self, message: str, passed_over: Mapping[str, int] | None = None) -> None:
        """Keep the reasons beside the message."""
        super().__init__(message)
        self.passed_over = dict(passed_over or {})


def train(  # noqa: PLR0913 - the examples, and each choice that a project may make
    tree: LabelTree,
    examples: Examples,
    recipe: Recipe,
    *,
    target: float,
    minimum: int = 1,
    maximum: int | None = None,
    strict: bool = False,
    former: DepthRule | None = None,
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
    dealt = deal(examples, views[PLAIN].means.numpy(), recipe)
    # With many images one part is enough to judge by, and the others are learnt from.
    folds = np.where(dealt == 0, 0, -1) if examples.pictures > recipe.cross_fit_up_to else dealt
    parts = [
        part for part in sorted(set(folds.tolist()) - {-1}) if _learnable(part, folds, examples)
    ]
    masks = [folds[examples.picture] != part for part in parts]
    masks.append(np.ones(len(examples.target), dtype=bool))
    lessons = [Lesson(tree, views, examples.rows(mask)) for mask in masks]
    if parts:  # one head is watched as it learns: the first that is fitted beside the last
        left_out = np.flatnonzero(folds == parts[-1])
        lessons[-2] = replace(lessons[-2], judge=watching(tree, examples, views[PLAIN], left_out))
    heads = learn_all(lessons, reduction, recipe, report, device)
    held_out = np.full((examples.pictures, len(tree)), np.nan)
    for part, checked in zip(parts, heads, strict=False):
        left = np.flatnonzero(folds == part)
        held_out[left] = log_probabilities(checked, tree, views[PLAIN][torch.from_numpy(left)])
    head = heads[-1]
    report("calibrating", 0, 1)
    seen, metrics = judge(tree, examples, held_out)
    fitted = fit_rule(
        seen, target=target, minimum=minimum, maximum=maximum, strict=strict, former=former
    )
    report("calibrating", 1, 1)
    return Trained(head.cpu(), fitted, seen, metrics, held_out, dealt)


def check_enough(
    pictures: int, named: Collection[int], passed_over: Mapping[str, int] | None = None
) -> None:
    """Refuse what nothing can be learnt from.

    Args:
        pictures: how many images are labelled.
        named: nodes that their labels name.
        passed_over: reasons for which labels or images were not learnt from, counted.

    Raises:
        TooFewLabelsError: with what is missing, and what was there and did not count.
    """
    if pictures < 4 or len(named) < 2:
        others = f"; passed over: {counted(passed_over)}" if passed_over else ""
        raise TooFewLabelsError(
            "expected at least 4 labelled images that name at least 2 different nodes, got "
            f"{pictures} images naming {len(named)}: label some more, then train again{others}",
            passed_over,
        )


def fit_reduction(examples: Examples, recipe: Recipe, report: Report) -> Reduction:
    """Standardise each channel, and a PCA over map positions where a network looks at those."""
    report("reducing", 0, examples.pictures)
    generator = np.random.default_rng(recipe.seed)
    sample = np.sort(generator.permutation(examples.pictures)[:REDUCTION_SAMPLE])
    if recipe.spatial:
        whole, mean, products = _moments(examples, sample)
        weight, bias = _principal(mean, products, recipe.reduced)
    else:
        whole = _read_means(examples, sample.tolist(), PLAIN)
        weight, bias = torch.zeros(0, whole.shape[1]), torch.zeros(0)
    centre, deviation = whole.mean(dim=0), whole.std(dim=0, correction=0)
    spread = deviation + 1e-3 * deviation.mean().clamp_min(1e-6)  # a dead channel stays at zero
    return Reduction(weight, bias, centre, spread)


def _moments(examples: Examples, sample: NDArray[np.int64]) -> tuple[Tensor, Tensor, Tensor]:
    """``(n, C)`` means of the maps, ``(C,)`` mean and ``(C, C)`` mean product of positions."""
    chunks = [sample[start : start + CHUNK].tolist() for start in range(0, len(sample), CHUNK)]

    def one(positions: list[int]) -> tuple[int, Tensor, Tensor, Tensor]:
        maps = _read(examples, positions, PLAIN)
        vectors = maps.movedim(1, -1).flatten(0, 2)  # (positions, C)
        products = (vectors.T @ vectors).double()
        return len(vectors), maps.mean(dim=(2, 3)), vectors.sum(0).double(), products

    counts, means, sums, products = zip(*shared_out(one, chunks), strict=True)
    count = sum(counts)
    return torch.cat(means), sum(sums) / count, sum(products) / count


def _principal(mean: Tensor, products: Tensor, kept: int) -> tuple[Tensor, Tensor]:
    """``(C,)`` mean and ``(C, C)`` mean product of positions -> PCA of the correlations.

    Returns:
        ``(c, C)`` weight and ``(c,)`` bias such that ``weight @ x + bias`` is the reduced vector.
    """
    covariance = products - mean[:, None] * mean[None, :]
    spread = covariance.diagonal().clamp_min(1e-8).sqrt()  # a dead channel stays at zero
    # One that hardly moves in a few pictures is not blown up to the others' size: its weights would
    # leave no digits to theirs, and what it does in other pictures would drown everything.
    moving = spread > 2e-4
    if moving.any():
        spread = spread.clamp_min(LEAST_SPREAD * spread[moving].median())
    correlation = covariance / spread[:, None] / spread[None, :]
    # In float64: in float32 few pictures, so a matrix of low rank, gave NaN once OpenVINO had run
    # in the process (it has small numbers flushed to zero).
    _, vectors = torch.linalg.eigh(correlation)
    basis = vectors[:, -min(kept, len(mean)) :].flip(1).T  # (c, C)
    # Rounded before the bias is taken, so that maps may be reduced in any arithmetic.
    numbers, step = in_bytes(basis / spread[None, :])
    weight = numbers * step
    return weight.float(), -(weight @ mean).float()


def _read(examples: Examples, positions: Sequence[int], view: int) -> Tensor:
    """``(len, C, H, W)`` float32 maps, all of them finite."""
    maps = torch.from_numpy(examples.read(positions, view)).float()
    _check_finite(maps.mean(dim=(2, 3)), positions)
    return maps


def _read_means(examples: Examples, positions: Sequence[int], view: int) -> Tensor:
    """``(len, C)`` float32 means of maps, all of them finite."""
    if examples.means is not None:
        means = torch.from_numpy(examples.means(positions, view))
    else:
        means = torch.from_numpy(examples.read(positions, view)).float().mean(dim=(2, 3))
    _check_finite(means, positions)
    return means


def _check_finite(means: Tensor, positions: Sequence[int]) -> None:
    """Of maps by their means: what is not finite makes its mean so."""
    finite = means.isfinite().all(1).tolist()
    if not all(finite):
        raise FloatingPointError(
            f"the features of picture {positions[finite.index(False)]} are not finite numbers: "
            "the backbone does not work here, `hrn doctor` says more"
        )


def reduce_all(examples: Examples, reduction: Reduction, report: Report) -> list[Features]:
    """Features of all P pictures in each view; the maps in bfloat16."""
    chunks = [
        range(start, min(start + CHUNK, examples.pictures))
        for start in range(0, examples.pictures, CHUNK)
    ]

    def one(chunk: range) -> list[Features]:
        # All views of some pictures, not all pictures of one: that is how they lie on disk.
        if not len(reduction.weight):
            means = [_read_means(examples, chunk, view) for view in examples.views]
            return [_only_means(reduction, some) for some in means]
        return [reduced(reduction, _read(examples, chunk, view)) for view in examples.views]

    views: list[Features] = []
    for chunk, parts in zip(chunks, shared_out(one, chunks), strict=True):
        views = views or [empty_like(part, examples.pictures) for part in parts]
        for whole, part in zip(views, parts, strict=True):
            whole.maps[chunk.start : chunk.stop] = part.maps
            whole.means[chunk.start : chunk.stop] = part.means
        report("reducing", chunk.stop, examples.pictures)
    return views


def reduced(reduction: Reduction, maps: Tensor) -> Features:
    """``(B, C, H, W)`` float32 maps -> their features, the maps in bfloat16.

    Where the processor multiplies in bfloat16, in that: it takes a third of the time.
    """
    if not len(reduction.weight) or not has_bf16(maps.device.type):
        return reduction.of(maps)
    weight, bias = reduction.weight.bfloat16(), reduction.bias.bfloat16()
    small = nn.functional.conv2d(maps.bfloat16(), weight[:, :, None, None], bias)
    return Features(small, _only_means(reduction, maps.mean(dim=(2, 3))).means)


def _only_means(reduction: Reduction, means: Tensor) -> Features:
    nothing = torch.zeros(len(means), 0, 1, 1, dtype=torch.bfloat16)
    return Features(nothing, (means - reduction.centre) / reduction.spread)


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


def judged(examples: Examples, held_out: NDArray[np.float64]) -> NDArray[np.int64]:
    """``(n,)`` positions of the pictures that were held out and whose annotators agree."""
    return np.flatnonzero(~np.isnan(held_out[:, 0]) & (examples.truth >= 0))


def judge(
    tree: LabelTree, examples: Examples, held_out: NDArray[np.float64]
) -> tuple[Evidence, dict[str, Any]]:
    """Evidence and figures from each picture that was held out and whose annotators agree.

    Args:
        tree: of the nodes.
        examples: with each picture's truth.
        held_out: ``(P, N)`` log-probabilities, NaN rows for pictures that were not held out.
    """
    pictures = judged(examples, held_out)
    targets, log_p = examples.truth[pictures], held_out[pictures]
    found = candidates(log_p, tree)
    seen = evidence(candidates(log_p, tree, Decisions.of(tree).levels), targets, tree)
    if examples.drawn is not None:
        seen = replace(seen, drawn=examples.drawn[pictures])
    deepest = np.isin(targets, tree.leaves)
    leaf_right = (found.leaf == targets)[deepest]
    metrics: dict[str, Any] = {
        "held_out": len(pictures),
        "by_level": accuracy_by_level(found.nodes, targets, tree),
        "leaf_checked": int(deepest.sum()),
        "leaf_accuracy": _mean(leaf_right),
        "leaf_ece": expected_calibration_error(found.confidence[deepest], leaf_right),
        "log_loss": _mean(-held_out[pictures, targets]),  # nats
    }
    return seen, metrics


def _mean(values: NDArray[Any]) -> float | None:
    return round(float(values.mean()), 4) if len(values) else None


def deal(
    examples: Examples, means: NDArray[np.float32], recipe: Recipe | TuneRecipe
) -> NDArray[np.int64]:
    """``(P,)`` the part that each image is in."""
    return assign_folds(
        means,
        examples.truth,
        examples.groups,
        folds=recipe.folds,
        seed=recipe.seed,
        before=examples.before,
    )


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
        judge: asked after each epoch for the share of held-out pictures that are right.
    """

    tree: LabelTree
    views: Sequence[Features]
    rows: Rows
    judge: Callable[[FrozenHead], float] | None = None


def learn_all(
    lessons: Sequence[Lesson],
    reduction: Reduction,
    recipe: Recipe,
    report: Report,
    device: str = "cpu",
) -> list[FrozenHead]:
    """One head a lesson, side by side; the last one's curve is told."""
    heads = [new_head(lesson.tree, reduction, recipe, device) for lesson in lessons]
    report("fitting", 0, 100)  # the first figures come after an epoch
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

    def told(done: int, total: int, **figures: float) -> None:
        if lesson.judge is not None:
            figures["accuracy"] = lesson.judge(head)
            head.train()
        tell(done, total, **figures)

    fit(head, head.objective, lesson.views, lesson.rows, recipe, told, device=device)


def watching(
    tree: LabelTree, examples: Examples, plain: Features, left: NDArray[np.int64]
) -> Callable[[FrozenHead], float] | None:
    """What tells how a head does on pictures left out of its lesson, a sample of them.

    Args:
        tree: of the nodes.
        examples: with each picture's truth.
        plain: features of all P pictures.
        left: positions of the pictures left out.
    """
    some = left[examples.truth[left] >= 0][:WATCHED]
    if not len(some):
        return None
    truth = examples.truth[some]
    level = np.array([tree.levels[node] for node in truth.tolist()], dtype=np.int64)
    seen = plain[torch.from_numpy(some)]

    def share_right(head: FrozenHead) -> float:
        nodes = candidates(log_probabilities(head, tree, seen), tree).nodes
        return float((nodes[np.arange(len(some)), level] == truth).mean())

    return share_right
