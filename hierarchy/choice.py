"""How deep to answer: probabilities of all nodes and a rule -> one node a picture, or none.

The price rule: of the most probable node of each level, answer the one that maximises
``depth - price * ((1 - P) - (1 - target))``, nothing when that is negative for all. It maximises
the mean depth for a given accuracy of what is shown when P is calibrated; ``price`` is the one
number that calibration chooses. Letters: B pictures, N nodes, L levels.
"""

from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from hierarchy.tree import LabelTree

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

#: Probabilities are kept this far from 0 and 1 before their logit is taken.
EDGE = 1e-9

#: A node less probable than this is never shown, even where the average could bear it: with few
#: errors to spare elsewhere, a low price would answer a leaf of level 1 with some node of level 2.
LEAST_PROBABILITY = 0.25


@dataclass(frozen=True)
class DepthRule:
    """When to stop: what ``calibration.fit_rule`` found, or a project's own setting.

    Attributes:
        target: the accuracy that shown labels should have, in (0, 1).
        price: levels of depth that one unit of excess risk costs; None shows nothing at all.
        platt: slope and offset for each level's logit, correcting its probabilities.
        minimum: shallowest depth that is shown (1 = top level).
        maximum: deepest depth that is shown; None for no limit.
    """

    target: float
    price: float | None
    platt: tuple[tuple[float, float], ...]
    minimum: int = 1
    maximum: int | None = None

    def to_json(self) -> dict[str, Any]:
        """Plain data for a manifest."""
        return {
            "target": self.target,
            "price": self.price,
            "platt": [list(pair) for pair in self.platt],
            "minimum": self.minimum,
            "maximum": self.maximum,
        }

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Self:
        """The rule that ``to_json`` wrote."""
        return cls(
            target=float(data["target"]),
            price=None if data["price"] is None else float(data["price"]),
            platt=tuple((float(a), float(b)) for a, b in data["platt"]),
            minimum=int(data["minimum"]),
            maximum=None if data["maximum"] is None else int(data["maximum"]),
        )


@dataclass(frozen=True)
class Candidates:
    """The most probable node of each level, for each picture.

    Attributes:
        nodes: ``(B, L)`` node ids.
        probability: ``(B, L)`` their probabilities, before any correction.
        leaf: ``(B,)`` the most probable leaf, on whatever level it is.
        confidence: ``(B,)`` that leaf's probability: low where a person is needed most.
    """

    nodes: Ints
    probability: Floats
    leaf: Ints
    confidence: Floats


def candidates(log_probability: Floats, tree: LabelTree) -> Candidates:
    """Pick each level's best node out of ``(B, N)`` log-probabilities of all nodes."""
    rows = np.arange(len(log_probability))
    nodes = np.empty((len(rows), tree.depth), dtype=np.int64)
    for level in range(tree.depth):
        ids = np.array(tree.level_nodes(level))
        nodes[:, level] = ids[log_probability[:, ids].argmax(axis=1)]
    leaves = np.array(tree.leaves)
    leaf = leaves[log_probability[:, leaves].argmax(axis=1)]
    return Candidates(
        nodes=nodes,
        probability=np.exp(log_probability[rows[:, None], nodes]),
        leaf=leaf,
        confidence=np.exp(log_probability[rows, leaf]),
    )


def corrected(probability: Floats, platt: tuple[tuple[float, float], ...]) -> Floats:
    """``(B, L)`` probabilities after each level's slope and offset in logit space.

    A tree that has grown deeper since the fit uses the deepest known level's numbers below it.
    """
    levels = probability.shape[1]
    pairs = np.array([platt[min(level, len(platt) - 1)] for level in range(levels)])
    inside = np.clip(probability, EDGE, 1 - EDGE)
    logit = np.log(inside) - np.log1p(-inside)
    result: Floats = 1 / (1 + np.exp(-(pairs[:, 0] * logit + pairs[:, 1])))
    return result


def choose_depth(probability: Floats, rule: DepthRule) -> Ints:
    """Depth to answer at, 0 for nothing, from ``(B, L)`` corrected probabilities -> ``(B,)``.

    Example:
        >>> rule = DepthRule(target=0.9, price=10.0, platt=((1.0, 0.0), (1.0, 0.0)))
        >>> choose_depth(np.array([[0.99, 0.95], [0.97, 0.4], [0.5, 0.3]]), rule)
        array([2, 1, 0])
    """
    if rule.price is None:
        return np.zeros(len(probability), dtype=np.int64)
    depth = np.arange(1, probability.shape[1] + 1)
    worth = depth - rule.price * (rule.target - probability)
    allowed = (depth >= rule.minimum) & (probability >= min(LEAST_PROBABILITY, rule.target))
    if rule.maximum is not None:
        allowed &= depth <= rule.maximum
    worth = np.where(allowed, worth, -np.inf)
    best = worth.argmax(axis=1)
    shown = worth[np.arange(len(worth)), best] > 0
    return np.where(shown, best + 1, 0)
