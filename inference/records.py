"""Manifests and held-out records of versions, read from the store once per process."""

import threading
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from hierarchy import LabelTree
from hierarchy.decisions import Decisions
from hierarchy.depth_selection import DepthRule
from inference.insight import (
    Confusion,
    NodeFigures,
    Record,
    confusions,
    node_figures,
    read_record,
)
from inference.manifest import Manifest
from inference.predictor import calibration_for
from inference.store import ModelStore, Project

#: Manifests kept without their trees, some kilobytes each.
SUMMARIES = 500


@dataclass(frozen=True, eq=False)
class Known:
    """One version, as far as people look at it.

    Attributes:
        version: its name.
        manifest: without the tree.
        tree: the one it was trained with.
        record: what its held-out images said; None if it kept nothing.
        decisions: the choices that its evidence and rule are about.
    """

    version: str
    manifest: Manifest
    tree: LabelTree
    record: Record | None
    decisions: Decisions

    @property
    def rule(self) -> DepthRule:
        """The depth rule as it was certified."""
        return DepthRule.from_json(self.manifest.calibration["rule"])

    def calibration(self, project: Project) -> Mapping[str, Any]:
        """Return the rule under what the project asks for now, and its grounds."""
        seen = None if self.record is None else self.record.seen
        return calibration_for(project, self.manifest, seen)

    @property
    def by_node(self) -> bool:
        """Tell whether it keeps what figures of nodes need."""
        return self.record is not None

    @cached_property
    def figures(self) -> NodeFigures | None:
        """Figures of every node; None where the version kept nothing."""
        return None if self.record is None else node_figures(self.record, self.tree)

    @cached_property
    def confusions(self) -> list[Confusion]:
        """Siblings taken for each other, most frequent first."""
        return [] if self.record is None else confusions(self.record, self.tree)


class Records:
    """A cache of versions, which never change and whose names are given once."""

    def __init__(self, store: ModelStore, *, keep: int = 4) -> None:
        self._store = store
        self._keep = keep
        self._known: OrderedDict[tuple[str, str], Known] = OrderedDict()
        self._summaries: OrderedDict[tuple[str, str], Manifest] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: str, version: str) -> Known:
        """Return the version with its record.

        Raises:
            UnknownVersionError, ModelStoreError: it is not there, or not whole.
        """
        with self._lock:  # one read at a time: two would read the same file twice
            if (key, version) not in self._known:
                self._known[key, version] = self._read(key, version)
            self._known.move_to_end((key, version))
            while len(self._known) > self._keep:
                self._known.popitem(last=False)
            return self._known[key, version]

    def summary(self, key: str, version: str) -> Manifest:
        """Read the manifest, without its tree.

        Raises:
            UnknownVersionError, ModelStoreError: it is not there, or cannot be read.
        """
        with self._lock:
            if (key, version) not in self._summaries:
                manifest = self._store.manifest(key, version)
                self._summaries[key, version] = replace(manifest, tree={})
            self._summaries.move_to_end((key, version))
            while len(self._summaries) > SUMMARIES:
                self._summaries.popitem(last=False)
            return self._summaries[key, version]

    def calibration(self, project: Project, version: str) -> Mapping[str, Any]:
        """Return `Known.calibration`, from the manifest alone where the project asks for that.

        Raises:
            UnknownVersionError, ModelStoreError: it is not there, or not whole.
        """
        own = self.summary(project.key, version).calibration
        rule = DepthRule.from_json(own["rule"])
        asked = (project.target_accuracy or rule.target, project.minimum_depth)
        limits = (project.maximum_depth, project.strict)
        if (*asked, *limits) == (rule.target, rule.minimum, rule.maximum, rule.strict):
            return own
        return self.get(project.key, version).calibration(project)

    def _read(self, key: str, version: str) -> Known:
        manifest, tensors = self._store.manifest(key, version), self._store.weights(key, version)
        tree = LabelTree.from_json(manifest.tree)
        return Known(
            version, replace(manifest, tree={}), tree, read_record(tensors), Decisions.of(tree)
        )
