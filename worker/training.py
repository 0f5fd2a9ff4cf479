"""One training of one project, from reading labels to pointing at the new version."""

import logging
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hierarchy import LabelTree
from hierarchy.calibration import Evidence, fit_rule
from hierarchy.depth_selection import DepthRule, candidates
from inference import insight
from inference.augmentation import PLAIN
from inference.errors import EarlierReleaseError, ModelError
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
from inference.store import Project
from studio.annotations import read_task
from studio.errors import ImageError, ImageUnavailableError
from studio.label_config import LabelConfig, parse_label_config
from worker import fine_tuning, trainer
from worker.asking import asked_at_random
from worker.choosing import go_live
from worker.errors import MisconfiguredError
from worker.fitting import Report
from worker.gate import (
    LEAST,
    RECENT,
    HeldOut,
    Verdict,
    compare,
    compare_held_out,
    compare_shown,
    read_held_out,
)
from worker.gathering import Gathered, gather
from worker.identity import check_same
from worker.making import Made, fit_head
from worker.order import Order
from worker.parts import Parts
from worker.snapshot import Snapshot, take
from worker.training_config import TrainingConfig

log = logging.getLogger(__name__)

#: Share of labelled pictures that may be unreadable before a training is put off.
MOST_MISSING = 0.25


@dataclass(frozen=True)
class Ended:
    """How a training ended.

    Attributes:
        state: published, refused, kept back, nothing new, too few labels, cancelled, postponed, ...
        why: the reason, for people.
        version: what was published.
        figures: its metrics.
    """

    state: str
    why: str
    version: str | None = None
    figures: Mapping[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Plain data for the project's list of runs."""
        return {
            "state": self.state,
            "why": self.why,
            "version": self.version,
            "figures": dict(self.figures),
        }


def run(order: Order, parts: Parts, progress: Report) -> Ended:
    """Read the labels, learn from them, and tell everyone of a version that went live.

    Raises:
        TooFewLabelsError, StudioError, ModelError, JobError: see ``worker.jobs``.
    """
    project = _known(order.project, parts)
    progress("reading labels", 0, 1)
    parts.board.events_read(project.key)
    project, config, snapshot = read_labels(project, parts)
    parts.board.note_attempt(project.key, snapshot.read)
    ended = learn(order, project, config, snapshot, parts, progress)
    if ended.state == "published" and ended.version:
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
    """Train, compare, publish, point. Needs no queue, and Label Studio only for its pictures.

    Raises:
        TooFewLabelsError, StudioError, ModelError, JobError: see ``worker.jobs``.
    """
    started = time.monotonic()
    live = parts.store.current(project.key)
    named = {node for label in snapshot.labels for node in label.nodes}
    trainer.check_enough(len(snapshot.tasks), named, snapshot.ignored)
    asked_for = order.force or bool(order.fine_tune)
    if live and not asked_for and _same_labels(parts, project, live, snapshot):
        return Ended("nothing new", f"{live} has learnt from all {len(snapshot.labels)} labels")
    extractor = parts.extractors.base()
    networks = [one.backbone.channels for one in extractor.networks]
    settings = TrainingConfig.for_networks(networks)
    tune = fine_tuning.wanted(order.fine_tune, parts.settings)
    # A backbone that learns sees images, not features.
    augmentations = (PLAIN,) if tune else settings.augmentations
    drawn = asked_at_random(parts.store, project.key)
    gathered = gather(
        snapshot, extractor, parts.settings.group_field, progress, augmentations, drawn
    )
    _check_pictures(gathered, len(snapshot.tasks))
    reasons = Counter(snapshot.ignored) + Counter(gathered.skipped)
    trainer.check_enough(gathered.examples.images, gathered.examples.named, reasons)
    gathered, former = _going_on(parts, project, live, gathered)
    if tune:
        made = fine_tuning.fit(config.tree, gathered, parts, project, progress, former=former)
    else:
        made = fit_head(config.tree, gathered, parts, project, progress, settings, former)
    trained = made.trained
    ours = _held_out(config.tree, gathered, trained.held_out, trained.seen)
    verdict = _gate(order, parts, project, live, config, gathered, trained, ours, former)
    progress("publishing", 0, 1)
    manifest = _manifest(project, live, config, snapshot, gathered, made, verdict, started)
    metrics = {**trained.metrics, "drawn": ours.drawn_figures()}
    manifest = replace(manifest, metrics=metrics)
    tensors = {**_tensors(config.tree, gathered, made), **ours.to_tensors()}
    version = parts.store.publish(project.key, manifest, tensors)
    if tune:
        fine_tuning.forget(parts.settings, project.key)
    figures = {**made.trained.metrics, "calibration": made.trained.fitted.to_json()}
    if not verdict.passed:
        return Ended(
            "refused",
            f"{live} stays live, {version} stays in the store: {verdict.why} "
            f"(`hrn promote {version}` makes it live all the same)",
            version,
            figures,
        )
    now, live = parts.store.project(project.key) or project, parts.store.current(project.key)
    if now.pinned and live and not _runs(parts, project, live):
        now = replace(now, pinned=False)  # it answers nothing, so it is nobody's choice any more
        parts.store.save_project(now)
    if now.pinned:  # also by a rollback while this was training
        return Ended(
            "kept back",
            f"{version} is ready; {live} was chosen by hand and stays live",
            version,
            figures,
        )
    progress("publishing", 1, 1)  # a last chance to notice that this job was cancelled or replaced
    parts.store.point(project.key, version, reason=f"{order.reason}: {verdict.why}")
    return Ended("published", verdict.why, version, figures)


def read_labels(project: Project, parts: Parts) -> tuple[Project, LabelConfig, Snapshot]:
    """The project's label config and all its labels, from Label Studio.

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


def _known(key: str, parts: Parts) -> Project:
    project = parts.store.project(key)
    if project is None:
        raise MisconfiguredError(f"project {key} has never called this backend: connect it first")
    return project


def _check_pictures(gathered: Gathered, wanted: int) -> None:
    """An outage must not look like a project with few labels: the training waits for its end.

    Raises:
        ImageError: more than a quarter of the images could not be read, and never will be.
        ImageUnavailableError: some of them may be had later.
    """
    missing = sum(gathered.skipped.values())
    if missing > wanted * MOST_MISSING:
        reason = max(gathered.skipped, key=lambda reason: gathered.skipped[reason])
        kind = ImageUnavailableError if gathered.passing else ImageError
        raise kind(f"{missing} of {wanted} images could not be read, mostly: {reason}")


def _same_labels(parts: Parts, project: Project, live: str, snapshot: Snapshot) -> bool:
    try:
        manifest = parts.store.manifest(project.key, live)
        labels = manifest.labels
        same: bool = labels["digest"] == snapshot.digest and not labels["skipped"]
        return same and runs_here(manifest)
    except (ModelError, KeyError):
        return False


def _runs(parts: Parts, project: Project, version: str) -> bool:
    """Tell whether a version is of a release whose heads this one can run."""
    return runs_here(parts.store.manifest(project.key, version))


def _going_on(
    parts: Parts, project: Project, live: str | None, gathered: Gathered
) -> tuple[Gathered, DepthRule | None]:
    """What a version goes on from: the live one's folds and its depth rule."""
    try:
        if live is None or not _runs(parts, project, live):  # its folds are of other features
            return gathered, None
        tensors = parts.store.weights(project.key, live)
        rule = DepthRule.from_json(parts.store.manifest(project.key, live).calibration["rule"])
    except ModelError as error:
        log.info("nothing to go on from project=%s version=%s: %s", project.key, live, error)
        return gathered, None
    folds = tensors.get(f"{EVIDENCE}folds")
    if folds is None:  # nothing was checked when it was trained
        return gathered, rule
    known = dict(zip(tensors[f"{EVIDENCE}pictures"].tolist(), folds.tolist(), strict=True))
    before = np.array([known.get(mark, -1) for mark in gathered.marks.tolist()], dtype=np.int64)
    return replace(gathered, examples=replace(gathered.examples, before=before)), rule


def _held_out(
    tree: LabelTree, gathered: Gathered, log_p: NDArray[np.float64], seen: Evidence | None = None
) -> HeldOut:
    """A version's answers: ``(P, N)`` log-probabilities, NaN rows for what it did not hold out."""
    examples = gathered.examples
    rows = trainer.judged(examples, log_p)
    seen = trainer.judge(tree, examples, log_p)[0] if seen is None else seen
    truth = examples.truth[rows]
    return HeldOut(gathered.marks[rows], truth, _right(log_p[rows], truth, tree), seen)


def _gate(  # noqa: PLR0913 - both versions and what they are compared on
    order: Order,
    parts: Parts,
    project: Project,
    live: str | None,
    config: LabelConfig,
    gathered: Gathered,
    trained: trainer.Trained,
    ours: HeldOut,
    former: DepthRule | None,
) -> Verdict:
    if live is None:
        return Verdict(passed=True, why="the first version")
    try:
        predictor = parts.predictors.get(project, live, config.tree)
        known = parts.store.weights(project.key, live).get(f"{EVIDENCE}pictures")
        extractor = parts.extractors.of(predictor)
    except EarlierReleaseError:
        return Verdict(passed=True, why=f"{live} is of an earlier release: nothing to compare with")
    except ModelError as error:
        return Verdict(passed=True, why=f"{live} cannot be compared with: {error}")
    others = _recent(parts, project, live, config.tree)
    fresh = _fresh(gathered, trained.held_out, known)
    found, judged = _judged(predictor, extractor, gathered, fresh)
    theirs = np.full_like(trained.held_out, np.nan)
    theirs[[fresh[at] for at in judged]] = found
    since = _held_out(config.tree, gathered, theirs)
    if len(since) < LEAST and live in others:
        verdict = compare_held_out(ours, others[live], live)
    else:
        mine, its = ours.shared_with(since)
        verdict = compare(mine.right, its.right, live)
    held = (compare_held_out(ours, one, name) for name, one in others.items())
    verdict = next((one for one in (verdict, *held) if not one.passed), verdict)
    if not verdict.passed or live not in others:
        return verdict
    shown = _shown(parts, project, ours, others[live].joined(since), former, live)
    if not shown.passed and not order.force:
        return shown
    by_hand = "" if shown.passed else "asked for by hand, so it goes live although "
    return replace(verdict, why=f"{verdict.why}; {by_hand}{shown.why}".removesuffix("; "))


def _recent(parts: Parts, project: Project, live: str, tree: LabelTree) -> dict[str, HeldOut]:
    """The versions that were live last, the live one first, and what they held out."""
    names = [str(move["to"]) for move in reversed(parts.store.history(project.key))]
    found: dict[str, HeldOut] = {}
    for name in list(dict.fromkeys([live, *names]))[:RECENT]:
        try:
            manifest = parts.store.manifest(project.key, name)
            same = runs_here(manifest) and LabelTree.from_json(manifest.tree) == tree
            one = read_held_out(parts.store.weights(project.key, name)) if same else None
        except ModelError:  # deleted since
            continue
        if one is not None:
            found[name] = one
    return found


def _fresh(
    gathered: Gathered, held_out: NDArray[np.float64], known: Tensor | None
) -> Sequence[int]:
    """Positions of images that the live version has not learnt from and the new one held out."""
    if known is None:
        return []
    before = set(known.tolist())
    new = np.array([mark not in before for mark in gathered.marks.tolist()], dtype=bool)
    held: list[int] = np.flatnonzero(
        new & (gathered.examples.truth >= 0) & ~np.isnan(held_out[:, 0])
    ).tolist()
    return held


def _shown(  # noqa: PLR0913 - both versions' answers, and the settings
    parts: Parts,
    project: Project,
    ours: HeldOut,
    theirs: HeldOut,
    former: DepthRule | None,
    live: str,
) -> Verdict:
    """Both versions' depth rules, fitted to the same images under the settings of now."""
    # By their answers alone: which images are unlike the labelled ones is not what they differ in.
    both = [replace(one, seen=replace(one.seen, like=None)) for one in ours.shared_with(theirs)]
    target = project.target_accuracy or parts.settings.target_accuracy
    new, old = (
        fit_rule(
            one.seen,
            target=target,
            minimum=project.minimum_depth,
            maximum=project.maximum_depth,
            strict=project.strict,
            former=former,
        )
        for one in both
    )
    return compare_shown(new, old, len(both[0]), live)


def _judged(
    predictor: Predictor, extractor: FeatureExtractor, gathered: Gathered, fresh: Sequence[int]
) -> tuple[NDArray[np.float64], list[int]]:
    """Return the live version's log-probabilities, and the positions in ``fresh`` they are of.

    An image that vanished since it was gathered is left out.
    """
    found = extractor.vectors([gathered.refs[at] for at in fresh])
    kept = [(at, one) for at, one in enumerate(found) if not isinstance(one, ImageError)]
    if not kept:
        return np.empty((0, len(predictor.tree))), []
    vectors = np.stack([one for _, one in kept])
    return predictor.log_probabilities(vectors), [at for at, _ in kept]


def _right(
    log_p: NDArray[np.float64], truth: NDArray[np.int64], tree: LabelTree
) -> NDArray[np.bool_]:
    """Is the best node of the truth's level the truth?"""
    nodes = candidates(log_p, tree).nodes
    levels = np.array([tree.levels[node] for node in truth.tolist()], dtype=np.int64)
    right: NDArray[np.bool_] = nodes[np.arange(len(truth)), levels] == truth
    return right


def _tensors(tree: LabelTree, gathered: Gathered, made: Made) -> dict[str, Tensor]:
    seen, examples = made.trained.seen, gathered.examples
    judged = trainer.judged(examples, made.trained.held_out)
    return {
        **{name: value.detach().cpu() for name, value in made.trained.head.state_dict().items()},
        **{
            f"{BACKBONE}{name}": value.detach().cpu()
            for name, value in made.backbone_weights.items()
        },
        **evidence_tensors(seen),
        **familiarity_tensors(made.trained.familiarity),
        f"{EVIDENCE}pictures": torch.from_numpy(gathered.marks),
        f"{EVIDENCE}folds": torch.from_numpy(made.trained.folds),
        **insight.as_tensors(
            truth=examples.truth[judged],
            nodes=candidates(made.trained.held_out[judged], tree).nodes,
            labels=_labels_by_node(tree, examples.target),
        ),
    }


def _labels_by_node(tree: LabelTree, target: NDArray[np.int64]) -> NDArray[np.int64]:
    """``(N,)`` labels that name exactly this node; "one of these" counts for what is above all."""
    rows = target.reshape(len(target), -1)
    single = (rows >= 0).sum(axis=1) == 1
    counts = np.bincount(rows[single].max(axis=1), minlength=len(tree))
    for row in rows[~single].tolist():
        above = tree.common_ancestor(node for node in row if node >= 0)
        if above is not None:
            counts[above] += 1
    return counts


def _manifest(  # noqa: PLR0913 - everything there is to say of a version
    project: Project,
    parent: str | None,
    config: LabelConfig,
    snapshot: Snapshot,
    gathered: Gathered,
    made: Made,
    verdict: Verdict,
    started: float,
) -> Manifest:
    return Manifest(
        project=project.project,
        tree=config.tree.to_json(),
        network=made.network,
        backbone=made.backbone,
        recipe=made.config,
        calibration=made.trained.fitted.to_json(),
        metrics=made.trained.metrics,
        labels={
            **snapshot.summary(),
            "pictures": gathered.examples.images,
            "drawn": int(gathered.drawn.sum()),
            "skipped": gathered.skipped,
        },
        trained_through=snapshot.trained_through,
        parent=parent,
        gate={"passed": verdict.passed, "why": verdict.why},
        seconds=round(time.monotonic() - started, 2),
    )


__all__ = [
    "Ended",
    "Gathered",
    "Made",
    "gather",
    "go_live",
    "learn",
    "read_labels",
    "run",
]
