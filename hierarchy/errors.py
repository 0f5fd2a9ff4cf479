"""Errors about a tree, a label or a tensor: one class for each thing to fix."""

from collections.abc import Sequence


class HierarchyError(Exception):
    """Root of the package's errors."""


class TreeError(HierarchyError):
    """A tree that cannot be: the message says which node or path, and how to fix it."""


class ShapeError(HierarchyError):
    """A tensor of the wrong shape, kind or range: the message says what was expected."""


class UnknownLabelError(HierarchyError):
    """A label that the tree does not have.

    Attributes:
        path: the path that was asked for; empty if a node id was.
        nearest: the path of the deepest node above it that the tree does have; empty if none.
    """

    def __init__(self, message: str, path: Sequence[str] = (), nearest: Sequence[str] = ()) -> None:
        super().__init__(message)
        self.path = tuple(path)
        self.nearest = tuple(nearest)
