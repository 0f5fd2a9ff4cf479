"""What settings of the head are worth, on images that were not used for tests.

    python -m benchmarks.head_study --data ../shared/data/grocery --vary hidden=192 dropout=0.65
    python -m benchmarks.head_study --data ../shared/data/grocery --per-leaf 4 --vary dropout=0.3

Each seed holds out another quarter of the training images, by clusters of look-alikes as a training
does, and trains the product's head on the rest: once as it is, once for each setting that is named
(a field of `TrainingConfig` and its value), one at a time. It is judged on what was held out and on
the validation images together; the test split is not read. Figures are means over seeds, and their
standard error by images alone: settings are judged on the same images, so a difference is known
somewhat better than each figure. docs/decisions/0023 says what came of it.
"""

import argparse
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from evaluation.data import load
from evaluation.features import Extraction, Features, Judged
from evaluation.methods import fit_method
from evaluation.protocols import Protocol
from hierarchy import LabelTree
from hierarchy.decisions import choices
from hierarchy.metrics import expected_calibration_error
from inference.augmentation import LEARNT_FROM, PLAIN
from worker.folds import assign_folds
from worker.training_config import TrainingConfig

Ints = NDArray[np.int64]

#: The networks of the default.
NETWORKS = ("tf_efficientnet_lite0", "tf_efficientnet_lite2")


def study(
    features: Features,
    protocol: Protocol,
    variants: Mapping[str, Mapping[str, Any]],
    seeds: Sequence[int],
) -> Iterator[dict[str, Any]]:
    """Train each variant with each seed, and yield its figures.

    Args:
        features: the training images, and ``val`` as the one judged set.
        protocol: which of the images that are not held out are labelled, and how.
        variants: by name, what is changed in the config.
        seeds: of the part held out, of the labels drawn and of training.

    Yields:
        A row per variant: its name, ``images`` judged over all seeds, ``leaf`` and ``siblings``
        accuracy and ``ece`` in percent, ``nll`` in nats, ``seconds`` of one thread per training.
    """
    plain = features.train[:, PLAIN].astype(np.float32)
    nobody: list[str | None] = [None] * len(plain)
    for name, change in variants.items():
        judged, seconds = [], []
        for seed in seeds:
            folds = assign_folds(plain, features.targets, nobody, folds=4, seed=0)
            stays, out = (np.flatnonzero(one) for one in (folds != seed % 4, folds == seed % 4))
            images, targets = protocol.labels(features.targets[stays], features.tree, seed)
            config = TrainingConfig.for_networks(features.networks, seed=seed)
            held_out = Judged(features.train[out, PLAIN], features.targets[out])
            known = replace(features, judged={**features.judged, "held out": held_out})
            vectors = torch.from_numpy(features.train[stays[images]])
            learnt = fit_method("hrn", known, (vectors, targets), replace(config, **change))
            seconds.append(learnt.seconds)
            judged += [
                (learnt.log_probability[at], one.targets) for at, one in known.judged.items()
            ]
        log_p, truth = (np.concatenate(some) for some in zip(*judged, strict=True))
        yield {
            "variant": name,
            "images": len(truth),
            **figures(log_p, truth, features.tree),
            "seconds": round(float(np.mean(seconds)), 1),
        }


def figures(log_p: NDArray[np.float64], truth: Ints, tree: LabelTree) -> dict[str, float | None]:
    """Judge ``(n, N)`` log-probabilities by the ``(n,)`` leaves."""
    leaves = np.array(tree.leaves)
    answer = leaves[log_p[:, leaves].argmax(axis=1)]
    right = answer == truth
    siblings = choices(tree)[truth]
    every = np.arange(len(truth))
    error = expected_calibration_error(np.exp(log_p[every, answer]), right)
    return {
        "leaf": round(100 * float(right.mean()), 1),
        "error of leaf": round(
            100 * float(np.sqrt(right.mean() * (1 - right.mean()) / len(right))), 1
        ),
        "siblings": round(100 * float(right[siblings].mean()), 1) if siblings.any() else None,
        "ece": None if error is None else round(100 * error, 1),
        "nll": round(float(-log_p[every, truth].mean()), 3),
    }


def variants_of(changes: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Read ``field=value`` arguments, and put the product's own settings first.

    Raises:
        SystemExit: one names no field, or its value is not JSON.
    """
    found: dict[str, dict[str, Any]] = {"default": {}}
    known = {field.name for field in fields(TrainingConfig)} - {"seed", "augmentations"}
    for change in changes:
        name, _, value = change.partition("=")
        if name not in known:
            raise SystemExit(f"no setting {name!r}: expected one of {', '.join(sorted(known))}")
        try:
            found[change] = {name: json.loads(value)}
        except ValueError as error:
            raise SystemExit(f"{change}: expected a value such as 0.5 or true") from error
    return found


def main() -> None:
    """Run it from the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--data", type=Path, required=True, help="folder of the data set")
    parser.add_argument("--cache", type=Path, default=Path("var/cache"), help="feature cache")
    parser.add_argument("--vary", nargs="*", default=[], metavar="FIELD=VALUE")
    parser.add_argument("--relabel", type=float, default=0.5, help="share of coarse labels")
    parser.add_argument("--per-leaf", type=int, help="labelled images of each leaf")
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args()
    variants = variants_of(options.vary)
    torch.set_num_threads(1)
    dataset = load(options.data)
    extraction = Extraction([(name, None) for name in NETWORKS], options.cache)
    features = Features(
        dataset.tree,
        extraction.vectors(dataset.train.files, LEARNT_FROM),
        None,
        dataset.train.targets,
        {"val": Judged(extraction.vectors(dataset.val.files)[:, 0], dataset.val.targets)},
        extraction.channels,
    )
    protocol = Protocol(options.relabel, per_leaf=options.per_leaf)
    for row in study(features, protocol, variants, range(options.seeds)):
        print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
