"""What one image's answer costs in a large tree: from its feature vector to node, depth and reason.

    python -m benchmarks.answers [--json PATH] [--nodes 100000] [--levels 8] [--repeats 30]

The parts are timed one by one in the same turn: the head of the default training config, the
probabilities of all nodes, the choice of depth.
"""

import time
from collections.abc import Sequence
from statistics import median

import numpy as np
import torch

from benchmarks.common import arguments, report, sure_rule
from hierarchy import LabelTree, log_marginals
from hierarchy.heads import HRNHead
from inference.predictor import Predictor
from worker.training_config import TrainingConfig

#: Of EfficientNet-lite0's and lite2's vectors.
CHANNELS = (1280, 1280)


def grow(nodes: int, levels: int) -> LabelTree:
    """Grow a tree in which every node but those of the last level has about as many children."""
    fan = 2
    while sum(fan**level for level in range(1, levels + 1)) < nodes:
        fan += 1
    parents: list[int] = []
    above = [-1]
    for level in range(levels):
        left = nodes - len(parents)
        here = left if level == levels - 1 else min(left, fan ** (level + 1))
        begin = len(parents)
        parents += [above[place % len(above)] for place in range(here)]
        above = list(range(begin, begin + here)) or above
    return LabelTree.from_parents(parents, [str(node) for node in range(nodes)])


def measure(tree: LabelTree, *, repeats: int) -> dict[str, float]:
    """Return the median milliseconds of each part and of the whole, for one image."""
    config = TrainingConfig.for_networks(CHANNELS)
    head = HRNHead(tree, sum(CHANNELS), dropout=config.dropout, **config.sizes(tree)).eval()
    predictor = Predictor(
        version="v1",
        tree=tree,
        head=head,
        rule=sure_rule(tree),
        backbone=("none", ""),
        backbone_weights={},
    )
    drawn = np.random.default_rng(0)
    vectors = drawn.random((1, sum(CHANNELS)), dtype=np.float32)
    times: dict[str, list[float]] = {"head": [], "probabilities": [], "choice": [], "whole": []}
    for _ in range(repeats + 1):
        began = time.perf_counter()
        with torch.inference_mode():
            scores = head(torch.from_numpy(vectors))
            scored = time.perf_counter()
            log_p = log_marginals(scores.double(), tree).numpy()
        known = time.perf_counter()
        predictor.told(log_p)
        told = time.perf_counter()
        predictor.answer(vectors)
        ended = time.perf_counter()
        spent = (scored - began, known - scored, told - known, ended - told)
        for name, seconds in zip(times, spent, strict=True):
            times[name].append(1000 * seconds)
    return {name: round(median(values[1:]), 2) for name, values in times.items()}


def main(words: Sequence[str] | None = None) -> None:
    """Measure and print."""
    parser = arguments(__doc__, data=False)
    parser.add_argument("--nodes", type=int, default=100_000)
    parser.add_argument("--levels", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=30)
    asked = parser.parse_args(words)
    began = time.perf_counter()
    tree = grow(asked.nodes, asked.levels)
    built = time.perf_counter() - began
    found = measure(tree, repeats=asked.repeats)
    told = {"nodes": len(tree), "levels": tree.depth, "built_s": built, "ms": found}
    report({**told, "threads": torch.get_num_threads()}, asked.json)


if __name__ == "__main__":
    main()
