"""A version loaded and ready: feature maps in, answers out, under the tree of today."""

import copy
import logging
import math
import os
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cache
from typing import Any, Final, TypeVar, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from hierarchy import LabelTree, log_marginals
from hierarchy.acquisition import margin
from hierarchy.calibration import Evidence, fit_rule
from hierarchy.choice import (
    REASONS,
    Candidates,
    DepthRule,
    Explained,
    Reason,
    candidates,
    corrected,
    explain_depth,
    reason_text,
)
from hierarchy.network import FrozenHead, ResidualHead, carry_over
from hierarchy.quantised import QuantisedMaps, has_integer_arithmetic, joined
from models.batching import Together
from models.errors import ModelStoreError
from models.store import ModelStore, Project

log = logging.getLogger(__name__)

#: Feature maps of n pictures: as they are kept, or ``(n, C, H, W)`` numbers.
Maps = QuantisedMaps | NDArray[np.floating]

FoundT = TypeVar("FoundT")

#: Tensors in a version's file that are not the head's weights.
EVIDENCE = "evidence."
BACKBONE = "backbone."

#: Maps scored at once.
BATCH = 64

#: Maps that are enough to be shared out.
SHARED_OUT: Final = 16


def cores_for_heads() -> int:
    """How many heads run side by side, each with PyTorch's number of threads."""
    return max(1, min(4, (os.cpu_count() or 1) // torch.get_num_threads()))


@cache
def heads() -> ThreadPoolExecutor:
    """The threads in which they do; a forked process begins anew."""
    os.register_at_fork(after_in_child=heads.cache_clear)
    return ThreadPoolExecutor(cores_for_heads(), thread_name_prefix="heads")


@dataclass(frozen=True)
class Answer:
    """What is said of one picture.

    Attributes:
        path: the node shown, from the top; None when nothing can be shown.
        probability: of that node, corrected; of the best top node when nothing is shown.
        confidence: probability of the best leaf: low where a person teaches most.
        leaf: the best leaf, for people who want to know.
        reason: why it goes no deeper.
        why: the same in words.
        margin: the best leaf's lead over the second, in [0, 1].
    """

    path: tuple[str, ...] | None
    probability: float
    confidence: float
    leaf: tuple[str, ...]
    reason: Reason
    why: str
    margin: float


class Predictor:
    """One version of one project under one tree. Safe to use from several threads."""

    def __init__(  # noqa: PLR0913 - what a version is made of
        self,
        *,
        version: str,
        tree: LabelTree,
        head: nn.Module,
        rule: DepthRule,
        backbone: tuple[str, str],
        backbone_weights: dict[str, Tensor],
        manifest: dict[str, Any],
        learnt: NDArray[np.bool_] | None = None,
    ) -> None:
        """Take the parts, see `load_predictor`.

        Args:
            version: its name.
            tree: the tree of today.
            head: feature maps -> raw scores of the tree's nodes.
            rule: when to stop.
            backbone: name and fingerprint of what the head was trained on.
            backbone_weights: of a fine-tuned backbone, else empty.
            manifest: the version's.
            learnt: ``(N,)`` whether the head was trained with the node; None for all.
        """
        self.version = version
        self.tree = tree
        self.head = head.eval()
        self.rule = self.own_rule = rule
        self.backbone_name, self.backbone_fingerprint = backbone
        self.backbone_weights = backbone_weights
        self.manifest = manifest
        self._learnt = np.ones(len(tree), dtype=bool) if learnt is None else learnt
        self._together: Together[QuantisedMaps, NDArray[np.float64]] = Together(
            self._scored, join=joined
        )
        self._ends = np.isin(np.arange(len(tree)), tree.leaves)

    def log_probabilities(self, maps: Maps) -> NDArray[np.float64]:
        """Feature maps of n pictures -> ``(n, N)`` log P(node).

        A few go along with those of requests that come meanwhile, many are shared out on the cores.
        """
        if not len(maps):
            return np.empty((0, len(self.tree)))
        if len(maps) < SHARED_OUT:
            if isinstance(maps, QuantisedMaps):
                return self._together(maps)
            return self._scored(maps)
        return np.concatenate(list(self._shared_out(self._scored, maps)))

    def scanned(self, maps: QuantisedMaps) -> tuple[NDArray[np.float64], NDArray[np.float32]]:
        """N > 0 pictures' log-probabilities and their maps' ``(n, C)`` means, which heads need."""
        found = list(self._shared_out(lambda some: (self._scored(some), some.means), maps))
        return np.concatenate([row for row, _ in found]), np.concatenate([row for _, row in found])

    def _shared_out(self, work: Callable[[Any], FoundT], maps: Maps) -> Iterator[FoundT]:
        """The work on parts of the maps, side by side."""
        self._settle(maps)
        at_once = min(BATCH, math.ceil(len(maps) / cores_for_heads()))
        starts = range(0, len(maps), at_once)
        return heads().map(work, [maps[start : start + at_once] for start in starts])

    def _settle(self, maps: Maps) -> None:
        if self._on_cpu and isinstance(self.head, FrozenHead):
            shape = (maps.steps if isinstance(maps, QuantisedMaps) else maps).shape
            self.head.settle(*shape[2:])

    @property
    def _on_cpu(self) -> bool:
        return next(self.head.parameters()).device.type == "cpu"

    def _scored(self, maps: Maps) -> NDArray[np.float64]:
        with torch.inference_mode():
            scores = self._scores(maps)
            log_p: NDArray[np.float64] = log_marginals(scores.double(), self.tree).cpu().numpy()
        return log_p

    def _scores(self, maps: Maps) -> Tensor:
        device = next(self.head.parameters()).device
        if not isinstance(maps, QuantisedMaps):
            return cast("Tensor", self.head(torch.from_numpy(maps).to(device).float()))
        if self._on_cpu and isinstance(self.head, FrozenHead) and has_integer_arithmetic():
            return self.head.of_quantised(maps)
        return cast("Tensor", self.head(maps.floats().to(device)))

    def under(self, rule: DepthRule) -> "Predictor":
        """The same version, its weights shared, stopping by another rule."""
        other = copy.copy(self)
        other.rule = rule
        return other

    def guesses(self, maps: Maps) -> tuple[Candidates, NDArray[np.bool_]]:
        """Each level's best node, before any rule, and ``(n, L)`` whether the head learnt it."""
        found = candidates(self.log_probabilities(maps), self.tree)
        return found, self._learnt[found.nodes]

    def answer(self, maps: Maps) -> list[Answer]:
        """One answer a map, in order."""
        return self.told(self.log_probabilities(maps))

    def told(self, log_p: NDArray[np.float64]) -> list[Answer]:
        """One answer a row of ``(n, N)`` log-probabilities, in order."""
        if not len(log_p):
            return []
        found = candidates(log_p, self.tree)
        learnt, margins = self._learnt[found.nodes], margin(log_p, self.tree)
        sure = corrected(found.probability, self.rule.platt)
        sure[~learnt] = 0  # the correction might lift what nothing is known of
        told = explain_depth(sure, self.rule, self._ends[found.nodes])
        return [
            self._answer(
                found, row, level, float(sure[row, max(level - 1, 0)]), told, float(margins[row])
            )
            for row, level in enumerate(told.depth.tolist())
        ]

    def _answer(  # noqa: PLR0913 - a row of what is known of all of them
        self,
        found: Candidates,
        row: int,
        depth: int,
        probability: float,
        told: Explained,
        lead: float,
    ) -> Answer:
        refused = min(depth or self.rule.minimum - 1, self.tree.depth - 1)
        left, reason = float(told.deeper[row]), REASONS[int(told.code[row])]
        return Answer(
            path=self.tree.paths[int(found.nodes[row, depth - 1])] if depth else None,
            probability=probability,
            confidence=float(found.confidence[row]),
            leaf=self.tree.paths[int(found.leaf[row])],
            reason=reason,
            why=reason_text(
                reason,
                deeper=None if np.isnan(left) else self.tree.names[int(found.nodes[row, refused])],
                probability=None if np.isnan(left) else left,
                target=self.rule.target,
            ),
            margin=lead,
        )


def load_predictor(
    store: ModelStore,
    project: Project,
    version: str,
    *,
    tree: LabelTree | None = None,
    device: str = "cpu",
) -> Predictor:
    """Read a version and fit it to the tree of today and to what the project asks for.

    Args:
        store: where it is.
        project: whose version; its own target accuracy and depth limits are obeyed.
        version: its name.
        tree: the tree of today's label config; None for the version's own. Nodes that stay keep
            their weights, new ones are not answered before they are learnt.
        device: ``cpu`` or ``cuda``.

    Raises:
        UnknownVersionError, ModelStoreError: it is not there, or not whole.
    """
    manifest = store.manifest(project.key, version)
    tensors = store.weights(project.key, version)
    learnt = LabelTree.from_json(manifest["tree"])
    weights = _split(tensors, EVIDENCE)[1]
    own_backbone, weights = _split(weights, BACKBONE)
    head = build_head(learnt, manifest["network"])
    try:
        head.load_state_dict(weights)
    except RuntimeError as error:
        raise ModelStoreError(
            f"the weights of {version} do not fit its manifest: {error}"
        ) from error
    known = None
    if tree is not None and tree != learnt:
        grown = build_head(tree, manifest["network"])
        grown.load_state_dict(carry_over(weights, learnt, tree, grown.state_dict()))
        head, paths = grown, set(learnt.paths)
        known = np.array([path in paths for path in tree.paths])
    return Predictor(
        version=version,
        tree=tree or learnt,
        head=head.to(device),
        rule=rule_for(project, manifest, read_evidence(tensors)),
        backbone=(manifest["backbone"]["name"], manifest["backbone"]["fingerprint"]),
        backbone_weights=own_backbone,
        manifest=manifest,
        learnt=known,
    )


def build_head(tree: LabelTree, network: dict[str, Any]) -> nn.Module:
    """The head that a manifest describes, with fresh weights."""
    sizes = {name: value for name, value in network.items() if name not in ("kind", "channels")}
    if network["kind"] == "frozen":
        return FrozenHead(tree, network["channels"], **sizes)
    if network["kind"] == "residual":
        return ResidualHead(tree, network["channels"], **sizes)
    raise ModelStoreError(
        f"network kind {network['kind']!r} is not known to this release: frozen or residual"
    )


def rule_for(project: Project, manifest: dict[str, Any], seen: Evidence | None) -> DepthRule:
    """The version's own rule, refitted from its evidence if the project asks for something else.

    What holds for labels on all levels need not hold for those that other depth limits leave, so
    new limits need another fit just as a new target does. Without evidence nothing can be promised
    for another target, and nothing is shown.
    """
    rule = DepthRule.from_json(manifest["calibration"]["rule"])
    target = project.target_accuracy or rule.target
    asked = replace(
        rule, target=target, minimum=project.minimum_depth, maximum=project.maximum_depth
    )
    if asked == rule and project.strict == rule.strict:
        return rule
    if seen is not None:
        fitted = fit_rule(
            seen,
            target=target,
            minimum=asked.minimum,
            maximum=asked.maximum,
            strict=project.strict,
        )
        return fitted.rule
    kept = target <= rule.target and project.strict <= rule.strict
    return asked if kept else replace(asked, price=None)


def followed_rule(store: ModelStore, key: str, version: str, own: DepthRule) -> DepthRule:
    """The rule that feedback has led to, the version's own where there is none.

    Also the own one where feedback was followed under another target or other depth limits than the
    project asks for now: what held for those is no promise for these.
    """
    try:
        kept = (store.read_following(key, version) or {}).get("rule")
        rule = own if kept is None else DepthRule.from_json(kept)
    except (ModelStoreError, KeyError, TypeError, ValueError, AttributeError) as error:
        log.warning("the version's own rule holds project=%s version=%s: %s", key, version, error)
        return own
    return rule if asks(rule) == asks(own) else own


def asks(rule: DepthRule) -> tuple[object, ...]:
    """What a rule was made to fulfil, beside how it does."""
    return rule.target, rule.minimum, rule.maximum, rule.strict


def read_evidence(tensors: dict[str, Tensor]) -> Evidence | None:
    """What the held-out pictures said, as the version keeps it."""
    if f"{EVIDENCE}probability" not in tensors:
        return None
    drawn = tensors.get(f"{EVIDENCE}drawn")
    return Evidence(
        tensors[f"{EVIDENCE}probability"].double().numpy(),
        tensors[f"{EVIDENCE}right"].long().numpy(),
        drawn=None if drawn is None else drawn.numpy(),
    )


def _split(tensors: dict[str, Tensor], prefix: str) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    inside = {
        name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)
    }
    return inside, {name: t for name, t in tensors.items() if not name.startswith(prefix)}


class Predictors:
    """Loaded versions, the most recently used kept; each is read from disk once a process.

    Feedback may change a version's rule while it is live: a look at one file's time tells, and the
    rule is taken from there without loading anything else.
    """

    def __init__(self, store: ModelStore, *, device: str = "cpu", keep: int = 8) -> None:
        self._store = store
        self._device = device
        self._keep = keep
        self._loaded: OrderedDict[tuple[object, ...], Predictor] = OrderedDict()
        self._stamps: dict[tuple[object, ...], object] = {}
        self._lock = threading.Lock()

    def get(self, project: Project, version: str, tree: LabelTree | None = None) -> Predictor:
        """The version, ready.

        Raises:
            UnknownVersionError, ModelStoreError: it is not there, or not whole.
        """
        limits = (project.minimum_depth, project.maximum_depth)
        key = (project.key, version, tree, project.target_accuracy, *limits, project.strict)
        with self._lock:  # one load at a time: two would read the same file twice
            stamp = self._store.following_stamp(project.key, version)  # before what it stands for
            if key not in self._loaded:
                self._loaded[key] = load_predictor(
                    self._store, project, version, tree=tree, device=self._device
                )
            if stamp != self._stamps.get(key):
                known = self._loaded[key]
                rule = followed_rule(self._store, project.key, version, known.own_rule)
                self._loaded[key] = known.under(rule)
                self._stamps[key] = stamp
            self._loaded.move_to_end(key)
            while len(self._loaded) > self._keep:
                self._stamps.pop(self._loaded.popitem(last=False)[0], None)
            return self._loaded[key]

    def loaded(self) -> Sequence[str]:
        """Names of what is in memory, for people."""
        with self._lock:
            return [f"{key[0]}/{key[1]}" for key in self._loaded]
