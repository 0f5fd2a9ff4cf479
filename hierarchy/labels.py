"""Answers as arrays: rows of node ids padded with -1, and what a rejected pre-label says.

**What a rejection means.** A pre-label p that its annotator replaced tells the following, by where
the answer a lies:

* a is p, or below p: p was confirmed. Nothing is excluded.
* a lies elsewhere: p is wrong, but a says so already, as no answer runs through both. Excluding p
  changes no loss and no gradient.
* a lies above p: only here could an exclusion teach anything, and only here is it doubtful. The
  annotator may know that it is not p, or may merely be unsure below a, most of all when it looks
  like p. Read as "a, but not p", every unsure annotator would teach the network away from the
  truth; read as "a", nothing false is learnt.

So a replaced pre-label is not put into ``excluded``. What belongs there was asked for as such: a
control that says "not this", or a project whose instructions say that clearing a pre-label rejects
it. :func:`telling` drops the rejections that say nothing beside the answer.

R rows, K nodes in a row at most.
"""

from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from hierarchy.tree import LabelTree


def padded(rows: Iterable[Iterable[int]]) -> NDArray[np.int64]:
    """Node ids of each row, left-aligned and filled up with -1.

    Returns:
        ``(R, K)`` with K the longest row's length, at least 1.

    Example:
        >>> padded([[4], [2, 7], []]).tolist()
        [[4, -1], [2, 7], [-1, -1]]
    """
    lists = [list(row) for row in rows]
    width = max([1, *map(len, lists)])
    filled = np.full((len(lists), width), -1, dtype=np.int64)
    for at, row in enumerate(lists):
        filled[at, : len(row)] = row
    return filled


def telling(rejected: Iterable[int], named: Sequence[int], tree: LabelTree) -> tuple[int, ...]:
    """The rejected nodes that say something beside the answer, ascending.

    One that lies beside all named nodes is ruled out by them already. One that covers a named node
    contradicts the answer, which was given by the same person and counts. What is left lies below a
    named node; if none is named, all of them count.

    Args:
        rejected: nodes that the annotator said it is not.
        named: nodes of the answer, none if there is no answer but the rejection.
        tree: of the nodes.

    Raises:
        UnknownLabelError: if one is not a node's id.

    Example:
        >>> tree = LabelTree.from_paths([("Fruit", "Apple"), ("Fruit", "Pear"), ("Milk",)])
        >>> apple, milk = tree.index(("Fruit", "Apple")), tree.index(("Milk",))
        >>> telling([apple, milk], [tree.index(("Fruit",))], tree) == (apple,)
        True
    """
    kept = {
        node
        for node in rejected
        if not any(tree.covers(node, one) for one in named)
        and (not named or any(tree.covers(one, node) for one in named))
    }
    return tuple(sorted(kept))
