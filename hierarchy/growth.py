"""What becomes of nodes, labels and weights when a label tree changes.

A node is its path: renaming or moving one is removing it and adding another. What was said of a
node that is gone holds for the nearest node above it that stays.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from hierarchy.errors import ShapeError, TreeError
from hierarchy.heads import HRNHead, SeededDropout, members_loss, score_nodes
from hierarchy.tree import LabelTree

#: Vectors worked out at once.
_CHUNK = 1024


@dataclass(frozen=True)
class Change:
    """How the N' nodes of today's tree go with the N of an earlier one.

    Attributes:
        source: of each node of today its id in the earlier tree, -1 for a new one.
        nearest: of each earlier node the id today of the deepest node on its path that stays; -1
            where not even its top does.

    Example:
        >>> old = LabelTree.from_paths([("Fruit", "Apple"), ("Milk",)])
        >>> new = LabelTree.from_paths([("Fruit", "Pear"), ("Milk",)])
        >>> Change.between(old, new)  # Apple counts for Fruit; Pear is new
        Change(source=(0, 1, -1), nearest=(0, 1, 0))
    """

    source: tuple[int, ...]
    nearest: tuple[int, ...]

    @classmethod
    def between(cls, old: LabelTree, new: LabelTree) -> Self:
        """Compare two trees, path by path."""
        where = _walk_along(new, old)
        nearest = _walk_along(old, new)
        return cls(
            tuple(found if whole else -1 for found, whole in where),
            tuple(found for found, _ in nearest),
        )

    @property
    def added(self) -> tuple[int, ...]:
        """Ids today of the nodes that the earlier tree did not have."""
        return tuple(node for node, source in enumerate(self.source) if source < 0)

    @property
    def gone(self) -> tuple[int, ...]:
        """Earlier ids of the nodes that today's tree does not have."""
        stay = set(self.source)
        return tuple(node for node in range(len(self.nearest)) if node not in stay)

    def move(self, nodes: NDArray[np.int64]) -> NDArray[np.int64]:
        """Say earlier ids, of any shape, in today's: each as its nearest node; -1 stays -1.

        Raises:
            ShapeError: if one is no id of the earlier tree.
        """
        if nodes.size and not -1 <= nodes.min() <= nodes.max() < len(self.nearest):
            raise ShapeError(
                f"nodes must be ids of the earlier tree, 0 to {len(self.nearest) - 1}, or -1 for "
                f"none, got {nodes.min()} to {nodes.max()}"
            )
        moved: NDArray[np.int64] = np.array([*self.nearest, -1], dtype=np.int64)[nodes]
        return moved

    def to_json(self) -> dict[str, Any]:
        """Plain data: ``{"source": [...], "nearest": [...]}``."""
        return {"source": list(self.source), "nearest": list(self.nearest)}

    @classmethod
    def from_json(cls, obj: object) -> Self:
        """Read what :meth:`to_json` wrote.

        Raises:
            TreeError: if ``obj`` is not of that form; the message names the field.
        """
        fields = obj if isinstance(obj, Mapping) else {}
        for name in ("source", "nearest"):
            ids = fields.get(name)
            if not isinstance(ids, list | tuple) or not all(type(one) is int for one in ids):
                raise TreeError(f"change.{name}: expected a list of node ids, got {ids!r:.80}")
        return cls(tuple(fields["source"]), tuple(fields["nearest"]))


def _walk_along(these: LabelTree, other: LabelTree) -> list[tuple[int, bool]]:
    """Of each node the deepest on its path that ``other`` has (-1: none), and if that is itself.

    One step per node: paths are not built.
    """
    keys = zip(other.parents, other.names, strict=True)
    child = {key: node for node, key in enumerate(keys)}
    found: list[tuple[int, bool]] = [(-1, False)] * len(these)
    for node in these.preorder:
        parent = these.parents[node]
        above, whole = found[parent] if parent >= 0 else (-1, True)
        here = child.get((above, these.names[node])) if whole else None
        found[node] = (above, False) if here is None else (here, True)
    return found


def awaken(head: HRNHead, old: LabelTree) -> None:
    """Let a grown head's new nodes start where they can be learnt in a few epochs.

    ``hierarchy.heads.transfer_weights`` gives a new node a score so low that it is never answered,
    and that no short training could lift. Here it starts as the mean of its siblings that stayed,
    hence as likely as one of them; where none did, at a score of 0. Nodes that stayed keep their
    rows.

    Args:
        head: carried over from ``old``; changed in place.
        old: the tree that the head has learnt.
    """
    fresh = set(Change.between(old, head.tree).added)
    with torch.no_grad():
        for layer, nodes in zip(head.score_layers, head.layers(head.tree), strict=True):
            row = {node: at for at, node in enumerate(nodes)}
            for node in fresh & row.keys():
                stay = [row[other] for other in _siblings(node, head.tree) if other not in fresh]
                for rows in (layer.weight, layer.bias):
                    rows[:, row[node]] = rows[:, stay].mean(1) if stay else 0.0


def _siblings(node: int, tree: LabelTree) -> tuple[int, ...]:
    parent = tree.parents[node]
    return tree.level_nodes(0) if parent < 0 else tree.children[parent]


class Graft(nn.Module):
    """New nodes on a head that stays as it is: only their rows are learnt, from its features.

    What the head says of the nodes it knows, one against the other, does not change by a digit: the
    score of each stays, so the ratio of the probabilities of two leaves does. As the head's blocks
    are not trained, their features are worked out once, and learning takes a second or two.

    Args:
        head: its rows of the new nodes are where learning starts, see :func:`awaken`.
        nodes: ids of the new nodes.
        dropout: share of the features dropped in training.
    """

    def __init__(self, head: HRNHead, nodes: Sequence[int], dropout: float = 0.0) -> None:
        super().__init__()
        self.tree = head.tree
        self.dropout = SeededDropout(dropout)
        self._in_order: Callable[[Sequence[Tensor]], Tensor] = head.in_order
        chosen = set(nodes)
        layers = head.score_layers
        own = [
            torch.tensor([at for at, node in enumerate(layer) if node in chosen], dtype=torch.int64)
            for layer in head.layers(head.tree)
        ]
        self._rows = own
        self._known = [
            (layer.weight.detach().clone(), layer.bias.detach().clone()) for layer in layers
        ]
        known = list(zip(self._known, own, strict=True))
        self.weight = nn.ParameterList(weight[:, rows] for (weight, _), rows in known)
        self.bias = nn.ParameterList(bias[:, rows] for (_, bias), rows in known)

    @staticmethod
    def features(head: HRNHead, vectors: Tensor) -> Tensor:
        """What all score layers read, side by side, as the head answers.

        Args:
            head: in eval mode afterwards.
            vectors: ``(P, V, C)`` of P images, V augmentations each.

        Returns:
            ``(P, V, F)`` float32, F being K * M * H but for a head whose levels lie side by side.
        """
        head.eval()
        with torch.inference_mode():
            parts = [
                torch.cat(head.last(some.float()), dim=1)
                for some in vectors.flatten(0, 1).split(_CHUNK)
            ]
        features: Tensor = torch.cat(parts).clone()  # a copy that may be trained on
        return features.view(*vectors.shape[:2], -1)

    def forward(self, features: Tensor) -> Tensor:
        """``(B, F)`` -> ``(M, B, N)`` raw scores of each member."""
        # Dropped features for the known nodes too: on images that the head has learnt it is surer
        # than on others, and the new nodes would take what it is less sure of.
        widths = [len(weight) * weight.shape[2] for weight, _ in self._known]
        parts = self.dropout(features).split(widths, dim=1)
        found = [
            score_nodes(
                part,
                weight.index_copy(1, rows, self.weight[at]),
                bias.index_copy(1, rows, self.bias[at]),
            )
            for at, (part, (weight, bias), rows) in enumerate(
                zip(parts, self._known, self._rows, strict=True)
            )
        ]
        ordered: Tensor = self._in_order(found)
        return ordered

    def objective(self, features: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
        """Mean tree loss of the members, in nats; targets ``(B,)`` or ``(B, K)``."""
        return members_loss(self(features), targets, weights, self.tree)

    def write_to(self, head: HRNHead) -> None:
        """Put the learnt rows into the head that was grafted on."""
        with torch.no_grad():
            layers = zip(head.score_layers, self._rows, self.weight, self.bias, strict=True)
            for layer, rows, weight, bias in layers:
                layer.weight[:, rows] = weight
                layer.bias[:, rows] = bias
