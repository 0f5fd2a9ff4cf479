"""One training of one project: labels, dataset, network, gate, release, one step after the other.

The live version is loaded once before the dataset is built, the store is written once at the end,
and each step in between takes values and returns one.
"""

import logging
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hierarchy import LabelTree
from hierarchy.calibration import fit_rule
from hierarchy.depth_selection import DepthRule
from inference import insight
from inference.augmentation import PLAIN
from inference.errors import ModelError
from inference.feature_extractor import FeatureExtractor
from inference.manifest import Manifest
from inference.predictor import (
    BACKBONE,
    EVIDENCE,
    Predictor,
    evidence_tensors,
    familiarity_tensors,
    runs_here,
)
from inference.store import ModelStore, Project
from studio.annotations import read_task
from studio.errors import ImageError
from studio.label_config import LabelConfig, parse_label_config
from worker import fine_tuning
from worker.asking import asked_at_random
from worker.choosing import go_live
from worker.dataset import Dataset, build_dataset
from worker.errors import MisconfiguredError
from worker.fitting import Report
from worker.gate import RECENT, HeldOut, Verdict, decide, read_held_out
from worker.identity import check_same
from worker.order import Ended, Order, RunState
from worker.parts import Parts
from worker.snapshot import Snapshot, take
from worker.trainer import (
    Candidate,
    Judged,
    RuleSettings,
    Trained,
    check_enough,
    fit_head,
    judge,
)
from worker.training_config import TrainingConfig

log = logging.getLogger(__name__)


def run(order: Order, parts: Parts, progress: Report) -> Ended:
    """Read the labels, learn from them, and tell everyone of a version that went live.

    Raises:
        TooFewLabelsError, StudioError, ModelError, JobError: see ``worker.jobs``.
    """
    project = parts.store.project(order.project)
    if project is None:
        raise MisconfiguredError(
            f"project {order.project} has never called this backend: connect it first"
        )
    progress("reading labels", 0, 1)
    parts.board.events_read(project.key)
    project, config, snapshot = read_labels(project, parts)
    parts.board.note_attempt(project.key, snapshot.read)
    ended = learn(order, project, config, snapshot, parts, progress)
    if ended.state == RunState.PUBLISHED and ended.version:
        go_live(parts, project, ended.version)
    return ended


def learn(  # noqa: PLR0913 - whose labels, which, and what to work with
    order: Order,
    project: Project,
    config: LabelConfig,
    snapshot: Snapshot,
    parts: Parts,
    progress: Report,
) -> Ended:
    """Train, compare, publish, point. Needs no queue, and Label Studio only for its images.

    Raises:
        TooFewLabelsError, StudioError, ModelError, JobError: see ``worker.jobs``.
    """
    started, tree, store = time.monotonic(), config.tree, parts.store
    name = store.current(project.key)
    check_enough(len(snapshot.tasks), snapshot.named, snapshot.ignored)
    asked_for = order.force or bool(order.fine_tune)
    if name and not asked_for and _has_learnt(store, project, name, snapshot):
        why = f"{name} has learnt from all {len(snapshot.labels)} labels"
        return Ended(RunState.NOTHING_NEW, why)
    live = load_live(parts, project, name, tree) if name else None

    tune = fine_tuning.wanted(order.fine_tune, parts.settings)
    extractor = parts.extractors.base()
    settings = TrainingConfig.for_networks([one.backbone.channels for one in extractor.networks])
    # A backbone that learns sees images, not features.
    augmentations = (PLAIN,) if tune else settings.augmentations
    dataset = build_dataset(
        snapshot,
        extractor,
        parts.settings.group_field,
        progress,
        augmentations,
        asked_at_random(store, project.key),
    )
    dataset.check_images(len(snapshot.tasks))
    unused = Counter(snapshot.ignored) + Counter(dataset.skipped)
    check_enough(dataset.examples.images, dataset.examples.named, unused)
    if live and live.folds is not None:
        dataset = dataset.with_folds(live.folds)

    rule = _rule_settings(project, parts, live)
    if tune:
        candidate = fine_tuning.fit(tree, dataset, parts, project.key, rule, progress)
    else:
        candidate = fit_head(tree, dataset.examples, extractor, settings, rule, progress)
    trained = candidate.trained
    new = _held_out(dataset, trained.judged)
    verdict = _compare(new, live, trained, dataset, tree, parts, rule, force=order.force)

    progress("publishing", 0, 1)
    manifest = Manifest(
        project=project.project,
        tree=tree.to_json(),
        network=candidate.network,
        backbone=candidate.backbone,
        recipe=candidate.config,
        calibration=trained.fitted.to_json(),
        metrics={**trained.metrics, "drawn": new.drawn_figures()},
        labels=_labels(snapshot, dataset),
        trained_through=snapshot.trained_through,
        parent=name,
        gate={"passed": verdict.passed, "why": verdict.why},
        seconds=round(time.monotonic() - started, 2),
    )
    version = store.publish(project.key, manifest, tensors_of(tree, dataset, candidate))
    if tune:
        fine_tuning.forget(parts.settings, project.key)
    figures = {**trained.metrics, "calibration": trained.fitted.to_json()}
    ended = Ended(RunState.PUBLISHED, verdict.why, version, figures)
    return _release(ended, order, store, project, name, verdict, progress)


# What a training starts from


def read_labels(project: Project, parts: Parts) -> tuple[Project, LabelConfig, Snapshot]:
    """Read the project's label config and all its labels from Label Studio.

    Raises:
        LabelConfigError: the config of today has no tree.
        StudioError: Label Studio could not be reached, or refused.
        MisconfiguredError: the number belongs to another project now.
    """
    settings = parts.studio.settings(project.number)
    check_same(project, settings)
    xml = str(settings["label_config"])
    project = parts.store.register(
        Project(
            project.key,
            project.number,
            project.project,
            project.label_studio,
            xml,
            str(settings.get("title", "")),
        )
    )
    config = parse_label_config(xml)
    tasks = (
        read_task(task, config) for task in parts.studio.tasks(project.number, annotated_only=True)
    )
    return project, config, take(tasks, config.tree)


def _has_learnt(store: ModelStore, project: Project, version: str, snapshot: Snapshot) -> bool:
    """Tell whether a version that runs here has learnt from exactly these labels."""
    try:
        manifest = store.manifest(project.key, version)
        labels = manifest.labels
        same: bool = labels["digest"] == snapshot.digest and not labels["skipped"]
        return same and runs_here(manifest)
    except (ModelError, KeyError):
        return False


@dataclass(frozen=True)
class Live:
    """The live version, as far as a training needs it.

    Attributes:
        name: of the version.
        rule: its depth rule; None where it cannot be read, or its features are not ours.
        learnt: marks of the images that it has learnt from.
        folds: by an image's mark, the fold it was in; None if nothing was held out.
        predictor: None where it cannot be compared with.
        problem: why it cannot.
        held_out: what the versions that were live last held out, the live one first.
    """

    name: str
    rule: DepthRule | None = None
    learnt: frozenset[int] | None = None
    folds: Mapping[int, int] | None = None
    predictor: Predictor | None = None
    problem: str = ""
    held_out: Mapping[str, HeldOut] = field(default_factory=dict)


def load_live(parts: Parts, project: Project, name: str, tree: LabelTree) -> Live:
    """Load all that a training goes on from and is compared with; what fails is said in words."""
    live, store = Live(name), parts.store
    try:
        manifest = store.manifest(project.key, name)
        if not runs_here(manifest):  # its folds are of other features
            why = f"{name} is of an earlier release: nothing to compare with"
            return replace(live, problem=why)
        tensors = store.weights(project.key, name)
        live = replace(live, rule=DepthRule.from_json(manifest.calibration["rule"]))
        marks, folds = tensors.get(f"{EVIDENCE}pictures"), tensors.get(f"{EVIDENCE}folds")
        if marks is not None:
            live = replace(live, learnt=frozenset(marks.tolist()))
            if folds is not None:
                both = zip(marks.tolist(), folds.tolist(), strict=True)
                live = replace(live, folds=dict(both))
        predictor = parts.predictors.get(project, name, tree)
        held_out = _recently_live(store, project, name, tree)
    except ModelError as error:
        log.info("not loaded project=%s version=%s: %s", project.key, name, error)
        return replace(live, problem=f"{name} cannot be compared with: {error}")
    return replace(live, predictor=predictor, held_out=held_out)


def _recently_live(
    store: ModelStore, project: Project, live: str, tree: LabelTree
) -> dict[str, HeldOut]:
    """Return what the versions that were live last held out, the live one first."""
    names = [str(move["to"]) for move in reversed(store.history(project.key))]
    found: dict[str, HeldOut] = {}
    for name in list(dict.fromkeys([live, *names]))[:RECENT]:
        try:
            manifest = store.manifest(project.key, name)
            same = runs_here(manifest) and LabelTree.from_json(manifest.tree) == tree
            one = read_held_out(store.weights(project.key, name)) if same else None
        except ModelError:  # deleted since
            continue
        if one is not None:
            found[name] = one
    return found


def _rule_settings(project: Project, parts: Parts, live: Live | None) -> RuleSettings:
    return {
        "target": project.target_accuracy or parts.settings.target_accuracy,
        "minimum": project.minimum_depth,
        "maximum": project.maximum_depth,
        "strict": project.strict,
        "former": live.rule if live else None,
    }


# The gate


def _held_out(dataset: Dataset, judged: Judged) -> HeldOut:
    return HeldOut(dataset.marks[judged.images], judged.truth, judged.right, judged.seen)


def _compare(  # noqa: PLR0913 - both versions and what they are compared on
    new: HeldOut,
    live: Live | None,
    trained: Trained,
    dataset: Dataset,
    tree: LabelTree,
    parts: Parts,
    rule: RuleSettings,
    *,
    force: bool,
) -> Verdict:
    """Hold the candidate against the live version on images that neither has learnt from."""
    if live is None:
        return Verdict(passed=True, why="the first version")
    if live.predictor is None:
        return Verdict(passed=True, why=live.problem)
    try:
        extractor = parts.extractors.of(live.predictor)
    except ModelError as error:
        return Verdict(passed=True, why=f"{live.name} cannot be compared with: {error}")
    log_p = np.full_like(trained.held_out, np.nan)
    fresh = _fresh(dataset, trained.held_out, live.learnt)
    rows, found = _live_answers(live.predictor, extractor, dataset, fresh)
    log_p[rows] = found
    since = _held_out(dataset, judge(tree, dataset.examples, log_p))
    return decide(new, since, live.name, live.held_out, partial(fit_rule, **rule), force=force)


def _fresh(
    dataset: Dataset, held_out: NDArray[np.float64], learnt: frozenset[int] | None
) -> Sequence[int]:
    """Return positions of images that were held out and that the live version never saw."""
    if learnt is None:
        return []
    new = np.array([mark not in learnt for mark in dataset.marks.tolist()], dtype=bool)
    fresh: list[int] = np.flatnonzero(
        new & (dataset.examples.truth >= 0) & ~np.isnan(held_out[:, 0])
    ).tolist()
    return fresh


def _live_answers(
    predictor: Predictor, extractor: FeatureExtractor, dataset: Dataset, fresh: Sequence[int]
) -> tuple[list[int], NDArray[np.float64]]:
    """Return positions of images and the live version's log-probabilities of them.

    An image that vanished since the dataset was built is left out.
    """
    found = zip(fresh, extractor.vectors([dataset.refs[at] for at in fresh]), strict=True)
    read = {at: one for at, one in found if not isinstance(one, ImageError)}
    if not read:
        return [], np.empty((0, len(predictor.tree)))
    return list(read), predictor.log_probabilities(np.stack(list(read.values())))


# What is written


def _release(  # noqa: PLR0913 - a version, and who decides on it
    ended: Ended,
    order: Order,
    store: ModelStore,
    project: Project,
    live: str | None,
    verdict: Verdict,
    progress: Report,
) -> Ended:
    """Point the project at what was published, unless it is worse or a person chose another."""
    version = str(ended.version)
    if not verdict.passed:
        why = (
            f"{live} stays live, {version} stays in the store: {verdict.why} "
            f"(`hrn promote {version}` makes it live all the same)"
        )
        return replace(ended, state=RunState.REFUSED, why=why)
    now, live = store.project(project.key) or project, store.current(project.key)
    if now.pinned and live and not runs_here(store.manifest(project.key, live)):
        now = replace(now, pinned=False)  # it answers nothing, so it is nobody's choice any more
        store.save_project(now)
    if now.pinned:  # also by a rollback while this was training
        why = f"{version} is ready; {live} was chosen by hand and stays live"
        return replace(ended, state=RunState.KEPT_BACK, why=why)
    progress("publishing", 1, 1)  # a last chance to notice that this job was cancelled or replaced
    store.point(project.key, version, reason=f"{order.reason}: {verdict.why}")
    return ended


def tensors_of(tree: LabelTree, dataset: Dataset, candidate: Candidate) -> dict[str, Tensor]:
    """Return all that a version's file of weights holds."""
    trained = candidate.trained
    weights = {
        **trained.head.state_dict(),
        **{f"{BACKBONE}{name}": value for name, value in candidate.backbone_weights.items()},
    }
    return {
        **{name: value.detach().cpu() for name, value in weights.items()},
        **evidence_tensors(trained.seen),
        **familiarity_tensors(trained.familiarity),
        f"{EVIDENCE}pictures": torch.from_numpy(dataset.marks),
        f"{EVIDENCE}folds": torch.from_numpy(trained.folds),
        **insight.as_tensors(
            truth=trained.judged.truth,
            nodes=trained.judged.nodes,
            labels=labels_by_node(tree, dataset.examples.target),
        ),
        **_held_out(dataset, trained.judged).to_tensors(),
    }


def labels_by_node(tree: LabelTree, target: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return ``(N,)`` labels that name exactly a node; "one of these" counts above all of them."""
    rows = target.reshape(len(target), -1)
    single = (rows >= 0).sum(axis=1) == 1
    counts = np.bincount(rows[single].max(axis=1), minlength=len(tree))
    for row in rows[~single].tolist():
        above = tree.common_ancestor(node for node in row if node >= 0)
        if above is not None:
            counts[above] += 1
    return counts


def _labels(snapshot: Snapshot, dataset: Dataset) -> dict[str, Any]:
    """Return what the manifest says of the labels."""
    return {
        **snapshot.summary(),
        "pictures": dataset.examples.images,
        "drawn": int(dataset.drawn.sum()),
        "skipped": dataset.skipped,
    }


__all__ = ["Ended", "Live", "labels_by_node", "learn", "load_live", "read_labels", "run"]
