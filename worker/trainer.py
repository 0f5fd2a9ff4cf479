"""Examples in, a trained head with its depth rule and its honest figures out.

Knows no queue, no HTTP and no Label Studio. Letters: P images, R labels (rows), V augmentations,
N nodes, C channels.
"""

import logging
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Required, TypedDict, Unpack

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hierarchy import LabelTree
from hierarchy.calibration import Evidence, Fitted, evidence, fit_rule
from hierarchy.decisions import Decisions
from hierarchy.depth_selection import DepthRule, candidates
from hierarchy.familiarity import Familiarity, fit_familiarity
from hierarchy.heads import HRNHead
from hierarchy.metrics import accuracy_by_level, expected_calibration_error
from inference.feature_extractor import FeatureExtractor
from inference.manifest import KIND
from worker.fitting import Report, Rows, fit, fit_side_by_side
from worker.folds import assign_folds
from worker.snapshot import counted
from worker.training_config import TrainingConfig
from worker.tune_recipe import TuneRecipe

log = logging.getLogger(__name__)

#: Held-out images that show, after each epoch, how a head does as it learns.
WATCHED = 128


@dataclass(frozen=True)
class Examples:
    """Labelled images' feature vectors, their labels, and how they may be held out.

    Attributes:
        vectors: ``(P, V, C)`` float16 of all images, the plain augmentation first.
        image: ``(R,)`` the image that each label belongs to.
        target: ``(R,)`` the node it names, or ``(R, K)``, one of these, filled up with -1.
        weight: ``(R,)`` what it counts.
        truth: ``(P,)`` what an image's annotators agree on, -1 where they agree on nothing.
        groups: for each image the group it may not be parted from (a session, a store), or None.
        drawn: ``(P,)`` which images chance chose to be asked about; None where that is not known.
        before: ``(P,)`` folds in the version before, -1 for none; None for the first version.
    """

    vectors: NDArray[np.float16]
    image: NDArray[np.int64]
    target: NDArray[np.int64]
    weight: NDArray[np.float32]
    truth: NDArray[np.int64]
    groups: Sequence[str | None]
    drawn: NDArray[np.bool_] | None = None
    before: NDArray[np.int64] | None = None

    @property
    def images(self) -> int:
        """P."""
        return len(self.vectors)

    @property
    def plain(self) -> NDArray[np.float16]:
        """``(P, C)`` vectors of the images as they are."""
        return self.vectors[:, 0]

    @property
    def named(self) -> set[int]:
        """All nodes that some label names."""
        return set(np.unique(self.target).tolist()) - {-1}

    def rows(self, learn: NDArray[np.bool_]) -> Rows:
        """Return the labels that ``(R,)`` ``learn`` keeps, for the training loop."""
        return Rows(
            torch.from_numpy(self.image[learn]),
            torch.from_numpy(self.target[learn]),
            torch.from_numpy(self.weight[learn]),
        )


class RuleSettings(TypedDict, total=False):
    """A project's choices for its depth rule, as `hierarchy.calibration.fit_rule` takes them."""

    target: Required[float]
    minimum: int
    maximum: int | None
    strict: bool
    former: DepthRule | None


@dataclass(frozen=True)
class Judged:
    """Answers on held-out images whose annotators agree, each by a head that had not seen it.

    Attributes:
        images: ``(n,)`` positions of the images.
        truth: ``(n,)`` the node that the annotators named.
        nodes: ``(n, L)`` the best node of each level of the tree.
        right: ``(n,)`` whether the best node of the truth's level is the truth.
        seen: the evidence for the depth rule.
        metrics: figures for people and the manifest.
    """

    images: NDArray[np.int64]
    truth: NDArray[np.int64]
    nodes: NDArray[np.int64]
    right: NDArray[np.bool_]
    seen: Evidence
    metrics: dict[str, Any]


@dataclass(frozen=True)
class Trained:
    """A head, when it answers, and how good it is.

    Attributes:
        head: trained on all examples, in eval mode.
        fitted: the depth rule with its grounds.
        judged: answers on held-out images, which the rule was fitted on.
        held_out: ``(P, N)`` their log-probabilities; NaN rows for images not held out.
        folds: ``(P,)`` the part that each image is in, whether or not that part was held out.
        familiarity: what the labelled images look like; None where none could be held out.
    """

    head: HRNHead
    fitted: Fitted
    judged: Judged
    held_out: NDArray[np.float64]
    folds: NDArray[np.int64]
    familiarity: Familiarity | None = None

    @property
    def seen(self) -> Evidence:
        """The evidence that the depth rule was fitted on."""
        return self.judged.seen

    @property
    def metrics(self) -> dict[str, Any]:
        """Figures from held-out images."""
        return self.judged.metrics


@dataclass(frozen=True)
class Candidate:
    """A trained network as it will be published.

    Attributes:
        trained: head, rule and figures.
        network: the manifest's description of the head.
        backbone: name and fingerprint.
        config: its settings.
        backbone_weights: of a fine-tuned backbone, else empty.
    """

    trained: Trained
    network: dict[str, Any]
    backbone: dict[str, str]
    config: dict[str, Any]
    backbone_weights: Mapping[str, Tensor] = field(default_factory=dict)


class TooFewLabelsError(Exception):
    """There is not enough to learn from yet; the message says what is missing.

    Attributes:
        passed_over: reasons for which labels or images were not learnt from, counted.
    """

    def __init__(self, message: str, passed_over: Mapping[str, int] | None = None) -> None:
        """Keep the reasons beside the message."""
        super().__init__(message)
        self.passed_over = dict(passed_over or {})


def fit_head(  # noqa: PLR0913 - examples, network, settings
    tree: LabelTree,
    examples: Examples,
    extractor: FeatureExtractor,
    config: TrainingConfig,
    rule: RuleSettings,
    report: Report,
) -> Candidate:
    """Train a head on the extractor's features; on the CPU, where they are and it takes seconds."""
    return Candidate(
        train(tree, examples, config, report=report, **rule),
        {"kind": KIND, "channels": examples.vectors.shape[2], **config.sizes(tree)},
        {"name": extractor.name, "fingerprint": extractor.fingerprint},
        config.to_json(),
    )


def train(
    tree: LabelTree,
    examples: Examples,
    config: TrainingConfig,
    *,
    report: Report,
    device: str = "cpu",
    **rule: Unpack[RuleSettings],
) -> Trained:
    """Cross-fit for honest figures and the depth rule, then fit on everything.

    Raises:
        TooFewLabelsError: fewer than two different nodes named, or fewer than four images.
        FloatingPointError: feature vectors or the loss are not finite.
    """
    check_enough(examples.images, examples.named)
    check_finite(examples.vectors)
    report("fitting", 0, 100)
    dealt = deal(examples, config)
    # With many images one part is enough to judge by, and the others are learnt from.
    folds = np.where(dealt == 0, 0, -1) if examples.images > config.cross_fit_up_to else dealt
    parts = [
        part for part in sorted(set(folds.tolist()) - {-1}) if _learnable(part, folds, examples)
    ]
    masks = [folds[examples.image] != part for part in parts]
    masks.append(np.ones(len(examples.target), dtype=bool))
    vectors = torch.from_numpy(examples.vectors)
    sets = [TrainingSet(tree, vectors, examples.rows(mask)) for mask in masks]
    if parts:  # one head is watched as it learns: the first that is fitted beside the last
        left_out = np.flatnonzero(folds == parts[-1])
        sets[-2] = replace(sets[-2], judge=watching(tree, examples, left_out))
    heads = learn_all(sets, config, report, device)
    held_out = np.full((examples.images, len(tree)), np.nan)
    for part, checked in zip(parts, heads, strict=False):
        left = folds == part
        held_out[left] = checked.log_probabilities(examples.plain[left])
    head = heads[-1]
    report("calibrating", 0, 1)
    found = judge(tree, examples, held_out)
    familiarity, likeness = fit_familiarity(examples.plain, folds, seed=config.seed)
    found = replace(found, seen=replace(found.seen, like=likeness[found.images]))
    fitted = fit_rule(found.seen, **rule)
    report("calibrating", 1, 1)
    known = familiarity if len(familiarity.distances) else None
    return Trained(head.cpu(), fitted, found, held_out, dealt, known)


def check_enough(
    images: int, named: Collection[int], passed_over: Mapping[str, int] | None = None
) -> None:
    """Refuse what nothing can be learnt from.

    Args:
        images: how many images are labelled.
        named: nodes that their labels name.
        passed_over: reasons for which labels or images were not learnt from, counted.

    Raises:
        TooFewLabelsError: with what is missing, and what was there and did not count.
    """
    if images < 4 or len(named) < 2:
        others = f"; passed over: {counted(passed_over)}" if passed_over else ""
        raise TooFewLabelsError(
            "expected at least 4 labelled images that name at least 2 different nodes, got "
            f"{images} images naming {len(named)}: label some more, then train again{others}",
            passed_over,
        )


def check_finite(vectors: NDArray[np.float16]) -> None:
    """Refuse ``(P, V, C)`` vectors that hold anything but finite numbers.

    Raises:
        FloatingPointError: with the position of the first such image.
    """
    finite = [bool(np.isfinite(some).all()) for some in vectors]
    if not all(finite):
        raise FloatingPointError(
            f"the features of image {finite.index(False)} are not finite numbers: the backbone "
            "does not work here, `hrn doctor` says more"
        )


def judged(examples: Examples, held_out: NDArray[np.float64]) -> NDArray[np.int64]:
    """Return ``(n,)`` positions of the images that were held out and whose annotators agree."""
    return np.flatnonzero(~np.isnan(held_out[:, 0]) & (examples.truth >= 0))


def judge(tree: LabelTree, examples: Examples, held_out: NDArray[np.float64]) -> Judged:
    """Return evidence and figures from each image that was held out and whose annotators agree.

    Args:
        tree: of the nodes.
        examples: with each image's truth.
        held_out: ``(P, N)`` log-probabilities, NaN rows for images that were not held out.
    """
    images = judged(examples, held_out)
    truth, log_p = examples.truth[images], held_out[images]
    found = candidates(log_p, tree)
    seen = evidence(candidates(log_p, tree, Decisions.of(tree).levels), truth, tree)
    if examples.drawn is not None:
        seen = replace(seen, drawn=examples.drawn[images])
    deepest = np.isin(truth, tree.leaves)
    leaf_right = (found.leaf == truth)[deepest]
    metrics: dict[str, Any] = {
        "held_out": len(images),
        "by_level": accuracy_by_level(found.nodes, truth, tree),
        "leaf_checked": int(deepest.sum()),
        "leaf_accuracy": _mean(leaf_right),
        "leaf_ece": expected_calibration_error(found.confidence[deepest], leaf_right),
        "log_loss": _mean(-held_out[images, truth]),  # nats
    }
    right = right_at_level(found.nodes, truth, tree)
    return Judged(images, truth, found.nodes, right, seen, metrics)


def right_at_level(
    nodes: NDArray[np.int64], truth: NDArray[np.int64], tree: LabelTree
) -> NDArray[np.bool_]:
    """Return ``(n,)`` whether the best node of the truth's level, of ``(n, L)``, is the truth."""
    levels = np.array([tree.levels[node] for node in truth.tolist()], dtype=np.int64)
    right: NDArray[np.bool_] = nodes[np.arange(len(truth)), levels] == truth
    return right


def _mean(values: NDArray[Any]) -> float | None:
    return round(float(values.mean()), 4) if len(values) else None


def deal(examples: Examples, config: TrainingConfig | TuneRecipe) -> NDArray[np.int64]:
    """Return the part, ``(P,)``, that each image is in."""
    return assign_folds(
        examples.plain.astype(np.float32),
        examples.truth,
        examples.groups,
        folds=config.folds,
        seed=config.seed,
        before=examples.before,
    )


def _learnable(part: int, folds: NDArray[np.int64], examples: Examples) -> bool:
    """Tell whether anything is left to learn from when this part is held out."""
    if (folds[examples.image] != part).sum() >= 2:
        return True
    log.warning("nothing can be held out: the images are one group, or nearly so")
    return False


@dataclass(frozen=True)
class TrainingSet:
    """Vectors of all images, and the labels that one head learns from.

    Attributes:
        tree: of the nodes.
        vectors: ``(P, V, C)`` float16, the plain augmentation first.
        rows: the labels.
        judge: asked after each epoch for the share of held-out images that are right.
    """

    tree: LabelTree
    vectors: torch.Tensor
    rows: Rows
    judge: Callable[[HRNHead], float] | None = None


def learn_all(
    sets: Sequence[TrainingSet], config: TrainingConfig, report: Report, device: str = "cpu"
) -> list[HRNHead]:
    """Train one head per training set, side by side, and report the last one's curve."""
    heads = [new_head(one.tree, one.vectors, config, device) for one in sets]
    fits = [partial(learn, head, one, config) for head, one in zip(heads, sets, strict=True)]
    fit_side_by_side(fits, report, "fitting", device=device)
    return heads


def new_head(
    tree: LabelTree, vectors: torch.Tensor, config: TrainingConfig, device: str = "cpu"
) -> HRNHead:
    """Build a head with fresh weights, standardised to ``(P, V, C)`` vectors' plain ones."""
    head = HRNHead(
        tree,
        vectors.shape[2],
        dropout=config.dropout,
        delta=config.delta,
        seed=config.seed,
        **config.sizes(tree),
    )
    plain = vectors[:, 0].float()
    head.set_standardisation(plain.mean(dim=0), plain.std(dim=0, correction=0))
    return head.to(device)


def learn(
    head: HRNHead, learnt: TrainingSet, config: TrainingConfig, tell: Callable[..., None]
) -> None:
    """Fit the head in place."""
    head.seed(config.seed)

    def report_epoch(done: int, total: int, **figures: float) -> None:
        if learnt.judge is not None:
            figures["accuracy"] = learnt.judge(head)
            head.train()
        tell(done, total, **figures)

    device = head.mean.device.type
    fit(head, head.objective, learnt.vectors, learnt.rows, config, report_epoch, device=device)


def watching(
    tree: LabelTree, examples: Examples, left: NDArray[np.int64]
) -> Callable[[HRNHead], float] | None:
    """Return what tells how a head does on a sample of images left out of its training set.

    Args:
        tree: of the nodes.
        examples: with each image's truth.
        left: positions of the images left out.
    """
    some = left[examples.truth[left] >= 0][:WATCHED]
    if not len(some):
        return None
    truth, seen = examples.truth[some], examples.plain[some]

    def share_right(head: HRNHead) -> float:
        nodes = candidates(head.eval().log_probabilities(seen), tree).nodes
        return float(right_at_level(nodes, truth, tree).mean())

    return share_right
