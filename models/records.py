"""What versions keep of their own checking, read from the store once a process."""

import threading
from collections import OrderedDict
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from hierarchy import LabelTree
from hierarchy.choice import DepthRule
from models.insight import Confusion, NodeFigures, Record, confusions, node_figures, read_record
from models.store import ModelStore

#: Manifests kept without their trees, some kilobytes each.
SUMMARIES = 500


@dataclass(frozen=True, eq=False)
class Known:
    """One version, as far as people look at it.

    Attributes:
        version: its name.
        manifest: without the tree.
        tree: the one it was trained with.
        record: what its held-out pictures said; None if it kept nothing.
    """

    version: str
    manifest: dict[str, Any]
    tree: LabelTree
    record: Record | None

    @property
    def rule(self) -> DepthRule:
        """As it was certified."""
        return DepthRule.from_json(self.manifest["calibration"]["rule"])

    @property
    def by_node(self) -> bool:
        """Does it keep what figures of nodes need?"""
        return self.record is not None and self.record.nodes is not None

    @cached_property
    def figures(self) -> NodeFigures | None:
        """Of every node; None where nothing was kept."""
        return None if self.record is None else node_figures(self.record, self.tree)

    @cached_property
    def confusions(self) -> list[Confusion]:
        """Siblings taken for each other, most frequent first."""
        return [] if self.record is None else confusions(self.record, self.tree)


class Records:
    """Versions never change and their names are given once: what was read stays true."""

    def __init__(self, store: ModelStore, *, keep: int = 4) -> None:
        self._store = store
        self._keep = keep
        self._known: OrderedDict[tuple[str, str], Known] = OrderedDict()
        self._summaries: OrderedDict[tuple[str, str], dict[str, Any]] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: str, version: str) -> Known:
        """The version with its record.

        Raises:
            UnknownVersionError, ModelStoreError: it is not there, or not whole.
        """
        with self._lock:  # one read at a time: two would read the same file twice
            if (key, version) not in self._known:
                manifest = self._store.manifest(key, version)
                tree = LabelTree.from_json(manifest.pop("tree"))
                record = read_record(self._store.weights(key, version))
                self._known[key, version] = Known(version, manifest, tree, record)
            self._known.move_to_end((key, version))
            while len(self._known) > self._keep:
                self._known.popitem(last=False)
            return self._known[key, version]

    def summary(self, key: str, version: str) -> dict[str, Any]:
        """The manifest without its tree.

        Raises:
            UnknownVersionError, ModelStoreError: it is not there, or cannot be read.
        """
        with self._lock:
            if (key, version) not in self._summaries:
                manifest = self._store.manifest(key, version)
                manifest.pop("tree", None)
                self._summaries[key, version] = manifest
            self._summaries.move_to_end((key, version))
            while len(self._summaries) > SUMMARIES:
                self._summaries.popitem(last=False)
            return self._summaries[key, version]
