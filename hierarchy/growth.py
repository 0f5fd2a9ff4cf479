"""What becomes of nodes, labels and weights when a label tree changes.

A node is its path: renaming or moving one is removing it and adding another. What was said of a
node that is gone holds for the nearest node above it that stays.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from hierarchy.errors import ShapeError, TreeError
from hierarchy.loss import tree_loss
from hierarchy.network import Features, FrozenHead, SeededDropout
from hierarchy.tree import LabelTree

#: Pictures worked out at once.
_CHUNK = 256


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

    One step a node: paths are not built.
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


def awaken(state: Mapping[str, Tensor], old: LabelTree, new: LabelTree) -> dict[str, Tensor]:
    """Weights of a grown head from which its new nodes can be learnt in a few epochs.

    ``hierarchy.network.carry_over`` gives a new node a score so low that it is never answered,
    and that no short training could lift. Here it starts as the mean of its siblings that stayed,
    hence as likely as one of them; where none did, at a score of 0.

    Args:
        state: weights of a head that was carried over from ``old`` to ``new``.
        old: the tree that the head has learnt.
        new: the tree it was carried over to.

    Returns:
        Weights for the same head; the nodes that stayed keep their rows.
    """
    fresh = set(Change.between(old, new).added)
    awake = {name: value.clone() for name, value in state.items()}
    for name, value in awake.items():
        parts = name.split(".")
        if "score" in parts:  # a row for each node
            nodes: Sequence[int] = range(len(new))
        elif "classify" in parts:  # a row for each node of a level
            nodes = new.level_nodes(int(parts[-2]))
        else:
            continue
        row = {node: at for at, node in enumerate(nodes)}
        for node in fresh & row.keys():
            stay = [row[other] for other in _siblings(node, new) if other not in fresh]
            value[row[node]] = value[stay].mean(0) if stay else 0.0
    return awake


def _siblings(node: int, tree: LabelTree) -> tuple[int, ...]:
    parent = tree.parents[node]
    return tree.level_nodes(0) if parent < 0 else tree.children[parent]


class Graft(nn.Module):
    """New nodes on a head that stays as it is: only their rows are learnt, from its features.

    What the head says of the nodes it knows, one against the other, does not change by a digit: the
    score of each stays, so the ratio of the probabilities of two leaves does. As the head's trunk
    is not trained, its features are worked out once, and learning takes a second or two.

    Args:
        head: its rows of the new nodes are where learning starts, see :func:`awaken`.
        nodes: ids of the new nodes.
        dropout: share of the features dropped in training.
    """

    def __init__(self, head: FrozenHead, nodes: Sequence[int], dropout: float = 0.0) -> None:
        super().__init__()
        self.tree = head.tree
        self.dropout = SeededDropout(dropout)
        self.nodes: Tensor
        self.register_buffer("nodes", torch.tensor(nodes, dtype=torch.int64), persistent=False)
        linear = [(part.weight.detach(), part.bias.detach()) for part in _score_layers(head)]
        self.weight = nn.ParameterList(weight[self.nodes].clone() for weight, _ in linear)
        self.bias = nn.ParameterList(bias[self.nodes].clone() for _, bias in linear)
        self._known = [(weight.clone(), bias.clone()) for weight, bias in linear]

    @staticmethod
    def features(head: FrozenHead, seen: Features) -> Features:
        """What all networks' scores are read from, side by side, as the head answers.

        Args:
            head: in eval mode afterwards.
            seen: of P pictures.

        Returns:
            ``means`` ``(P, widths of all networks)``; ``maps`` is empty.
        """
        head.eval()
        with torch.no_grad():
            chunks = [seen[at : at + _CHUNK] for at in range(0, len(seen), _CHUNK)]
            wide = torch.cat(
                [torch.cat(head.last(Features(c.maps.float(), c.means)), dim=1) for c in chunks]
            )
        return Features(wide.new_empty(len(wide), 0), wide)

    def forward(self, features: Tensor) -> Tensor:
        """``(B, widths of all networks)`` -> ``(B, networks, N)`` raw scores of each."""
        widths = [known.shape[1] for known, _ in self._known]
        parts = self.dropout(features).split(widths, dim=1)
        own = []
        for at, (weight, bias) in enumerate(self._known):
            # Dropped features here too: on pictures that the head has learnt it is surer than on
            # others, and the new nodes would take what it is less sure of.
            known = functional.linear(parts[at], weight, bias)
            fresh = functional.linear(parts[at], self.weight[at], self.bias[at])
            own.append(known.index_copy(1, self.nodes, fresh))
        return torch.stack(own, dim=1)

    def objective(self, features: Features, targets: Tensor, weights: Tensor) -> Tensor:
        """Mean tree loss of the networks, in nats; targets ``(B,)`` or ``(B, K)``."""
        return tree_loss(
            self(features.means).flatten(0, 1),
            targets.repeat_interleave(len(self._known), dim=0),
            self.tree,
            weights=weights.repeat_interleave(len(self._known)),
        )

    def write_to(self, head: FrozenHead) -> None:
        """Put the learnt rows into the head that was grafted on."""
        with torch.no_grad():
            own = zip(_score_layers(head), self.weight, self.bias, strict=True)
            for linear, weight, bias in own:
                linear.weight[self.nodes] = weight
                linear.bias[self.nodes] = bias


def _score_layers(head: FrozenHead) -> list[nn.Linear]:
    return [part for part in head.score if isinstance(part, nn.Linear)]
