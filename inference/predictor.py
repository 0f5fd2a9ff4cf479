"""A model version loaded for inference: feature vectors in, pre-labels out, under today's tree."""

import copy
import logging
import math
import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hierarchy import LabelTree
from hierarchy.acquisition import margin
from hierarchy.calibration import Evidence, Fitted, fit_rule
from hierarchy.decisions import Decisions
from hierarchy.depth_selection import (
    REASONS,
    Candidates,
    DepthRule,
    Explained,
    Reason,
    candidates,
    corrected,
    corrected_nodes,
    explain_depth,
    reason_text,
)
from hierarchy.familiarity import Familiarity
from hierarchy.heads import HRNHead, transfer_weights
from inference.errors import EarlierReleaseError, ModelStoreError
from inference.manifest import KIND, Manifest
from inference.store import ModelStore, Project

log = logging.getLogger(__name__)

#: Tensors in a version's file that are not the head's weights.
EVIDENCE = "evidence."
BACKBONE = "backbone."


@dataclass(frozen=True)
class Answer:
    """The answer to one image.

    Attributes:
        path: the node shown, from the root node; None when nothing can be shown. An only child of
            the node that was chosen goes with it, where the version is sure of it.
        probability: of that node, corrected; of the best of the first choice when nothing is shown.
        confidence: probability of the best leaf: low where a person teaches most.
        leaf: the best leaf, for people who want to know.
        reason: why it goes no deeper.
        why: the same in words.
        margin: the best leaf's lead over the second, in [0, 1].
        like: likeness of the image to those that were labelled (`hierarchy.familiarity`).
    """

    path: tuple[str, ...] | None
    probability: float
    confidence: float
    leaf: tuple[str, ...]
    reason: Reason
    why: str
    margin: float
    like: float = 1.0


class Predictor:
    """One version of one project under one tree. Safe to use from several threads."""

    def __init__(  # noqa: PLR0913 - what a version is made of
        self,
        *,
        version: str,
        tree: LabelTree,
        head: HRNHead,
        rule: DepthRule,
        backbone: tuple[str, str],
        backbone_weights: dict[str, Tensor],
        learnt: LabelTree | None = None,
        decisions: Decisions | None = None,
        familiarity: Familiarity | None = None,
    ) -> None:
        """Take the parts, see `load_predictor`.

        Args:
            version: its name.
            tree: the tree of today.
            head: feature vectors -> raw scores of the tree's nodes.
            rule: when to stop.
            backbone: name and fingerprint of what the head was trained on.
            backbone_weights: of a fine-tuned backbone, else empty.
            learnt: the tree that the head was trained with; None for the tree of today.
            decisions: the choices that the rule was fitted on; None for all of the tree's.
            familiarity: what the labelled images look like; None where the version did not keep it.
        """
        self.version = version
        self.tree = tree
        self.head = head.eval()
        self.rule = self.own_rule = rule
        self.backbone_name, self.backbone_fingerprint = backbone
        self.backbone_weights = backbone_weights
        self.decisions = Decisions.of(tree) if decisions is None else decisions
        self.familiarity = familiarity
        inner = [node for node, below in enumerate(tree.children) if below]
        known = set((learnt or tree).paths)
        self._learnt = np.array([path in known for path in tree.paths])
        self._ends = ~np.isin(np.arange(len(tree)), inner)

    def log_probabilities(self, vectors: NDArray[np.floating]) -> NDArray[np.float64]:
        """Return log P(node), ``(n, N)``, of n images' ``(n, C)`` feature vectors."""
        return self.head.log_probabilities(vectors)

    def under(self, rule: DepthRule) -> "Predictor":
        """Return this version, its weights shared, with another depth rule."""
        other = copy.copy(self)
        other.rule = rule
        return other

    def guesses(self, vectors: NDArray[np.floating]) -> Candidates:
        """Return each decision level's best node that the head has learnt, before any rule."""
        return candidates(self.log_probabilities(vectors), self.tree, self.decisions.levels)

    def sure(self, log_p: NDArray[np.float64], nodes: NDArray[np.int64]) -> NDArray[np.float64]:
        """Return ``(n, K)`` probabilities of nodes, corrected as in answers; 0 if not learnt.

        An only child is as probable as the choice that it goes with, times its share of that.
        """
        of, rows = self.decisions, np.arange(len(log_p))[:, None]
        known = of.stands[nodes] >= 0
        choice = np.where(known, of.stands[nodes], nodes)
        result = np.exp(log_p[rows, nodes])
        if of.levels:
            best = candidates(log_p, self.tree, of.levels).probability
            own = corrected_nodes(
                best, np.exp(log_p[rows, choice]), of.level[choice] * known, self.rule.platt
            )
            share = np.exp(log_p[rows, nodes] - log_p[rows, choice])
            result = np.where(known, own * share, result)
        return np.where(self._learnt[nodes], result, 0.0)

    def answer(self, vectors: NDArray[np.floating]) -> list[Answer]:
        """Return one answer per feature vector, in order."""
        return self.told(self.log_probabilities(vectors), self.likeness(vectors))

    def likeness(self, vectors: NDArray[np.floating]) -> NDArray[np.float64] | None:
        """Return images' likeness, ``(n,)``, to the labelled ones; None where nothing is known."""
        return None if self.familiarity is None else self.familiarity.likeness(vectors)

    def told(
        self, log_p: NDArray[np.float64], like: NDArray[np.float64] | None = None
    ) -> list[Answer]:
        """Return one answer per row of ``(n, N)`` log-probabilities, in order.

        Args:
            log_p: of the nodes.
            like: ``(n,)`` likeness of the images to the labelled ones; None where it is not known.
        """
        if not len(log_p):
            return []
        found = candidates(log_p, self.tree, self.decisions.levels)
        margins = margin(log_p, self.tree)
        sure = corrected(found.probability, self.rule.platt)
        at = self.tree.arrays.levels[found.nodes] + 1
        ends = self._ends[self.decisions.last[found.nodes]]
        told = explain_depth(sure, self.rule, ends, at, like)
        likes = np.ones(len(log_p)) if like is None else like
        return [
            self._answer(
                found, sure[row], log_p[row], told, row, float(margins[row]), float(likes[row])
            )
            for row in range(len(log_p))
        ]

    def _answer(  # noqa: PLR0913 - a row of what is known of all of them
        self,
        found: Candidates,
        sure: NDArray[np.float64],
        log_p: NDArray[np.float64],
        told: Explained,
        row: int,
        lead: float,
        like: float,
    ) -> Answer:
        depth, refused = int(told.depth[row]), int(told.refused[row])
        reason, left = REASONS[int(told.code[row])], float(told.deeper[row])
        below = None if refused == 0 else int(found.nodes[row, refused - 1])
        node, probability = None, float(sure[max(depth - 1, 0)] if len(sure) else 0.0)
        if depth:
            chosen = int(found.nodes[row, depth - 1])
            node, next_ = self._with_only_children(chosen, log_p)
            whole = probability
            probability *= math.exp(log_p[node] - log_p[chosen])
            if next_ is not None:  # an only child that the version is not sure of, or may not show
                share = math.exp(log_p[next_] - log_p[chosen])
                unsure = share < self.rule.target
                reason, below = Reason.RISK if unsure else Reason.LIMIT, next_
                left = whole * share
        return Answer(
            path=None if node is None else self.tree.paths[node],
            probability=probability,
            confidence=float(found.confidence[row]),
            leaf=self.tree.paths[int(found.leaf[row])],
            reason=reason,
            why=reason_text(
                reason,
                deeper=None if below is None else self.tree.names[below],
                probability=None if np.isnan(left) else left,
                target=self.rule.target,
            ),
            margin=lead,
            like=like,
        )

    def _with_only_children(
        self, chosen: int, log_p: NDArray[np.float64]
    ) -> tuple[int, int | None]:
        """Return the node to show for a choice, and the only child below it that is not shown.

        An only child cannot be wrong among the labels that there are. It says more than its parent
        only to people who know of other kinds, so the version has to be sure of it by itself.
        """
        node, last = chosen, int(self.decisions.last[chosen])
        while node != last:
            (below,) = self.tree.children[node]
            deep = self.rule.maximum is not None and self.tree.levels[below] >= self.rule.maximum
            if deep or log_p[below] - log_p[chosen] < math.log(self.rule.target):
                return node, below
            node = below
        return node, None


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
        EarlierReleaseError: an earlier release trained it, and a training is needed.
        UnknownVersionError, ModelStoreError: it is not there, or not whole.
    """
    manifest = store.manifest(project.key, version)
    check_runs(manifest, version)
    tensors = store.weights(project.key, version)
    learnt = LabelTree.from_json(manifest.tree)
    weights = _split(tensors, EVIDENCE)[1]
    own_backbone, weights = _split(weights, BACKBONE)
    head = build_head(learnt, manifest.network)
    try:
        head.load_state_dict(weights)
    except RuntimeError as error:
        raise ModelStoreError(
            f"the weights of {version} do not fit its manifest: {error}"
        ) from error
    if tree is not None and tree != learnt:
        head = build_head(tree, manifest.network)
        transfer_weights(weights, learnt, head)
    calibration = calibration_for(project, manifest, read_evidence(tensors))
    return Predictor(
        version=version,
        tree=tree or learnt,
        head=head.to(device),
        rule=DepthRule.from_json(calibration["rule"]),
        backbone=(manifest.backbone["name"], manifest.backbone["fingerprint"]),
        backbone_weights=own_backbone,
        learnt=learnt,
        decisions=Decisions.of(learnt).within(tree or learnt),
        familiarity=read_familiarity(tensors),
    )


def build_head(tree: LabelTree, network: Mapping[str, Any]) -> HRNHead:
    """Build the head that a manifest describes, with fresh weights.

    Raises:
        EarlierReleaseError: its kind is an earlier release's.
        ModelStoreError: its kind or its sizes are not known to this release.
    """
    check_runs(Manifest(network=network), "this version")
    sizes = {name: value for name, value in network.items() if name not in ("kind", "channels")}
    try:
        return HRNHead(tree, network["channels"], **sizes)
    except (TypeError, ValueError) as error:
        raise ModelStoreError(f"a head that this release cannot build: {error}") from error


def runs_here(manifest: Manifest) -> bool:
    """Tell whether this release can run a version's head."""
    return manifest.runs_here


def check_runs(manifest: Manifest, version: str) -> None:
    """Refuse a version whose head this release cannot run.

    Raises:
        EarlierReleaseError: an earlier release trained it, and a training is needed.
        ModelStoreError: its kind is not known.
    """
    kind = manifest.network.get("kind")
    if not runs_here(manifest):
        raise EarlierReleaseError(
            f"{version} was trained by an earlier release, whose models this one cannot run: a "
            "training is needed. It starts by itself, or with `hrn train`; pre-labels that stand "
            "in Label Studio stay until then"
        )
    if kind != KIND:
        raise ModelStoreError(f"network kind {kind!r} is not known to this release: {KIND}")


def calibration_for(
    project: Project, manifest: Manifest, seen: Evidence | None
) -> Mapping[str, Any]:
    """Return the version's calibration, fitted again if the project asks for something else.

    What holds for labels on all levels need not hold for those that other depth limits leave, so
    new limits need another fit just as a new target does. Without evidence nothing can be promised
    for another target, and nothing is shown.

    Args:
        project: what it asks for.
        manifest: the version's.
        seen: its evidence, as `read_evidence` returns it.
    """
    own = manifest.calibration
    rule = DepthRule.from_json(own["rule"])
    target = project.target_accuracy or rule.target
    asked = replace(
        rule, target=target, minimum=project.minimum_depth, maximum=project.maximum_depth
    )
    if asked == rule and project.strict == rule.strict:
        return own
    if seen is not None:
        return _fitted(seen, asked, strict=project.strict)
    if target <= rule.target and project.strict <= rule.strict:
        return {**own, "rule": asked.to_json()}
    return _nothing(replace(asked, price=None))


def _fitted(seen: Evidence, asked: DepthRule, *, strict: bool) -> dict[str, Any]:
    fitted = fit_rule(
        seen, target=asked.target, minimum=asked.minimum, maximum=asked.maximum, strict=strict
    )
    return fitted.to_json()


def _nothing(rule: DepthRule) -> dict[str, Any]:
    return Fitted(rule, "none", 0, 0, 0.0, 0.0).to_json()


def followed_rule(store: ModelStore, key: str, version: str, own: DepthRule) -> DepthRule:
    """Return the rule that feedback has led to, the version's own where there is none.

    The version's own one, too, where feedback was followed under another target or other depth
    limits than the project asks for now: what held for those is no promise for these.
    """
    try:
        kept = (store.read_following(key, version) or {}).get("rule")
        rule = own if kept is None else DepthRule.from_json(kept)
    except (ModelStoreError, KeyError, TypeError, ValueError, AttributeError) as error:
        log.warning("the version's own rule holds project=%s version=%s: %s", key, version, error)
        return own
    return rule if asks(rule) == asks(own) else own


def asks(rule: DepthRule) -> tuple[object, ...]:
    """Return what a rule was made to fulfil, without how it does."""
    return rule.target, rule.minimum, rule.maximum, rule.strict


def read_evidence(tensors: Mapping[str, Tensor]) -> Evidence | None:
    """Read what the held-out images said; None where the version did not keep it."""
    if f"{EVIDENCE}depth" not in tensors:
        return None
    depth = tensors[f"{EVIDENCE}depth"].long().numpy()
    right = tensors[f"{EVIDENCE}right"].long().numpy()
    found, like = (tensors.get(f"{EVIDENCE}{name}") for name in ("drawn", "like"))
    return Evidence(
        tensors[f"{EVIDENCE}probability"].double().numpy(),
        right,
        depth,
        None if found is None else found.numpy(),
        None if like is None else like.double().numpy(),
    )


def evidence_tensors(seen: Evidence) -> dict[str, Tensor]:
    """Return what a version's file keeps of its evidence."""
    kept = {
        f"{EVIDENCE}probability": torch.from_numpy(seen.probability).float(),
        f"{EVIDENCE}right": torch.from_numpy(seen.right).to(torch.int8),
        f"{EVIDENCE}depth": torch.from_numpy(seen.at).to(torch.int16),
    }
    if seen.like is not None:
        kept[f"{EVIDENCE}like"] = torch.from_numpy(seen.like).float()
    return kept


def familiarity_tensors(known: Familiarity | None) -> dict[str, Tensor]:
    """Return what a version's file keeps of the labelled images' looks."""
    if known is None:
        return {}
    return {
        f"{EVIDENCE}centres": torch.from_numpy(known.centres).half(),
        f"{EVIDENCE}distances": torch.from_numpy(known.distances),
    }


def read_familiarity(tensors: Mapping[str, Tensor]) -> Familiarity | None:
    """Return what the file of a version says of the labelled images' looks; None where nothing."""
    if f"{EVIDENCE}centres" not in tensors:
        return None
    centres, distances = (tensors[f"{EVIDENCE}{name}"] for name in ("centres", "distances"))
    return Familiarity(centres.float().numpy(), distances.float().numpy())


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
        """Return the version, ready to answer.

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
        """List what is in memory, for people."""
        with self._lock:
            return [f"{key[0]}/{key[1]}" for key in self._loaded]
