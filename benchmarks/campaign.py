"""How steady pre-labels are over a labelling campaign, and whether what is promised of them holds.

    python -m benchmarks.campaign --data ../shared/data/grocery
    python -m benchmarks.campaign --data ../shared/data/grocery --afresh --drawn no

Images are asked about in the product's order, answered from their labels, and learnt from with the
product's training every few answers. Each version is then judged on images that nobody has been
asked about: they are what annotators get pre-labels on. It also passes the gate as in the product,
so that one sees how many honest versions are refused. ``--afresh`` lets each version start with
folds and a depth rule of its own; ``--drawn no`` takes all answers for a fair sample; ``--order
random`` asks in random order. The coarsest of three levels is left out: almost everything is right
there. The vectors are reduced to their principal components and the head is narrower and trained
for fewer steps than the product's, so that a campaign takes a minute; ``--full`` takes the
product's own.
"""

import argparse
import json
import os
from collections.abc import Iterable
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray

from evaluation.data import load
from evaluation.features import Extraction, Vectors
from evaluation.simulation import answers
from hierarchy import LabelTree
from hierarchy.acquisition import ask
from hierarchy.calibration import Evidence, Fitted, evidence, fit_rule
from hierarchy.decisions import Decisions
from hierarchy.depth_selection import DepthRule, candidates, choose_depth, corrected
from inference.augmentation import PLAIN
from worker import trainer
from worker.gate import LEAST, RECENT, HeldOut, Verdict, compare, compare_held_out, compare_shown
from worker.settings import Settings
from worker.training_config import TrainingConfig

#: Images of a project; those of other seeds are others.
POOL: Final = 1500

#: Principal components that a quick campaign keeps of a vector.
COMPONENTS: Final = 256

#: The probability with which an annotator knows a label; else its parent is answered.
KNOW: Final = 0.85


@dataclass(frozen=True)
class Version:
    """One training of a campaign.

    Attributes:
        fitted: the depth rule and its grounds.
        held_out: its answers on images that it was not trained on.
        log_p: ``(P, N)`` its answers on all images of the project.
        depth: ``(P,)`` of the pre-label of each image, 0 for none.
        right: ``(P,)`` whether that pre-label is right.
        unasked: ``(P,)`` images that nobody has been asked about yet.
        refused: what the gate says against it, nothing if it may go live.
    """

    fitted: Fitted
    held_out: HeldOut
    log_p: NDArray[np.float64]
    depth: NDArray[np.int64]
    right: NDArray[np.bool_]
    unasked: NDArray[np.bool_]
    refused: str = ""

    @property
    def given(self) -> float:
        """Share of the images not asked about that get a pre-label."""
        return float((self.depth[self.unasked] > 0).mean())

    @property
    def accuracy(self) -> float | None:
        """Accuracy of those pre-labels."""
        shown = self.unasked & (self.depth > 0)
        return float(self.right[shown].mean()) if shown.any() else None

    @property
    def stated(self) -> float | None:
        """The accuracy of shown labels when held out."""
        checked = self.fitted.checked
        return 1 - self.fitted.wrong / checked if checked else None


def read(
    folder: Path, backbone: str
) -> tuple[Vectors, NDArray[np.int64], LabelTree, tuple[int, ...]]:
    """Read ``(P, C)`` vectors of all images, their nodes, the tree, and each network's channels.

    The tree is without its coarsest level.
    """
    dataset = load(folder, None)
    networks: list[tuple[str, Path | None]] = [(name, None) for name in backbone.split("+")]
    extraction = Extraction(networks, Settings.from_environ(os.environ).cache)
    splits = (dataset.train, dataset.val, dataset.test)
    vectors = [extraction.vectors(split.files)[:, PLAIN] for split in splits]
    nodes = np.concatenate([split.targets for split in splits])
    paths = [dataset.tree.paths[node][1:] for node in nodes.tolist()]
    tree = LabelTree.from_paths(sorted(set(paths)))
    targets = np.array([tree.index(path) for path in paths])
    return np.concatenate(vectors), targets, tree, extraction.channels


def reduced(vectors: Vectors) -> Vectors:
    """Reduce ``(P, C)`` vectors to ``COMPONENTS`` principal components."""
    values = vectors.astype(np.float32)
    values = (values - values.mean(0)) / (values.std(0) + 1e-3)
    _, basis = np.linalg.eigh(values.T @ values)
    found: Vectors = (values @ basis[:, -COMPONENTS:]).astype(np.float16)
    return found


def config_of(arguments: argparse.Namespace) -> TrainingConfig:
    """Return the product's training config, or a quicker one."""
    if arguments.full:
        return replace(TrainingConfig.for_networks(arguments.channels), augmentations=(PLAIN,))
    config = replace(TrainingConfig(), augmentations=(PLAIN,))
    return replace(config, hidden=64, epochs=1, least_shown=6_400)


def replay(
    vectors: Vectors,
    nodes: NDArray[np.int64],
    tree: LabelTree,
    arguments: argparse.Namespace,
    seed: int,
) -> list[Version]:
    """Run one campaign."""
    rng = np.random.default_rng(seed)
    chosen = rng.permutation(len(nodes))[:POOL]
    vectors, nodes = vectors[chosen], nodes[chosen]
    features = vectors.astype(np.float32)
    labels = answers(nodes, tree, KNOW, seed)
    asked = np.zeros(0, dtype=np.int64)
    drawn = np.zeros(len(nodes), dtype=bool)
    folds = np.full(len(nodes), -1, dtype=np.int64)
    former: DepthRule | None = None
    found: list[Version] = []
    for number in range(arguments.versions):
        count = arguments.step if number else arguments.start
        left = np.setdiff1d(np.arange(len(nodes)), asked)
        order = ask(
            features[left],
            found[-1].log_p[left] if found else None,
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
        examples = trainer.Examples(
            vectors[asked][:, None],
            np.arange(len(asked)),
            labels[asked],
            np.ones(len(asked), dtype=np.float32),
            labels[asked],
            [None] * len(asked),
            drawn=drawn[asked] if arguments.drawn == "yes" else None,
            before=None if arguments.afresh else folds[asked],
        )
        config = config_of(arguments)
        trained = trainer.train(
            tree, examples, config, target=arguments.target, former=former, report=_silent
        )
        folds[asked] = trained.folds
        log_p = trained.head.log_probabilities(vectors)
        depth, right = shown(trained.fitted.rule, tree, log_p, nodes)
        unasked = ~np.isin(np.arange(len(nodes)), asked)
        held_out = held_out_of(trained, tree, asked, labels)
        version = Version(trained.fitted, held_out, log_p, depth, right, unasked)
        verdict = gate(version, found, tree, labels, arguments.target, former)
        found.append(replace(version, refused="" if verdict.passed else verdict.why))
        former = None if arguments.afresh else trained.fitted.rule
    return found


def shown(
    rule: DepthRule, tree: LabelTree, log_p: NDArray[np.float64], nodes: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """``(P,)`` the depth of each image's pre-label, and whether it is right."""
    found = candidates(log_p, tree, Decisions.of(tree).levels)
    depth = choose_depth(corrected(found.probability, rule.platt), rule)
    at = found.nodes[np.arange(len(depth)), np.maximum(depth - 1, 0)]
    right = [tree.covers(a, t) for a, t in zip(at.tolist(), nodes.tolist(), strict=True)]
    return depth, np.array(right)


def held_out_of(
    trained: trainer.Trained,
    tree: LabelTree,
    asked: NDArray[np.int64],
    labels: NDArray[np.int64],
) -> HeldOut:
    """Return a version's answers on images that it held out, as the gate takes them."""
    rows = np.flatnonzero(~np.isnan(trained.held_out[:, 0]))
    truth = labels[asked[rows]]
    right = right_as_named(trained.held_out[rows], truth, tree)
    return HeldOut(asked[rows], truth, right, trained.seen)


def right_as_named(
    log_p: NDArray[np.float64], truth: NDArray[np.int64], tree: LabelTree
) -> NDArray[np.bool_]:
    """``(n,)`` whether the best node of the named node's level is that node."""
    level = np.array(tree.levels)[truth]
    best: NDArray[np.bool_] = candidates(log_p, tree).nodes[np.arange(len(truth)), level] == truth
    return best


def gate(  # noqa: PLR0913 - both versions and what they are compared on
    new: Version,
    before: list[Version],
    tree: LabelTree,
    labels: NDArray[np.int64],
    target: float,
    former: DepthRule | None,
) -> Verdict:
    """Ask the gate's three questions, as `worker.training` does."""
    if not before:
        return Verdict(passed=True, why="the first version")
    live = before[-1]
    fresh = np.intersect1d(new.held_out.marks, np.flatnonzero(live.unasked))
    log_p, truth = live.log_p[fresh], labels[fresh]
    answered = evidence(candidates(log_p, tree, Decisions.of(tree).levels), truth, tree)
    drawn = new.held_out.drawn[np.isin(new.held_out.marks, fresh)]
    since = HeldOut(
        fresh, truth, right_as_named(log_p, truth, tree), replace(answered, drawn=drawn)
    )
    verdicts = [
        compare_held_out(new.held_out, one.held_out, "an earlier version")
        for one in before[-RECENT:]
    ]
    if len(since) >= LEAST:
        ours, theirs = new.held_out.shared_with(since)
        verdicts.insert(0, compare(ours.right, theirs.right, "the live version"))
    both = new.held_out.shared_with(joined(live.held_out, since))
    fitted = [fit_rule(one.seen, target=target, former=former) for one in both]
    verdicts.append(compare_shown(fitted[0], fitted[1], len(both[0]), "the live version"))
    return next((one for one in verdicts if not one.passed), verdicts[-1])


def joined(one: HeldOut, other: HeldOut) -> HeldOut:
    """Join two sets of answers; who was drawn at random is known of both or of neither."""

    def with_drawn(held: HeldOut) -> HeldOut:
        seen: Evidence = replace(held.seen, drawn=held.drawn)
        return replace(held, seen=seen)

    return with_drawn(one).joined(with_drawn(other))


def summary(campaigns: list[list[Version]], target: float) -> dict[str, Any]:
    """Average over campaigns and versions."""
    pairs = [pair for one in campaigns for pair in pairwise(one)]
    every = [version for one in campaigns for version in one]
    judged = [version for version in every if version.accuracy is not None]
    refused = [b.refused for _, b in pairs]
    lost = [((a.depth > 0) & a.right & (b.depth == 0))[b.unasked].mean() for a, b in pairs]
    return {
        "share pre-labelled": _mean(version.given for version in every),
        "mean change of that share between versions": _mean(
            abs(a.given - b.given) for a, b in pairs
        ),
        "right pre-label lost between versions": _mean(lost),
        "versions that show nothing": 1 - len(judged) / len(every),
        "certified": _mean(version.fitted.standing == "certified" for version in every),
        "stated accuracy": _mean(version.stated for version in judged if version.stated),
        "true accuracy": _mean(version.accuracy for version in judged),
        "target kept": _mean((version.accuracy or 0) >= target for version in judged),
        "refused by the gate": _mean(bool(why) for why in refused),
        "refused for showing less": _mean("pre-label" in why for why in refused),
    }


def _silent(stage: str, done: int, total: int, **figures: float) -> None:
    """Take progress and say nothing."""


def _mean(values: Iterable[Any]) -> float:
    return round(float(np.mean(list(values))), 3)


def main() -> None:
    """Replay and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    add = parser.add_argument
    add("--data", type=Path, required=True, help="folder of images, as evaluation reads them")
    add("--backbone", default=Settings.backbone, help='networks joined by "+"')
    add("--seeds", type=int, default=3, help="campaigns")
    add("--versions", type=int, default=20, help="trainings per campaign")
    add("--start", type=int, default=150, help="answers before the first")
    add("--step", type=int, default=10, help="answers between two")
    add("--target", type=float, default=0.85, help="accuracy asked for")
    add("--order", choices=["product", "random"], default="product", help="of what is asked about")
    add("--drawn", choices=["yes", "no"], default="yes", help="are draws at random known")
    add("--afresh", action="store_true", help="no version goes on from the one before")
    add("--full", action="store_true", help="the product's own width and steps")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    vectors, nodes, tree, arguments.channels = read(arguments.data, arguments.backbone)
    vectors = vectors if arguments.full else reduced(vectors)
    campaigns = []
    for seed in range(arguments.seeds):
        campaigns.append(replay(vectors, nodes, tree, arguments, seed))
        shares = (
            f"{100 * one.given:.0f}{one.fitted.standing[0]}{'!' if one.refused else ''}"
            for one in campaigns[-1]
        )
        print(f"seed {seed}:", *shares, flush=True)
    print(json.dumps(summary(campaigns, arguments.target), indent=1))


if __name__ == "__main__":
    main()
