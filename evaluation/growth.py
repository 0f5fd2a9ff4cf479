"""What a grown head is worth: leaves come late, and the head that is there learns them.

Some leaves are withheld, a head learns the smaller tree, the tree grows, and three heads are
compared: the grown one as it is, the grown one after it has learnt what is new, and one trained
from scratch. P images, N nodes.
"""

import time
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray

from evaluation.errors import ExperimentError
from evaluation.features import Features
from evaluation.methods import fit_hrn, silent
from evaluation.protocols import without
from evaluation.results import Row
from hierarchy import LabelTree
from hierarchy.growth import Change, Graft, awaken
from hierarchy.heads import HRNHead, transfer_weights
from worker import trainer
from worker.fitting import Rows, fit
from worker.training_config import TrainingConfig

Ints = NDArray[np.int64]

#: How a grown head learns its new nodes: passes over the labels, AdamW's peak rate and decay.
EPOCHS, RATE, DECAY = 8, 1e-2, 0.1


def grow(features: Features, *, leaves: int, seed: int) -> list[Row]:
    """Withhold leaves, train, grow, learn what is new, and train anew.

    Until they come, images of the late leaves are labelled at the parent.

    Args:
        features: of the data set, its whole tree.
        leaves: how many come late, drawn by the seed.
        seed: of the draw and of all training.

    Returns:
        One row per head, with the share that is right of ``old`` leaves' images (all leaves of the
        head to choose from), ``old among old`` (only old leaves to choose from), ``new`` leaves'
        images and of ``all``.

    Raises:
        ExperimentError: fewer than one or all but one leaf are withheld.
    """
    tree = features.tree
    if not 0 < leaves <= len(tree.leaves) - 2:
        raise ExperimentError(
            f"leaves: expected 1 to {len(tree.leaves) - 2}, so that two stay, got {leaves}"
        )
    late = np.random.default_rng(seed).choice(tree.leaves, leaves, replace=False)
    small = without(tree, late.tolist())
    config = TrainingConfig.for_networks(features.networks, seed=seed)
    coarse = Change.between(tree, small).move(features.targets)
    before, seconds = _train(features, small, coarse, config)
    grown = _carried_over(before, small, features, config)
    started = time.thread_time()
    warm = _carried_over(before, small, features, config)
    awaken(warm, small)
    _learn_new(warm, Change.between(small, tree).added, features, config)
    warm_seconds = time.thread_time() - started
    scratch, scratch_seconds = _train(features, tree, features.targets, config)
    heads = [
        ("before", before, seconds),
        ("grown", grown, 0.0),
        ("grown, new rows learnt", warm, warm_seconds),
        ("trained anew", scratch, scratch_seconds),
    ]
    return [
        Row(
            name, f"{leaves} leaves late", seed, {**_figures(head, features, late), "seconds": took}
        )
        for name, head, took in heads
    ]


def _train(
    features: Features, tree: LabelTree, targets: Ints, config: TrainingConfig
) -> tuple[HRNHead, float]:
    """Train a head as a project's, from all images that have a target, and take the time."""
    labelled = np.flatnonzero(targets >= 0)
    vectors = torch.from_numpy(features.train[labelled])
    started = time.thread_time()
    head = fit_hrn(tree, vectors, _rows(targets[labelled]), config)
    return head, time.thread_time() - started


def _rows(targets: Ints) -> Rows:
    return Rows(torch.arange(len(targets)), torch.from_numpy(targets), torch.ones(len(targets)))


def _carried_over(
    before: HRNHead, small: LabelTree, features: Features, config: TrainingConfig
) -> HRNHead:
    """Build a head of the whole tree that knows what the small tree's head knows."""
    head = trainer.new_head(features.tree, torch.from_numpy(features.train), config)
    transfer_weights(before.state_dict(), small, head)
    return head.eval()


def _learn_new(
    head: HRNHead, added: tuple[int, ...], features: Features, config: TrainingConfig
) -> None:
    """Let the new nodes' rows learn, from old images and new."""
    graft = Graft(head, added, config.dropout)
    graft.dropout.seed(config.seed)
    vectors = Graft.features(head, torch.from_numpy(features.train))
    own = replace(config, epochs=EPOCHS, least_shown=0, rate=RATE, decay=DECAY)
    fit(graft, graft.objective, vectors, _rows(features.targets), own, silent)
    graft.write_to(head)
    head.eval()


def _figures(head: HRNHead, features: Features, late: Ints) -> dict[str, float]:
    """Judge by the best of the leaves of the whole tree that the head has."""
    tree = features.tree
    source = np.array(Change.between(head.tree, tree).source)
    leaves = np.array([leaf for leaf in tree.leaves if source[leaf] >= 0])
    is_old = ~np.isin(leaves, late)
    judged = features.judged["test"]
    log_p = head.log_probabilities(judged.vectors)[:, source[leaves]]
    right = leaves[log_p.argmax(1)] == judged.targets
    among = leaves[is_old][log_p[:, is_old].argmax(1)] == judged.targets
    of_old = ~np.isin(judged.targets, late)
    parts = {
        "old": right[of_old],
        "old among old": among[of_old],
        "new": right[~of_old],
        "all": right,
    }
    return {name: float(part.mean()) for name, part in parts.items() if len(part)}
