"""One training of one project, from reading labels to pointing at the new version."""

import hashlib
import logging
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hierarchy import LabelTree
from hierarchy.choice import candidates
from models.answers import maps_of
from models.errors import ModelError
from models.gallery import Gallery
from models.predictor import BACKBONE, EVIDENCE
from models.store import Project
from studio.annotations import read_task
from studio.connection import announce
from studio.errors import PictureError, StudioError
from studio.labelconfig import LabelConfig, parse_label_config
from worker import fine_tuning, trainer
from worker.errors import MisconfiguredError
from worker.gate import LEAST, Verdict, compare, compare_figures
from worker.identity import check_same
from worker.order import Order
from worker.parts import Parts
from worker.recipe import Recipe
from worker.snapshot import Snapshot, agreed, take

log = logging.getLogger(__name__)


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


def run(order: Order, parts: Parts, progress: trainer.Report) -> Ended:
    """Read the labels, learn from them, and tell everyone of a version that went live.

    Raises:
        TooFewLabelsError, StudioError, ModelError, JobError: see ``worker.jobs``.
    """
    project = _known(order.project, parts)
    progress("reading labels", 0, 1)
    parts.board.events_read(project.key)
    project, config, snapshot = read_labels(project, parts)
    parts.board.note_attempt(project.key, snapshot.trained_through)
    ended = learn(order, project, config, snapshot, parts, progress)
    if ended.state == "published" and ended.version:
        go_live(parts, project, ended.version)
        parts.galleries.prune(int(parts.settings.cache_gb * 1e9))
    return ended


def learn(  # noqa: PLR0913 - whose labels, which, and what to work with
    order: Order,
    project: Project,
    config: LabelConfig,
    snapshot: Snapshot,
    parts: Parts,
    progress: trainer.Report,
) -> Ended:
    """Train, compare, publish, point. Needs no queue, and Label Studio only for its pictures.

    Raises:
        TooFewLabelsError, StudioError, ModelError, JobError: see ``worker.jobs``.
    """
    started = time.monotonic()
    live = parts.store.current(project.key)
    if live and not order.force and _same_labels(parts, project, live, snapshot):
        return Ended("nothing new", f"{live} has learnt from all {len(snapshot.labels)} labels")
    gallery = parts.galleries.base()
    gathered = gather(snapshot, gallery, parts.settings.group_field, progress)
    tune = fine_tuning.wanted(order.fine_tune, parts.settings)
    made = (fine_tuning.fit if tune else _fit_head)(config.tree, gathered, parts, project, progress)
    verdict = _gate(parts, project, live, config, gathered, made.trained)
    progress("publishing", 0, 1)
    manifest = _manifest(project, live, config, snapshot, gathered, made, verdict, started)
    version = parts.store.publish(project.key, manifest, _tensors(gathered, made))
    figures = {**made.trained.metrics, "calibration": made.trained.fitted.to_json()}
    if not verdict.passed:
        return Ended(
            "refused",
            f"{version} stays in the store, {live} stays live: {verdict.why}",
            version,
            figures,
        )
    now, live = parts.store.project(project.key) or project, parts.store.current(project.key)
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


def go_live(parts: Parts, project: Project, version: str) -> None:
    """Tell Label Studio, and ask for new pre-labels; neither may undo that the version is live."""
    from worker.queue import RedisError  # `learn` also runs where no queue is installed

    if parts.settings.backend_url:
        try:
            announce(parts.studio, project.number, parts.settings.backend_url, version)
        except (StudioError, MisconfiguredError) as error:
            log.warning("not announced yet project=%s version=%s: %s", project.key, version, error)
    try:
        parts.board.ask_refresh(project.key, version)
    except (RedisError, MisconfiguredError) as error:
        log.warning("refresh not asked for yet project=%s: %s", project.key, error)


@dataclass(frozen=True)
class Gathered:
    """Labelled pictures whose features are at hand.

    Attributes:
        examples: for the trainer.
        refs: address and task of each picture, in the examples' order.
        marks: ``(P,)`` a number for each picture, by which versions remember what they learnt from.
        newest: ``(P,)`` when each picture's labels last changed, as Label Studio writes it.
        skipped: reasons for which pictures could not be used, counted.
    """

    examples: trainer.Examples
    refs: Sequence[tuple[str, int]]
    marks: NDArray[np.int64]
    newest: Sequence[str]
    skipped: dict[str, int]


@dataclass(frozen=True)
class Made:
    """A trained network as it will be published.

    Attributes:
        trained: head, rule and figures.
        network: the manifest's description of the head.
        backbone: name and fingerprint.
        recipe: its settings.
        backbone_weights: of a fine-tuned backbone, else empty.
    """

    trained: trainer.Trained
    network: dict[str, Any]
    backbone: dict[str, str]
    recipe: dict[str, Any]
    backbone_weights: Mapping[str, Tensor] = field(default_factory=dict)


def gather(
    snapshot: Snapshot, gallery: Gallery, group_field: str, progress: trainer.Report
) -> Gathered:
    """Fetch every labelled picture and see to its features; skip what fails, with its reason."""
    tasks = [task for task in snapshot.tasks if task.picture is not None]
    items = [(str(task.picture), task.task_id) for task in tasks]
    skipped = Counter[str]()
    kept: list[int] = []
    for done, (position, result) in enumerate(gallery.stream_pairs(items)):  # fills the cache
        if isinstance(result, PictureError):
            skipped[result.reason] += 1
        else:
            kept.append(position)
        progress("fetching pictures", done + 1, len(items))
    kept.sort()
    tasks, refs = [tasks[i] for i in kept], [items[i] for i in kept]
    rows = [(at, label) for at, task in enumerate(tasks) for label in task.labels]

    def read(positions: Sequence[int], mirrored: bool) -> trainer.Maps:  # noqa: FBT001
        return maps_of(gallery, [refs[i] for i in positions], mirrored=mirrored)

    def group(data: Mapping[str, object]) -> str | None:
        value = data.get(group_field) if group_field else None
        return None if value is None else str(value)

    examples = trainer.Examples(
        read=read,
        pictures=len(tasks),
        picture=np.array([at for at, _ in rows], dtype=np.int64),
        target=np.array([label.target for _, label in rows], dtype=np.int64),
        weight=np.array([1 / len(tasks[at].labels) for at, _ in rows], dtype=np.float32),
        truth=np.array([agreed(task, snapshot.tree) for task in tasks], dtype=np.int64),
        groups=[group(task.data) for task in tasks],
    )
    return Gathered(
        examples,
        refs,
        np.array([mark(ref) for ref, _ in refs], dtype=np.int64),
        [max(label.updated_at for label in task.labels) for task in tasks],
        dict(skipped),
    )


def mark(ref: str) -> int:
    """A number for a picture's address, stable between versions."""
    return int.from_bytes(hashlib.sha256(ref.encode()).digest()[:8], "big", signed=True)


def _known(key: str, parts: Parts) -> Project:
    project = parts.store.project(key)
    if project is None:
        raise MisconfiguredError(f"project {key} has never called this backend: connect it first")
    return project


def _same_labels(parts: Parts, project: Project, live: str, snapshot: Snapshot) -> bool:
    try:
        return bool(parts.store.manifest(project.key, live)["labels"]["digest"] == snapshot.digest)
    except (ModelError, KeyError):
        return False


def _fit_head(
    tree: LabelTree, gathered: Gathered, parts: Parts, project: Project, progress: trainer.Report
) -> Made:
    """The frozen backbone's head; on the CPU, where its maps are and it takes seconds."""
    recipe = Recipe()
    trained = trainer.train(
        tree,
        gathered.examples,
        recipe,
        target=project.target_accuracy or parts.settings.target_accuracy,
        minimum=project.minimum_depth,
        maximum=project.maximum_depth,
        report=progress,
    )
    backbone = parts.galleries.backbone()
    network = {
        "kind": "frozen",
        "channels": backbone.channels,
        "reduced": min(recipe.reduced, backbone.channels),
        "width": recipe.width,
        "projection": recipe.projection,
    }
    return Made(
        trained,
        network,
        {"name": backbone.name, "fingerprint": backbone.fingerprint},
        recipe.to_json(),
    )


def _gate(  # noqa: PLR0913 - both versions and what they are compared on
    parts: Parts,
    project: Project,
    live: str | None,
    config: LabelConfig,
    gathered: Gathered,
    trained: trainer.Trained,
) -> Verdict:
    if live is None:
        return Verdict(passed=True, why="the first version")
    try:
        predictor = parts.predictors.get(project, live, config.tree)
        known = parts.store.weights(project.key, live).get(f"{EVIDENCE}pictures")
        gallery = parts.galleries.of(predictor)
    except ModelError as error:
        return Verdict(passed=True, why=f"{live} cannot be compared with: {error}")
    seen_before = set() if known is None else set(known.tolist())
    truth, held_out = gathered.examples.truth, trained.held_out
    fresh = [
        at
        for at, number in enumerate(gathered.marks.tolist())
        if number not in seen_before and truth[at] >= 0 and not np.isnan(held_out[at, 0])
    ]
    figures = predictor.manifest.get("metrics", {})
    if known is None or len(fresh) < LEAST:
        checked = min(trained.metrics["leaf_checked"], figures.get("leaf_checked") or 0)
        return compare_figures(
            trained.metrics["leaf_accuracy"], figures.get("leaf_accuracy"), checked, live
        )
    maps = maps_of(gallery, [gathered.refs[at] for at in fresh], mirrored=False)
    theirs = predictor.log_probabilities(maps)
    return compare(
        _right(held_out[fresh], truth[fresh], config.tree),
        _right(theirs, truth[fresh], config.tree),
        live,
    )


def _right(
    log_p: NDArray[np.float64], truth: NDArray[np.int64], tree: LabelTree
) -> NDArray[np.bool_]:
    """Is the best node of the truth's level the truth?"""
    nodes = candidates(log_p, tree).nodes
    levels = np.array([tree.levels[node] for node in truth.tolist()], dtype=np.int64)
    right: NDArray[np.bool_] = nodes[np.arange(len(truth)), levels] == truth
    return right


def _tensors(gathered: Gathered, made: Made) -> dict[str, Tensor]:
    seen = made.trained.seen
    return {
        **{name: value.detach().cpu() for name, value in made.trained.head.state_dict().items()},
        **{
            f"{BACKBONE}{name}": value.detach().cpu()
            for name, value in made.backbone_weights.items()
        },
        f"{EVIDENCE}probability": torch.from_numpy(seen.probability).float(),
        f"{EVIDENCE}right": torch.from_numpy(seen.right).to(torch.int8),
        f"{EVIDENCE}pictures": torch.from_numpy(gathered.marks),
    }


def _manifest(  # noqa: PLR0913 - everything there is to say of a version
    project: Project,
    parent: str | None,
    config: LabelConfig,
    snapshot: Snapshot,
    gathered: Gathered,
    made: Made,
    verdict: Verdict,
    started: float,
) -> dict[str, Any]:
    return {
        "project": project.project,
        "tree": config.tree.to_json(),
        "network": made.network,
        "backbone": made.backbone,
        "recipe": made.recipe,
        "calibration": made.trained.fitted.to_json(),
        "metrics": made.trained.metrics,
        "labels": {
            **snapshot.summary(),
            "pictures": gathered.examples.pictures,
            "skipped": gathered.skipped,
        },
        "trained_through": snapshot.trained_through,
        "parent": parent,
        "gate": {"passed": verdict.passed, "why": verdict.why},
        "seconds": round(time.monotonic() - started, 2),
    }


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
