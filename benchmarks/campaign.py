"""How steady pre-labels are over a labelling campaign, and whether what is promised of them holds.

    python -m benchmarks.campaign --data ../shared/data/grocery
    python -m benchmarks.campaign --data ../shared/data/grocery --afresh

Photos are asked about in the product's order, answered from their labels, and learnt from with the
product's training every few answers. Each version is then judged on photos that nobody has been
asked about: they are what annotators get pre-labels on. ``--afresh`` lets each version start with
folds and a depth rule of its own; ``--drawn no`` takes all answers for a fair sample. The top one
of three levels is left out: almost everything is right there.
"""

import argparse
import json
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray

from evaluation.album import Album
from evaluation.data import load
from evaluation.protocols import Degradation
from evaluation.simulation import answers
from hierarchy import LabelTree
from hierarchy.acquisition import ask
from hierarchy.calibration import Fitted
from hierarchy.choice import DepthRule, candidates, choose_depth, corrected
from hierarchy.decisions import Decisions
from hierarchy.network import Features
from inference.backbone import load_backbone
from inference.augmentation import PLAIN
from worker import trainer
from worker.recipe import Recipe
from worker.settings import Settings

#: Photos of a project; those of other seeds are others.
POOL: Final = 1500

#: The probability with which an annotator knows a label; else its parent is answered.
KNOW: Final = 0.85


@dataclass(frozen=True)
class Version:
    """One training of a campaign.

    Attributes:
        fitted: the depth rule and its grounds.
        drawn: images drawn at random among those learnt from.
        depth: ``(P,)`` of the pre-label of each image of the project, 0 for none.
        right: ``(P,)`` whether that pre-label is right.
        unasked: ``(P,)`` images that nobody has been asked about yet.
    """

    fitted: Fitted
    drawn: int
    depth: NDArray[np.int64]
    right: NDArray[np.bool_]
    unasked: NDArray[np.bool_]

    @property
    def given(self) -> float:
        """Share of the images not asked about that get a pre-label."""
        return float((self.depth[self.unasked] > 0).mean())

    @property
    def accuracy(self) -> float | None:
        """Of those pre-labels."""
        shown = self.unasked & (self.depth > 0)
        return float(self.right[shown].mean()) if shown.any() else None

    @property
    def stated(self) -> float | None:
        """The accuracy of shown labels when held out."""
        checked = self.fitted.checked
        return 1 - self.fitted.wrong / checked if checked else None


def photos(folder: Path) -> tuple[NDArray[np.float32], NDArray[np.int64], LabelTree]:
    """``(P, C)`` features of all photos, their nodes, and the tree without its top level."""
    dataset = load(folder, None)
    album = Album(load_backbone(Settings().backbone), Settings().home / "evaluation")
    splits = (dataset.train, dataset.val, dataset.test)
    rows = [
        maps[0].astype(np.float32).mean(axis=(2, 3))
        for split in splits
        for _, maps in album.maps(split.files, views=(PLAIN,), degradation=Degradation())
    ]
    nodes = np.concatenate([split.targets for split in splits])
    paths = [dataset.tree.paths[node][1:] for node in nodes.tolist()]
    tree = LabelTree.from_paths(sorted(set(paths)))
    return np.concatenate(rows), np.array([tree.index(path) for path in paths]), tree


def replay(
    features: NDArray[np.float32],
    nodes: NDArray[np.int64],
    tree: LabelTree,
    arguments: argparse.Namespace,
    seed: int,
) -> list[Version]:
    """One campaign."""
    rng = np.random.default_rng(seed)
    chosen = rng.permutation(len(nodes))[:POOL]
    features, nodes = features[chosen], nodes[chosen]
    labels = answers(nodes, tree, KNOW, seed)
    recipe = replace(Recipe.fast(), views=(PLAIN,), hidden=128, least_steps=arguments.steps)
    asked = np.zeros(0, dtype=np.int64)
    drawn = np.zeros(len(nodes), dtype=bool)
    folds = np.full(len(nodes), -1, dtype=np.int64)
    former: DepthRule | None = None
    log_p: NDArray[np.float64] | None = None
    found: list[Version] = []
    for number in range(arguments.versions):
        count = arguments.step if number else arguments.start
        left = np.setdiff1d(np.arange(len(nodes)), asked)
        order = ask(
            features[left],
            None if log_p is None else log_p[left],
            tree,
            taken=features[asked],
            count=100 if number else count,
            labels=len(asked),
            seed=1000 * seed + number,
        )
        new = left[order.order[:count]]
        drawn[new] = [reason == "random" for reason in order.reasons[:count]]
        if arguments.order == "random":
            new = rng.choice(left, count, replace=False)
            drawn[new] = True
        asked = np.sort(np.concatenate([asked, new]))
        examples = _examples(features[asked], labels[asked])
        if arguments.drawn == "yes":
            examples = replace(examples, drawn=drawn[asked])
        if not arguments.afresh:
            examples = replace(examples, before=folds[asked])
        trained = trainer.train(
            tree, examples, recipe, target=arguments.target, former=former, report=_silent
        )
        folds[asked] = trained.folds
        former = None if arguments.afresh else trained.fitted.rule
        log_p = _said(trained, tree, features)
        depth, right = _shown(trained, tree, log_p, nodes)
        unasked = ~np.isin(np.arange(len(nodes)), asked)
        found.append(Version(trained.fitted, int(drawn.sum()), depth, right, unasked))
    return found


def _examples(features: NDArray[np.float32], truth: NDArray[np.int64]) -> trainer.Examples:
    count = len(truth)
    return trainer.Examples(
        read=lambda some, _: features[list(some)][:, :, None, None].astype(np.float16),
        views=(PLAIN,),
        pictures=count,
        picture=np.arange(count),
        target=truth,
        weight=np.ones(count, dtype=np.float32),
        truth=truth,
        groups=[None] * count,
        means=lambda some, _: features[list(some)],
    )


def _said(
    trained: trainer.Trained, tree: LabelTree, features: NDArray[np.float32]
) -> NDArray[np.float64]:
    head = trained.head
    means = (torch.from_numpy(features) - head.centre) / head.spread
    nothing = torch.zeros(len(means), 0, 1, 1, dtype=torch.bfloat16)
    return trainer.log_probabilities(head, tree, Features(nothing, means))


def _shown(
    trained: trainer.Trained, tree: LabelTree, log_p: NDArray[np.float64], nodes: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """``(P,)`` the depth of each image's pre-label, and whether it is right."""
    found = candidates(log_p, tree, Decisions.of(tree).levels)
    depth = choose_depth(
        corrected(found.probability, trained.fitted.rule.platt), trained.fitted.rule
    )
    at = found.nodes[np.arange(len(depth)), np.maximum(depth - 1, 0)]
    right = [tree.covers(a, t) for a, t in zip(at.tolist(), nodes.tolist(), strict=True)]
    return depth, np.array(right)


def _silent(stage: str, done: int, total: int, **figures: float) -> None:
    """Nobody listens."""


def summary(campaigns: list[list[Version]], target: float) -> dict[str, Any]:
    """Means over campaigns and versions."""
    pairs = [pair for one in campaigns for pair in pairwise(one)]
    every = [version for one in campaigns for version in one]
    shown = [version for version in every if version.accuracy is not None]
    lost = [((a.depth > 0) & a.right & (b.depth == 0))[b.unasked].mean() for a, b in pairs]
    return {
        "share pre-labelled": _mean(version.given for version in every),
        "change between versions": _mean(abs(a.given - b.given) for a, b in pairs),
        "right pre-label, then none": _mean(lost),
        "versions that show nothing": 1 - len(shown) / len(every),
        "certified": _mean(version.fitted.standing == "certified" for version in every),
        "stated accuracy": _mean(version.stated for version in shown),
        "true accuracy": _mean(version.accuracy for version in shown),
        "target kept": _mean(version.accuracy >= target for version in shown),
    }


def _mean(values: Any) -> float:  # noqa: ANN401 - numbers and truths
    return round(float(np.mean(list(values))), 3)


def main() -> None:
    """Replay and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    add = parser.add_argument
    add("--data", type=Path, required=True, help="folder of photos, as evaluation reads them")
    add("--seeds", type=int, default=2, help="campaigns")
    add("--versions", type=int, default=20, help="trainings a campaign")
    add("--start", type=int, default=150, help="answers before the first")
    add("--step", type=int, default=10, help="answers between two")
    add("--steps", type=int, default=200, help="least optimiser steps of a training")
    add("--target", type=float, default=0.85, help="accuracy asked for")
    add("--order", choices=["product", "random"], default="product", help="of what is asked about")
    add("--drawn", choices=["yes", "no"], default="yes", help="are draws at random known")
    add("--afresh", action="store_true", help="no version goes on from the one before")
    arguments = parser.parse_args()
    features, nodes, tree = photos(arguments.data)
    campaigns = []
    for seed in range(arguments.seeds):
        campaigns.append(replay(features, nodes, tree, arguments, seed))
        shares = (f"{100 * one.given:.0f}{one.fitted.standing[0]}" for one in campaigns[-1])
        print(f"seed {seed}:", *shares, flush=True)
    print(json.dumps(summary(campaigns, arguments.target), indent=1))


if __name__ == "__main__":
    main()
