"""What the tree loss costs beside a flat cross-entropy: forward and backward, on this machine.

    python -m benchmarks.tree_loss [--json PATH] [--threads 2] [--repeats 30]

Both get the same (batch, N) float32 scores, leaf targets, and turns in one loop, so that whatever
else the machine does hits both; the figures are medians.
"""

import time
from collections.abc import Callable, Sequence
from itertools import product
from statistics import median

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from hierarchy import LabelTree, tree_loss

SIZES = (251, 10_000, 100_000)


def grow(nodes: int, *, shuffled: bool = False, seed: int = 0) -> LabelTree:
    """Grow a ragged tree of 10 to 15 levels: each node hangs under a random one of the first tenth.

    Ids go level by level, as ``from_paths`` gives them, or in a random order: the loss then has
    to bring the columns in order and back.
    """
    drawn = torch.Generator().manual_seed(seed)
    tops = max(1, nodes // 1000)
    parents = [-1] * tops
    for node in range(tops, nodes):
        limit = min(node, max(tops + 1, nodes // 10))
        parents.append(int(torch.randint(limit, (1,), generator=drawn)))
    names = [str(node) for node in range(nodes)]
    tree = LabelTree.from_parents(parents, names)
    order = sorted(range(nodes), key=tree.levels.__getitem__)
    if shuffled:
        order = torch.randperm(nodes, generator=drawn).tolist()
    place = {node: number for number, node in enumerate(order)}
    moved = [place.get(parents[node], -1) for node in order]
    return LabelTree.from_parents(moved, names)


def seconds(loss: Callable[[Tensor], Tensor], scores: Tensor) -> float:
    """Wall time of one forward and backward."""
    leaf = scores.detach().requires_grad_()
    began = time.perf_counter()
    loss(leaf).backward()
    return time.perf_counter() - began


def compare(tree: LabelTree, *, batch: int = 64, repeats: int = 30) -> dict[str, float]:
    """Median milliseconds of both losses on one tree, and how many times dearer ours is."""
    drawn = torch.Generator().manual_seed(1)
    scores = torch.randn(batch, len(tree), generator=drawn)
    leaves = torch.tensor(tree.leaves)
    targets = leaves[torch.randint(len(leaves), (batch,), generator=drawn)]
    losses: tuple[Callable[[Tensor], Tensor], ...] = (
        lambda x: cross_entropy(x, targets),
        lambda x: tree_loss(x, targets, tree),
    )
    for loss in losses:  # indices, threads and memory pools are made once
        for _ in range(3):
            seconds(loss, scores)
    taken = [[seconds(loss, scores) for loss in losses] for _ in range(repeats)]
    flat, ours = (1000 * median(column) for column in zip(*taken, strict=True))
    return {"nodes": len(tree), "flat_ms": flat, "tree_ms": ours, "ratio": ours / flat}


def main(argv: Sequence[str] | None = None) -> None:
    """Measure and print."""
    from benchmarks.common import arguments, report

    parser = arguments(__doc__, data=False)
    parser.add_argument("--batch", type=int, default=64, help="images (default: %(default)s)")
    parser.add_argument("--repeats", type=int, default=30, help="timings (default: %(default)s)")
    parser.add_argument("--threads", type=int, help="of torch (default: torch's own choice)")
    args = parser.parse_args(argv)
    if args.threads:
        torch.set_num_threads(args.threads)
    rows = []
    for nodes, ids in product(SIZES, ("levels", "shuffled")):
        tree = grow(nodes, shuffled=ids == "shuffled")
        figures = compare(tree, batch=args.batch, repeats=args.repeats)
        rows.append({"ids": ids, "levels": tree.depth, **figures})
    about = {"batch": args.batch, "repeats": args.repeats, "threads": torch.get_num_threads()}
    report({**about, "rows": rows}, args.json)


if __name__ == "__main__":
    main()
