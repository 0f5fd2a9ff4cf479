"""Examples in, a trained head with its depth rule and its honest figures out.

Knows no queue, no HTTP and no Label Studio. Letters: P pictures, R labels (rows), N nodes, C and c
channels before and after the reduction, H x W the grid.
"""

import logging
import math
import os
import threading
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hierarchy import LabelTree, log_marginals, tree_loss
from hierarchy.calibration import Evidence, Fitted, evidence, fit_rule
from hierarchy.choice import candidates
from hierarchy.metrics import accuracy_by_level, expected_calibration_error
from hierarchy.network import FrozenHead, ResidualHead
from worker.folds import assign_folds
from worker.recipe import Recipe

log = logging.getLogger(__name__)

#: Pictures read at once while reducing: 64 maps of lite0 are 16 MB in float32.
CHUNK = 64

#: Pictures whose maps fit the PCA; more change the basis by less than the seed does.
REDUCTION_SAMPLE = 500

Maps = NDArray[np.float16]
ReadMaps = Callable[[Sequence[int], bool], Maps]


class Report(Protocol):
    """Told of progress; may raise to stop the run (a cancelled job)."""

    def __call__(self, stage: str, done: int, total: int, **figures: float) -> None:
        """``done`` of ``total`` in ``stage``, with figures such as ``loss`` in nats."""


@dataclass(frozen=True)
class Examples:
    """What to learn from.

    Attributes:
        read: picture positions and whether mirrored -> ``(len, C, H, W)`` float16 maps.
        pictures: how many pictures there are, P.
        picture: ``(R,)`` the picture that each label belongs to.
        target: ``(R,)`` the node it names.
        weight: ``(R,)`` what it counts.
        truth: ``(P,)`` what a picture's annotators agree on, -1 where they agree on nothing.
        groups: for each picture the group it may not be parted from (a session, a store), or None.
    """

    read: ReadMaps
    pictures: int
    picture: NDArray[np.int64]
    target: NDArray[np.int64]
    weight: NDArray[np.float32]
    truth: NDArray[np.int64]
    groups: Sequence[str | None]


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


@dataclass(frozen=True)
class Reduced:
    """All pictures' maps after the reduction, plain and mirrored, ``(P, c, H, W)`` bfloat16."""

    plain: Tensor
    mirrored: Tensor


def train(  # noqa: PLR0913 - the examples, and each choice that a project may make
    tree: LabelTree,
    examples: Examples,
    recipe: Recipe,
    *,
    target: float,
    minimum: int = 1,
    maximum: int | None = None,
    report: Report,
    device: str = "cpu",
) -> Trained:
    """Cross-fit for honest figures and the depth rule, then fit on everything.

    Raises:
        TooFewLabelsError: fewer than two different nodes named, or fewer than four pictures.
        FloatingPointError: feature maps or the loss are not finite.
    """
    check_enough(examples.pictures, set(examples.target.tolist()))
    torch.manual_seed(recipe.seed)
    weight, bias = fit_reduction(examples, recipe, report)
    reduced = reduce_all(examples, weight, bias, report)
    folds = _folds(examples, reduced, recipe)
    parts = [
        part for part in sorted(set(folds.tolist()) - {-1}) if _learnable(part, folds, examples)
    ]
    heads = _fit_all(tree, (weight, bias), reduced, examples, recipe, folds, parts, report, device)
    held_out = np.full((examples.pictures, len(tree)), np.nan)
    for part, checked in zip(parts, heads, strict=False):
        judged = np.flatnonzero(folds == part)
        held_out[judged] = log_probabilities(checked, tree, reduced.plain[torch.from_numpy(judged)])
    head = heads[-1]
    report("calibrating", 0, 1)
    seen, metrics = judge(tree, examples, held_out)
    fitted = fit_rule(seen, target=target, minimum=minimum, maximum=maximum)
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


def fit_reduction(examples: Examples, recipe: Recipe, report: Report) -> tuple[Tensor, Tensor]:
    """PCA over map positions after standardising each channel, as one linear map.

    Returns:
        ``(c, C)`` weight and ``(c,)`` bias such that ``weight @ x + bias`` is the reduced vector.
    """
    report("reducing", 0, examples.pictures)
    generator = np.random.default_rng(recipe.seed)
    sample = generator.permutation(examples.pictures)[:REDUCTION_SAMPLE]
    count, total, products = 0, None, None
    for start in range(0, len(sample), CHUNK):
        maps = _read(examples, sample[start : start + CHUNK].tolist(), mirrored=False)
        vectors = maps.movedim(1, -1).flatten(0, 2)  # (positions, C)
        count += len(vectors)
        total = vectors.sum(0).double() + (0 if total is None else total)
        products = (vectors.T @ vectors).double() + (0 if products is None else products)
    assert total is not None and products is not None  # noqa: S101, PT018 - check_enough ran
    mean = total / count
    covariance = products / count - mean[:, None] * mean[None, :]
    spread = covariance.diagonal().clamp_min(1e-8).sqrt()  # a dead channel stays at zero
    correlation = covariance / spread[:, None] / spread[None, :]
    _, vectors = torch.linalg.eigh(correlation.float())
    basis = vectors[:, -min(recipe.reduced, len(mean)) :].flip(1).T.double()  # (c, C)
    weight = basis / spread[None, :]
    return weight.float(), -(weight @ mean).float()


def _read(examples: Examples, positions: Sequence[int], *, mirrored: bool) -> Tensor:
    """``(len, C, H, W)`` float32 maps, all of them finite."""
    maps = torch.from_numpy(examples.read(positions, mirrored)).float()
    finite = maps.isfinite().flatten(1).all(1).tolist()
    if not all(finite):
        raise FloatingPointError(
            f"the features of picture {positions[finite.index(False)]} are not finite numbers: "
            "the backbone does not work here, `hrn doctor` says more"
        )
    return maps


def reduce_all(examples: Examples, weight: Tensor, bias: Tensor, report: Report) -> Reduced:
    """Every picture's map through the reduction, in chunks."""
    halves: dict[bool, list[Tensor]] = {False: [], True: []}
    for start in range(0, examples.pictures, CHUNK):
        positions = range(start, min(start + CHUNK, examples.pictures))
        for mirrored, parts in halves.items():
            maps = _read(examples, positions, mirrored=mirrored)
            flat = torch.einsum("dc,bchw->bdhw", weight, maps) + bias[:, None, None]
            parts.append(flat.bfloat16())
        report("reducing", positions.stop, examples.pictures)
    return Reduced(torch.cat(halves[False]), torch.cat(halves[True]))


def log_probabilities(head: FrozenHead, tree: LabelTree, reduced: Tensor) -> NDArray[np.float64]:
    """``(n, c, H, W)`` reduced maps -> ``(n, N)`` log P(node)."""
    head.eval()
    device = head.reduce.weight.device
    with torch.inference_mode():
        parts = [
            log_marginals(head.from_reduced(chunk.to(device).float()).double(), tree).cpu()
            for chunk in reduced.split(256)
        ]
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


def _folds(examples: Examples, reduced: Reduced, recipe: Recipe) -> NDArray[np.int64]:
    pooled = torch.cat(
        [part.float().mean(dim=(2, 3)) for part in reduced.plain.split(1024)]
    ).numpy()
    folds = assign_folds(
        pooled, examples.truth, examples.groups, folds=recipe.folds, seed=recipe.seed
    )
    if examples.pictures > recipe.cross_fit_up_to:
        folds = np.where(folds == 0, 0, -1)
    return folds


def _new_head(
    tree: LabelTree, weight: Tensor, bias: Tensor, recipe: Recipe, device: str
) -> FrozenHead:
    head = FrozenHead(
        tree,
        weight.shape[1],
        reduced=weight.shape[0],
        width=recipe.width,
        projection=recipe.projection,
        dropout=recipe.dropout,
    )
    head.set_reduction(weight, bias)
    return head.to(device)


def _learnable(part: int, folds: NDArray[np.int64], examples: Examples) -> bool:
    """Is there anything left to learn from when this part is held out?"""
    if (folds[examples.picture] != part).sum() >= 2:
        return True
    log.warning("nothing can be held out: the pictures are one group, or nearly so")
    return False


def _fit_all(  # noqa: PLR0913 - what all the runs share
    tree: LabelTree,
    reduction: tuple[Tensor, Tensor],
    reduced: Reduced,
    examples: Examples,
    recipe: Recipe,
    folds: NDArray[np.int64],
    parts: Sequence[int],
    report: Report,
    device: str,
) -> list[FrozenHead]:
    """One head without each part, and last the one that learns from everything.

    The runs are independent, so each gets a core: one run on all cores gains little, as its steps
    are small, and loses eightfold when something else wants a core.
    """
    masks = [folds[examples.picture] != part for part in parts]
    masks.append(np.ones(len(examples.target), dtype=bool))
    heads = []
    for _ in masks:  # built in turn: fresh weights come from the generator that threads share
        torch.manual_seed(recipe.seed)
        heads.append(_new_head(tree, *reduction, recipe, device))
    tally = Tally(report, "fitting", len(masks))
    side_by_side = (
        1 if device != "cpu" else max(1, (os.cpu_count() or 1) // torch.get_num_threads())
    )
    with ThreadPoolExecutor(side_by_side, thread_name_prefix="fit") as pool:
        runs = [
            pool.submit(_fit, heads[n], tree, reduced, examples, masks[n], recipe, tally.voice(n))
            for n in reversed(range(len(masks)))  # the one whose curve is shown begins
        ]
    wrong = [error for run in runs if (error := run.exception()) is not None]
    for error in wrong:
        if not isinstance(error, StoppedError):
            raise error
    return heads


class StoppedError(Exception):
    """Another run of the same training failed or was stopped."""


class Tally:
    """Several runs side by side, told as one; the figures are those of the last run.

    When telling raises, which is how a job is cancelled, or a run fails, the others stop.
    """

    def __init__(self, report: Report, stage: str, runs: int) -> None:
        self._report = report
        self._stage = stage
        self._share = [0.0] * runs
        self._lock = threading.Lock()
        self.stop = threading.Event()

    def voice(self, number: int) -> Callable[..., None]:
        """What run ``number`` calls with what it has done, of how much, and its figures."""

        def tell(done: int, total: int, **figures: float) -> None:
            last = number == len(self._share) - 1
            with self._lock:
                if self.stop.is_set():
                    raise StoppedError
                self._share[number] = done / total
                percent = math.floor(100 * sum(self._share) / len(self._share) + 1e-9)
                try:
                    self._report(self._stage, percent, 100, **(figures if last else {}))
                except BaseException:
                    self.stop.set()
                    raise

        return tell


def _fit(  # noqa: PLR0913 - one loop's inputs
    head: FrozenHead,
    tree: LabelTree,
    reduced: Reduced,
    examples: Examples,
    learn: NDArray[np.bool_],
    recipe: Recipe,
    tell: Callable[..., None],
) -> None:
    """AdamW on the tree loss, one of the two mirrored copies drawn a picture and step."""
    device = head.reduce.weight.device
    rows = torch.from_numpy(np.flatnonzero(learn))
    picture, target = torch.from_numpy(examples.picture), torch.from_numpy(examples.target)
    weight = torch.from_numpy(examples.weight)
    small = len(rows) <= recipe.cross_fit_up_to
    batch = min(recipe.batch // 2 if small else recipe.batch, len(rows))
    steps_an_epoch = math.ceil(len(rows) / batch)
    epochs = max(recipe.epochs, math.ceil(recipe.least_steps / steps_an_epoch))
    optimiser, schedule = _optimiser(head, recipe, epochs * steps_an_epoch)
    draw = torch.Generator().manual_seed(recipe.seed)
    head.dropout.seed(recipe.seed)
    head.train()
    for epoch in range(epochs):
        sum_loss = 0.0
        for chosen in rows[torch.randperm(len(rows), generator=draw)].split(batch):
            if len(chosen) < 2:  # batch norm needs two; the row comes again next epoch
                continue
            at = picture[chosen]
            turned = torch.rand(len(at), generator=draw) < 0.5
            maps = torch.where(turned[:, None, None, None], reduced.mirrored[at], reduced.plain[at])
            with torch.autocast(device.type, dtype=torch.bfloat16):
                scores = head.from_reduced(maps.to(device))
            loss = tree_loss(
                scores.float(), target[chosen].to(device), tree, weights=weight[chosen].to(device)
            )
            if not torch.isfinite(loss):
                raise FloatingPointError(f"the loss became {loss.item()} in epoch {epoch + 1}")
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
            optimiser.step()
            schedule.step()
            sum_loss += loss.item() * len(chosen)
        tell(epoch + 1, epochs, loss=sum_loss / len(rows))
    head.eval()


def _optimiser(
    head: FrozenHead, recipe: Recipe, steps: int
) -> tuple[torch.optim.AdamW, torch.optim.lr_scheduler.CosineAnnealingLR]:
    trained = [value for value in head.parameters() if value.requires_grad]
    groups = [
        {"params": [v for v in trained if v.ndim > 1], "weight_decay": recipe.decay},
        {"params": [v for v in trained if v.ndim <= 1], "weight_decay": 0.0},
    ]
    optimiser = torch.optim.AdamW(groups, lr=recipe.rate)
    return optimiser, torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, max(1, steps))
