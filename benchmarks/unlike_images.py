"""Images unlike the labelled ones: how many are found, and what is shown of them.

    python -m benchmarks.unlike_images --data DIR [--without NAME] [--other DIR]

A version learns the training images as in the product. Per set of images (held-out training images,
val, test, what ``--without`` left out, what ``--other`` holds) it prints the share that is unlike,
whether that raises the alarm, and how right shown labels are, with unlike images held back and
without. Every label on an image of no known class is wrong. Minutes on two cores.
"""

import argparse
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from evaluation.data import load
from evaluation.features import Extraction, extract
from hierarchy import LabelTree
from hierarchy.calibration import LEAST_LIKE, Evidence, evidence, fit_rule
from hierarchy.decisions import Decisions
from hierarchy.depth_selection import DepthRule, Floats, Ints, candidates, choose_depth, corrected
from hierarchy.familiarity import USUAL, Familiarity, more_than_usual
from hierarchy.metrics import expected_calibration_error
from worker.settings import Settings
from worker.trainer import Examples, judged, train
from worker.training_config import TrainingConfig

#: Target accuracies of the table.
TARGETS = (0.9, 0.95)


@dataclass(frozen=True)
class Images:
    """Some images as a version sees them.

    Attributes:
        log_p: ``(n, N)`` log P(node).
        targets: ``(n,)`` true nodes, -1 for an image of no known class.
        like: ``(n,)`` likeness.
    """

    log_p: Floats
    targets: Ints
    like: Floats

    def seen(self, tree: LabelTree) -> Evidence:
        """Return what is known of each decision level's best node."""
        found = candidates(self.log_p, tree, Decisions.of(tree).levels)
        told = evidence(found, np.maximum(self.targets, 0), tree)
        right = np.where(self.targets[:, None] < 0, 0, told.right)
        return replace(told, right=right, like=self.like)


def study(
    tree: LabelTree,
    vectors: NDArray[np.float16],
    targets: Ints,
    others: Mapping[str, tuple[NDArray[np.float16], Ints]],
    config: TrainingConfig,
) -> None:
    """Train on ``(P, V, C)`` vectors and print the tables.

    Args:
        tree: of the nodes.
        vectors: of the training images.
        targets: ``(P,)`` their nodes.
        others: by name, ``(n, C)`` vectors and true nodes, -1 for none that is known.
        config: of the training.
    """
    examples = Examples(
        vectors,
        np.arange(len(targets)),
        targets,
        np.ones(len(targets), np.float32),
        targets,
        [None] * len(targets),
    )
    done = train(tree, examples, config, target=TARGETS[0], report=lambda *_, **__: None)
    known, like = done.familiarity, done.seen.like
    if known is None or like is None:
        sys.exit("nothing could be held out: give more images")
    rows = judged(examples, done.held_out)
    sets = {"held out": Images(done.held_out[rows], targets[rows], like)}
    head = done.head.eval()
    for name, (found, truth) in others.items():
        sets[name] = Images(head.log_probabilities(found), truth, known.likeness(found))
    for name, images in sets.items():
        print(f"{name:10} {describe(images, tree, known)}")
    for target in TARGETS:
        for careful in (False, True):
            rule = fitted(sets["held out"].seen(tree), target, careful=careful)
            how = "careful" if careful else "as before"
            for name, images in sets.items():
                print(f"target {target:.0%}, {how:9} {name:10} {shown(images.seen(tree), rule)}")


def fitted(seen: Evidence, target: float, *, careful: bool) -> DepthRule:
    """Fit the depth rule, with unlike images held back or not."""
    rule = fit_rule(seen if careful else replace(seen, like=None), target=target).rule
    return rule if careful else replace(rule, least_like=0.0)


def describe(images: Images, tree: LabelTree, known: Familiarity) -> str:
    """Return the share of unlike images, and how right and how calibrated leaves are."""
    unlike = images.like < USUAL
    very = (images.like < LEAST_LIKE).mean()
    alarm = more_than_usual(int(unlike.sum()), len(unlike), len(known.distances))
    how_many = f"{len(unlike)} images, {unlike.mean():.1%} unlike, {very:.1%} very"
    words = [f"{how_many}, alarm {'yes' if alarm else 'no'}"]
    leaf = np.isin(images.targets, tree.leaves)
    found = candidates(images.log_p, tree)
    right = found.leaf == images.targets
    for name, which in (("all", leaf), ("unlike", leaf & unlike), ("others", leaf & ~unlike)):
        if which.any():
            error = expected_calibration_error(found.confidence[which], right[which])
            words.append(f"{name}: leaf {right[which].mean():.1%}, ECE {error:.1%}")
    return "; ".join(words)


def shown(seen: Evidence, rule: DepthRule) -> str:
    """Return how right shown labels are, the share shown and the mean depth."""
    depth = choose_depth(corrected(seen.probability, rule.platt), rule, seen.at, seen.like)
    verdict = seen.right[np.arange(len(seen)), np.maximum(depth - 1, 0)][depth > 0]
    verdict = verdict[verdict >= 0]
    right = f"{(verdict == 1).mean():.1%} right" if len(verdict) else "nothing"
    return f"{right}, {(depth > 0).mean():.1%} shown, depth {depth.mean():.2f}"


def main() -> None:
    """Read the images, train, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    add = parser.add_argument
    add("--data", type=Path, required=True, help="folder of labelled images")
    add("--without", help="a root node that is not learnt, whose test images are unlike")
    add("--other", type=Path, help="folder of images of other things, labelled in any way")
    given = parser.parse_args()
    settings = Settings.from_environ(os.environ)
    extraction = Extraction(settings.networks, settings.cache)

    def tell(stage: str, done: int, total: int) -> None:
        print(f"\r{stage}: {done} of {total} ", end="", file=sys.stderr, flush=True)

    found = extract(load(given.data, None), extraction, tell=tell)
    tree, vectors, targets = found.tree, found.train, found.targets
    others = {name: (one.vectors, one.targets) for name, one in found.judged.items()}
    if given.without:
        names = {path[0] for path in tree.paths}
        if given.without not in names:
            parser.error(f"--without {given.without}: expected one of {', '.join(sorted(names))}")
        tree = LabelTree.from_paths([p for p in tree.paths if p[0] != given.without])
        move = np.array([tree.index(p) if p[0] != given.without else -1 for p in found.tree.paths])
        kept = move[targets] >= 0
        vectors, targets = vectors[kept], move[targets[kept]]
        seen, truth = others.pop("test")[0], move[found.judged["test"].targets]
        others = {
            "test": (seen[truth >= 0], truth[truth >= 0]),
            given.without: (seen[truth < 0], truth[truth < 0]),
        }
    if given.other:
        split = load(given.other, None).train
        strange = extraction.vectors(split.files)[:, 0]
        others["other"] = (strange, np.full(len(strange), -1))
    print(file=sys.stderr)
    study(
        tree,
        vectors,
        targets,
        others,
        TrainingConfig.for_networks(extraction.channels),
    )


if __name__ == "__main__":
    main()
