"""The rivals that need no more than a trunk, by name."""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

from torch import nn

from hierarchy.rivals.base import Rival
from hierarchy.rivals.chang import Chang
from hierarchy.rivals.chmcnn import Chmcnn
from hierarchy.rivals.flat import Flat, Marginal
from hierarchy.rivals.hmcn import Hmcn
from hierarchy.rivals.lmlp import Lmlp
from hierarchy.tree import LabelTree

Build = Callable[[LabelTree, nn.Module, int], Rival[Any]]
"""Takes the tree, a trunk from ``(B, C, H, W)`` maps to ``(B, width)`` features, and the width."""

RIVALS: Mapping[str, Build] = MappingProxyType(
    {
        "lmlp": Lmlp,
        "hmcn": Hmcn,
        "chmcnn": Chmcnn,
        "chang": Chang,
        "marginal": Marginal,
        "flat": Flat,
    }
)
