"""Several classifiers' probabilities of one tree made into one answer."""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from hierarchy.errors import ShapeError
from hierarchy.marginals import log_marginals
from hierarchy.tree import LabelTree

Floats = NDArray[np.float64]

#: Least share of a node's probability that "this node and nothing below" is taken to have: what is
#: lost to rounding there must not become a weight of zero, which no other opinion could outvote.
LEAST = 1e-7


def opinion_pool(log_probabilities: Sequence[Floats], tree: LabelTree) -> Floats:
    """The logarithmic opinion pool over the tree's N + 1 answers, all opinions equal.

    Each answer's probability is the geometric mean of its probabilities, normalised: what averaging
    the raw scores of networks does, for classifiers whose scores are not at hand.

    Args:
        log_probabilities: of each classifier ``(B, N)`` log P(node), as `log_marginals` gives.
        tree: of all of them.

    Returns:
        ``(B, N)`` log P(node).

    Raises:
        ShapeError: none is given, or they differ in shape.

    Source:
        Genest and Zidek, "Combining Probability Distributions", Statistical Science 1986, eq. 3.4.
    """
    shapes = {one.shape for one in log_probabilities}
    if len(shapes) != 1:
        raise ShapeError(f"expected log-probabilities of one shape, got {sorted(shapes)}")
    scores = np.mean([_scores(one, tree) for one in log_probabilities], axis=0)
    return np.asarray(log_marginals(torch.from_numpy(scores), tree).numpy(), dtype=np.float64)


def _scores(log_p: Floats, tree: LabelTree) -> Floats:
    """Raw scores that have these probabilities: an answer's log-weight less that of its parent.

    A leaf's answer has all of the leaf's probability; "nothing" what the tops leave.
    """
    probability = np.exp(log_p.astype(np.float64))
    parents = np.array(tree.parents)
    below = np.zeros((len(log_p), len(tree) + 1))  # the last column is "above the tops"
    np.add.at(below.T, np.where(parents < 0, len(tree), parents), probability.T)
    whole = np.concatenate([probability, np.ones((len(log_p), 1))], axis=1)
    inner = np.zeros(len(tree) + 1, dtype=bool)
    inner[parents] = True  # -1 is the last
    least = np.where(inner, LEAST, 1.0) * whole
    own = np.log(np.maximum(np.maximum(whole - below, least), np.finfo(np.float64).tiny))
    return np.asarray(own[:, :-1] - own[:, parents], dtype=np.float64)
