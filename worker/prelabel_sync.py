"""Pre-label sync: open tasks get the live version's pre-labels, in the order to ask.

One job brings both up to date, after a new version, new tasks, answers, or a changed depth rule. It
chooses which images to ask next where that is due, stores a prediction for each open task that has
none of the version, most useful first, and changes in place what stands there with another
pre-label or rank score, so that an annotator who has the task open can still submit. It works in
slices, goes on where it was killed, and ends with the removal of what earlier versions left.
"""

import logging
import random
import time
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from inference.errors import EarlierReleaseError
from inference.feature_extractor import FeatureExtractor, Item
from inference.predictor import Answer, Predictor
from inference.store import DISCONNECTED, GONE, UNTRAINED, Project
from studio.annotations import WAS_SKIPPED, read_task
from studio.errors import AnnotationError, ImageError
from studio.label_config import LabelConfig, parse_label_config
from studio.predictions import prediction, stored_node
from worker.asking import (
    FRONT,
    MOST,
    SKIPPED,
    Places,
    Pool,
    choose,
    entry_of,
    places_of,
    read_places,
)
from worker.parts import Parts
from worker.presence import DisconnectedError, check_registered
from worker.progress import Stages, beating
from worker.queue import Board, RedisError
from worker.unlike import Looked, count_unlike

log = logging.getLogger(__name__)

#: Predictions per request: a quarter of a second of Label Studio's time on sqlite.
SLICE: Final = 50

#: Images read and scored at once.
CHUNK: Final = 1024

#: Seconds that predictions of the version before stay: an editor that shows one is refused (400)
#: when it submits after its removal.
GRACE: Final = 300.0


class SyncState(StrEnum):
    """Ways in which a pre-label sync ends."""

    DONE = "done"
    CONTINUED_LATER = "continued later"
    STOPPED = "stopped by hand"
    OUTDATED = "outdated"
    DISCONNECTED = "disconnected"
    #: An earlier release trained the version: there is nothing to ask for again.
    NEEDS_TRAINING = "needs a training"


@dataclass(frozen=True)
class Synced:
    """Outcome of a pre-label sync, and how many predictions it stored."""

    state: SyncState
    stored: int = 0


class StoppedError(Exception):
    """The sync ends here, in this state."""

    def __init__(self, state: SyncState) -> None:
        super().__init__(state)
        self.state = state


@dataclass(frozen=True)
class OpenTask:
    """A task that nobody has answered.

    Attributes:
        task: its id.
        image: address of its image.
        stored: the version's prediction that it has, None where there is none.
        more: whether it has predictions of ours beside that one.
        skipped: whether somebody has skipped it.
    """

    task: int
    image: str
    stored: Mapping[str, Any] | None
    more: bool = False
    skipped: bool = False

    @property
    def place(self) -> float:
        """Rank score by which Label Studio orders it now; 1 where it has none."""
        return 1.0 if self.stored is None else float(self.stored.get("score") or 0.0)


@dataclass(frozen=True)
class Scores:
    """Open tasks' images as the version sees them, by task.

    Attributes:
        answers: of all; empty before there is a version.
        vectors: ``(C,)`` feature vectors of those among which is chosen.
        log_p: ``(N,)`` log-probabilities of the same; empty before there is a version.
        complete: whether all images were scored; else a training waits.
    """

    answers: dict[int, Answer] = field(default_factory=dict)
    vectors: dict[int, NDArray[np.float16]] = field(default_factory=dict)
    log_p: dict[int, NDArray[np.float64]] = field(default_factory=dict)
    complete: bool = True


@dataclass(frozen=True)
class Change:
    """A prediction to store, or to put in the place of one that is stored."""

    task: OpenTask
    entry: dict[str, Any]

    @property
    def place(self) -> float:
        """Rank score by which Label Studio will order it."""
        return float(self.entry["score"])


@dataclass(frozen=True)
class Sync:
    """A pre-label sync that runs: whose, and what it works with."""

    parts: Parts
    project: Project
    version: str
    config: LabelConfig
    predictor: Predictor | None
    began: float = field(default_factory=time.time)
    stages: Stages = field(default_factory=Stages)

    @property
    def extractor(self) -> FeatureExtractor:
        """Features that the version's head was trained on; before a version, those of ours."""
        if self.predictor is None:
            return self.parts.extractors.base()
        return self.parts.extractors.of(self.predictor)

    def check(self) -> None:
        """Refuse to go on where another version is live, or somebody has stopped this.

        Raises:
            StoppedError: with the state to end in.
        """
        key = self.project.key
        now = self.parts.store.project(key)
        if now is None or now.state in (DISCONNECTED, GONE):
            raise StoppedError(SyncState.DISCONNECTED)
        if (self.parts.store.current(key) or UNTRAINED) != self.version:
            raise StoppedError(SyncState.OUTDATED)
        if self.parts.board.refresh_stopped(key, self.version):
            raise StoppedError(SyncState.STOPPED)

    def report(self, stage: str, done: int, total: int) -> None:
        """Report progress, now and then and when a stage begins or ends."""
        if progress := self.stages.at(stage, done, total):
            progress |= {"version": self.version, "started_at": self.began}
            self.parts.board.report_refresh(self.project.key, progress)

    def names_of_earlier(self) -> set[str]:
        """Return names of ours that predictions may bear, without the live version's."""
        return self.parts.store.names(self.project.key) - {self.version}


def sync_prelabels(key: str, version: str, parts: Parts) -> Synced:
    """Bring the version's pre-labels on open tasks, and the order of the tasks, up to date.

    Stops when another version goes live or somebody asks for it, and lets a waiting training go
    first and asks for the rest again; what is done stays done.

    Args:
        key: whose tasks.
        version: whose pre-labels; `UNTRAINED` for the order alone, with empty predictions.
        parts: the container.

    Raises:
        StudioError: Label Studio could not be reached, or refused.
        ModelError: the version cannot be read or served here, or the store not written.
    """
    project = parts.store.project(key)
    if project is None:
        return Synced(SyncState.OUTDATED)
    board, stored = parts.board, 0
    try:
        check_registered(parts, project)
        with _alive(board, key):
            sync = _start(project, version, parts)
            tasks = list(_open_tasks(sync))
            places, pool = _order(sync, tasks)
            wanted = _to_answer(sync, tasks, places) | (pool or set())
            scores = _score(sync, [task for task in tasks if task.task in wanted], pool or set())
            if pool is not None:
                places = _choose(sync, tasks, scores)
            changes = _changes(sync, tasks, scores.answers, places)
            complete = scores.complete
            for count in _store(sync, changes):
                stored += count
                if board.training_waits():
                    complete = False
                    break
            if not complete:
                board.ask_refresh(key, version, again=True)
                return Synced(SyncState.CONTINUED_LATER, stored)
            if sync.predictor is not None:
                _note_unlike(sync, sync.predictor, scores.answers, tasks)
                board.note_shown(key, version, sync.predictor.rule.to_json())
            untidy = any(task.more for task in tasks)
            removed = remove_earlier(sync) if stored or untidy else 0
    except StoppedError as stopped:
        return Synced(stopped.state, stored)
    except DisconnectedError:
        return Synced(SyncState.DISCONNECTED, stored)
    except EarlierReleaseError as error:  # what is stored stays until there is another version
        log.warning("no pre-labels project=%s: %s", key, error)
        return Synced(SyncState.NEEDS_TRAINING, stored)
    log.info("synced project=%s version=%s stored=%d removed=%d", key, version, stored, removed)
    return Synced(SyncState.DONE, stored)


@contextmanager
def _alive(board: Board, key: str) -> Iterator[None]:
    """Say that this process lives until the block ends."""
    try:
        with beating(lambda: board.beat_refresh(key)):
            yield
    finally:
        with suppress(RedisError):  # it ends by itself, too
            board.refresh_ended(key)


# What there is


def _start(project: Project, version: str, parts: Parts) -> Sync:
    config = parse_label_config(str(parts.studio.settings(project.number)["label_config"]))
    sync = Sync(parts, project, version, config, None)
    sync.check()
    if version == UNTRAINED:
        return sync
    return replace(sync, predictor=parts.predictors.get(project, version, config.tree))


def _open_tasks(sync: Sync) -> Iterator[OpenTask]:
    """Yield open tasks that have an image, each with the newest prediction of the version."""
    earlier = sync.names_of_earlier()
    for task in sync.parts.studio.tasks(sync.project.number, unlabelled_only=True):
        read = read_task(task, sync.config)
        ours = _predictions_of(task, {sync.version})
        stored = max(ours, key=lambda row: int(row["id"]), default=None)
        more = len(ours) > 1 or bool(_predictions_of(task, earlier))
        if read.image is not None:
            skipped = any(one.reason == WAS_SKIPPED for one in read.ignored)
            yield OpenTask(read.task_id, read.image, stored, more, skipped)


def _predictions_of(task: Mapping[str, Any], versions: set[str]) -> list[Mapping[str, Any]]:
    return [row for row in task.get("predictions") or () if row.get("model_version") in versions]


# The order to ask in, and what to score


def _order(sync: Sync, tasks: Sequence[OpenTask]) -> tuple[Places, set[int] | None]:
    """Return the version's order, and the tasks to choose from; None where no choice is due.

    Skipped tasks are not chosen from; of very many tasks, some are drawn by chance.
    """
    store, key = sync.parts.store, sync.project.key
    before, ids = read_places(store, key), [task.task for task in tasks if not task.skipped]
    places = places_of(store, key, sync.version)
    if not tasks:
        return places, None
    if before is not None and before.version == sync.version:
        still_open = set(ids)
        if not before.used(still_open) and not before.outgrown(still_open):
            return places, None
    if len(ids) > MOST:
        ids = random.Random(len(ids)).sample(ids, MOST)  # noqa: S311 - no secret
    return places, set(ids)


def _to_answer(sync: Sync, tasks: Sequence[OpenTask], places: Places) -> set[int]:
    """Return tasks whose pre-label, or rank score by the answer, may have to change."""
    if sync.predictor is None:
        return set()
    noted = sync.parts.board.shown(sync.project.key, sync.version)
    changed = noted is None or noted[0] != sync.predictor.rule.to_json()
    return {
        task.task
        for task in tasks
        if changed or task.stored is None or (task.place < FRONT and task.task not in places.batch)
    }


def _score(sync: Sync, tasks: Sequence[OpenTask], pool: set[int]) -> Scores:
    """Read the tasks' feature vectors and score them; stop early for a training that waits.

    Args:
        sync: by which version.
        tasks: whose images.
        pool: those among which is chosen; of the others no features are held.
    """
    scores, stage = Scores(), "looking at pictures"
    sync.report(stage, 0, len(tasks))
    for start in range(0, len(tasks), CHUNK):
        sync.check()
        part = tasks[start : start + CHUNK]
        items = [(task.image, task.task) for task in part]
        found = _vectors(sync.extractor, items, logging.INFO)  # a visit asks for the others again
        if sync.predictor is not None and found:
            stacked = np.stack(list(found.values()))
            rows = sync.predictor.log_probabilities(stacked)
            answers = sync.predictor.told(rows, sync.predictor.likeness(stacked))
            scores.answers.update(zip(found, answers, strict=True))
            scores.log_p.update(
                (task, row.copy()) for task, row in zip(found, rows, strict=True) if task in pool
            )
        scores.vectors.update((task, one.copy()) for task, one in found.items() if task in pool)
        done = start + len(part)
        sync.report(stage, done, len(tasks))
        if done < len(tasks) and sync.parts.board.training_waits():
            return replace(scores, complete=False)  # the rest is asked for again
    return scores


def _vectors(
    extractor: FeatureExtractor, items: Sequence[Item], level: int = logging.DEBUG
) -> dict[int, NDArray[np.float16]]:
    """Return feature vectors by task, of images that can be read; others are logged."""
    vectors = {}
    for start in range(0, len(items), CHUNK):
        part = items[start : start + CHUNK]
        for (_, task), one in zip(part, extractor.vectors(part), strict=True):
            if isinstance(one, ImageError):
                log.log(level, "no image task=%s: %s", task, one.reason)
            elif task is not None:
                vectors[task] = one
    return vectors


def _choose(sync: Sync, tasks: Sequence[OpenTask], scores: Scores) -> Places:
    """Choose what to ask next, and write it down before Label Studio learns of it."""
    store, key = sync.parts.store, sync.project.key
    answered = [
        (read.image, read.task_id)
        for task in sync.parts.studio.tasks(sync.project.number, annotated_only=True)
        if (read := read_task(task, sync.config)).labels and read.image is not None
    ]
    # Like an answered image, a skipped one says that those that look like it are asked later.
    known = [*answered, *((task.image, task.task) for task in tasks if task.skipped)]
    features = _stack(scores.vectors.values())
    taken = _vectors(sync.extractor, known[-MOST:]) if len(features) else {}
    pool = Pool(
        tasks=list(scores.vectors),
        features=features,
        log_p=np.stack(list(scores.log_p.values())) if scores.log_p else None,
        taken=_stack(taken.values(), features.shape[1]),
        answered=len(answered),
        still_open=frozenset(task.task for task in tasks if not task.skipped),
        whole=scores.complete,
    )
    places = choose(pool, sync.config.tree, sync.version, read_places(store, key))
    sync.check()
    store.write_order(key, places.to_json())
    sync.parts.board.note_answers(key, 0)
    return places


def _stack(rows: Collection[NDArray[np.float16]], width: int = 1) -> NDArray[np.float32]:
    if not rows:
        return np.empty((0, width), dtype=np.float32)
    return np.stack(list(rows)).astype(np.float32)


def _note_unlike(
    sync: Sync, predictor: Predictor, answers: Mapping[int, Answer], tasks: Iterable[OpenTask]
) -> None:
    """Note which open images look unlike the labelled ones, and what is to be said of that."""
    if predictor.familiarity is None:
        return
    board, key = sync.parts.board, sync.project.key
    before = board.looked(key, sync.version)
    # After a rule has changed, or where nothing is noted, all open images have been scored.
    looked = Looked({}, frozenset()) if before is None else Looked.from_json(before)
    looked = looked.updated(answers, {task.task for task in tasks})
    board.note_looked(key, sync.version, looked.to_json())
    progress = count_unlike(looked, predictor.familiarity).to_json()
    board.note_unlike(key, sync.version, {"told": progress})


# What is to change


def _changes(
    sync: Sync, tasks: Sequence[OpenTask], answers: Mapping[int, Answer], places: Places
) -> list[Change]:
    """Return what is to be stored, most useful first."""
    found = (_change(sync, task, answers.get(task.task), places) for task in tasks)
    return sorted((one for one in found if one is not None), key=lambda change: change.place)


def _change(sync: Sync, task: OpenTask, answer: Answer | None, places: Places) -> Change | None:
    """Return what a task's prediction must become; None where it is right, or nothing is known.

    Behind the front, rank scores are left as they are: they change little, and nothing is asked by
    them before what to ask next is chosen again.
    """
    stored, place = task.stored, task.place
    if stored is None or task.skipped or task.task in places.batch or place < FRONT:
        margin = None if answer is None else answer.margin
        place = SKIPPED if task.skipped else places.place(task.task, margin)
    if stored is None:
        if sync.predictor is None:
            return Change(task, prediction(sync.config, None, score=place, version=sync.version))
        if answer is None:
            return None
        return Change(task, entry_of(answer, sync.config, sync.version, place))
    result = stored.get("result")
    if answer is not None and _differs(stored, answer.path, sync.config):
        result = entry_of(answer, sync.config, sync.version, place)["result"]
    if result == stored.get("result") and place == stored.get("score"):
        return None
    return Change(task, {"result": result, "score": place, "model_version": sync.version})


def _differs(stored: Mapping[str, Any], path: tuple[str, ...] | None, config: LabelConfig) -> bool:
    try:
        node = stored_node(stored, config)
    except AnnotationError:  # of a tree that has changed since
        return True
    return (None if node is None else config.tree.paths[node]) != path


# Writing to Label Studio


def _store(sync: Sync, changes: Sequence[Change]) -> Iterator[int]:
    """Import what is new and change what was there, slice by slice; yield how many each.

    Raises:
        StoppedError: it is not to go on.
    """
    stage, done = "storing pre-labels", 0
    sync.report(stage, done, len(changes))
    for start in range(0, len(changes), SLICE):
        sync.check()
        part = changes[start : start + SLICE]
        new = [{"task": one.task.task, **one.entry} for one in part if one.task.stored is None]
        if new:
            sync.parts.studio.import_predictions(sync.project.number, new)
        for one in part:
            if one.task.stored is not None:
                number, entry = int(one.task.stored["id"]), one.entry
                sync.parts.studio.update_prediction(number, entry["result"], score=one.place)
        done += len(part)
        sync.report(stage, done, len(changes))
        yield len(part)


def remove_earlier(sync: Sync) -> int:
    """Remove predictions that open tasks need no more; return how many.

    Doubles of the version's own go at once, as they come of a visit in the moment of the import;
    those of earlier versions once nobody has them on the screen. What anybody has answered, skipped
    or begun keeps all its predictions: removal would cut it from what was shown.

    Raises:
        StudioError: Label Studio could not be reached, or refused.
        StoppedError: it is not to go on.
    """
    key, board = sync.project.key, sync.parts.board
    history = sync.parts.store.history(key)
    due = (float(history[-1].get("at", 0.0)) if history else 0.0) + GRACE
    earlier, ripe = sync.names_of_earlier(), time.time() >= due
    removed, left = 0, False
    tasks = sync.parts.studio.tasks(sync.project.number, unlabelled_only=True, page_size=SLICE)
    for seen, task in enumerate(tasks):
        if task.get("annotations") or task.get("drafts"):
            continue
        ours = _predictions_of(task, {sync.version})
        doubles = sorted(ours, key=lambda row: int(row["id"]))[:-1]
        old = _predictions_of(task, earlier)
        left = left or (bool(old) and not ripe)
        for row in (*doubles, *(old if ripe else ())):
            sync.parts.studio.delete_prediction(int(row["id"]))
            removed += 1
        if seen % SLICE == 0:
            sync.check()
            sync.report("removing earlier pre-labels", seen, seen)
            if board.training_waits():
                left = True
                break
    board.note_untidy(key, due if left else None)
    return removed
