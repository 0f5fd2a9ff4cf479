"""The science: label trees, tree loss, network, choice of depth. Arithmetic only, no I/O.

The names below load on first use, so that a process that only reads trees does not wait for torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from hierarchy.loss import tree_loss
    from hierarchy.marginals import log_marginals
    from hierarchy.tree import LabelTree

__all__ = ["LabelTree", "log_marginals", "tree_loss"]

_HOME = {
    "LabelTree": "hierarchy.tree",
    "log_marginals": "hierarchy.marginals",
    "tree_loss": "hierarchy.loss",
}


def __getattr__(name: str) -> object:
    """Fetch an exported name from the module that it lives in (PEP 562)."""
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)
