"""Open tasks' pre-labels and their order: after a new version, new tasks, answers, or a moved rule.

One job brings both up to date: it chooses which pictures to ask next where that is due, stores an
answer for each open task that has none of the version, most useful first, and changes in place what
stands there with another answer or another place, so that an annotator who has the task open can
still submit. It works in slices, goes on where it was killed, and ends with the removal of what
earlier versions left.
"""

import logging
import math
import random
import threading
import time
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
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
from worker.queue import Board, RedisError
from worker.unlike import Looked, count_unlike

log = logging.getLogger(__name__)

#: Predictions a request: a quarter of a second of Label Studio's time on sqlite.
SLICE: Final = 50

#: Images read and scored at once.
CHUNK: Final = 1024

#: Seconds that rows of the version before stay: an editor that shows one is refused (400) when it
#: submits after its removal.
GRACE: Final = 300.0

#: Seconds between signs of life; several may be missed.
BEAT: Final = 10.0

#: Least seconds between two tellings of how far a stage is: people look once a second.
TELL_EVERY: Final = 0.5


#: How a sync ends of a version that an earlier release trained: there is nothing to ask for again.
NEEDS_TRAINING: Final = "needs a training"


class StoppedError(Exception):
    """The work ends here; the text is the state it ends in."""


@dataclass(frozen=True)
class OpenTask:
    """A task that nobody has answered.

    Attributes:
        task: its id.
        picture: address of its picture.
        stored: the version's prediction that it has, None where there is none.
        more: has it rows of ours beside that one?
        skipped: has somebody skipped it?
    """

    task: int
    image: str
    stored: Mapping[str, Any] | None
    more: bool = False
    skipped: bool = False

    @property
    def place(self) -> float:
        """By which Label Studio orders it now; 1 where it has none."""
        return 1.0 if self.stored is None else float(self.stored.get("score") or 0.0)


@dataclass(frozen=True)
class Look:
    """What a picture looks like to the version.

    Attributes:
        answer: None before there is a version.
        vector: ``(C,)`` its feature vector; None where nothing is chosen by it.
        log_p: ``(N,)`` log-probabilities; None before there is a version, or likewise.
    """

    answer: Answer | None
    vector: NDArray[np.float16] | None = None
    log_p: NDArray[np.float64] | None = None

    def apart(self) -> "Look":
        """The same, without holding those that it was looked at with."""
        return Look(
            self.answer,
            None if self.vector is None else self.vector.copy(),
            None if self.log_p is None else self.log_p.copy(),
        )


@dataclass(frozen=True)
class Change:
    """A prediction to store, or to put in the place of one that is stored."""

    task: OpenTask
    entry: dict[str, Any]

    @property
    def place(self) -> float:
        """By which Label Studio orders it."""
        return float(self.entry["score"])


@dataclass(frozen=True)
class Plan:
    """What is to be done.

    Attributes:
        changes: what is to be stored, most useful first.
        whole: is that all there is? Otherwise a training waits, and the rest is asked for again.
        untidy: is there something to remove?
        answers: by task, the answers on images that were looked at.
        still_open: all open tasks.
    """

    changes: list[Change]
    whole: bool
    untidy: bool
    answers: Mapping[int, Answer]
    still_open: Collection[int]


@dataclass(frozen=True)
class Work:
    """What one job works with."""

    parts: Parts
    project: Project
    version: str
    config: LabelConfig
    predictor: Predictor | None
    began: float
    told: dict[str, float] = field(default_factory=dict)  # by stage, on the monotonic clock

    @property
    def extractor(self) -> FeatureExtractor:
        """Gives the features that the version's head was trained on, or before it those of ours."""
        if self.predictor is None:
            return self.parts.extractors.base()
        return self.parts.extractors.of(self.predictor)

    def check(self) -> None:
        """Go on, unless another version is live or somebody has stopped this.

        Raises:
            StoppedError: so it is.
        """
        key = self.project.key
        now = self.parts.store.project(key)
        if now is None or now.state in (DISCONNECTED, GONE):
            raise StoppedError("disconnected")
        if (self.parts.store.current(key) or UNTRAINED) != self.version:
            raise StoppedError("outdated")
        if self.parts.board.refresh_stopped(key, self.version):
            raise StoppedError("stopped by hand")

    def tell(self, stage: str, done: int, total: int, stage_began: float) -> None:
        """Show people where it is: now and then, and when a stage ends."""
        if done < total and time.monotonic() < self.told.get(stage, -math.inf) + TELL_EVERY:
            return
        self.told[stage] = time.monotonic()
        now = time.time()
        left = (now - stage_began) / done * (total - done) if done else None
        told = {
            "version": self.version,
            "stage": stage,
            "done": done,
            "total": total,
            "started_at": self.began,
            "at": now,
            "seconds_left": None if left is None else round(left, 1),
        }
        self.parts.board.report_refresh(self.project.key, told)


def refresh_predictions(key: str, version: str, parts: Parts) -> dict[str, Any]:
    """Bring the version's answers on open tasks, and the order of the tasks, up to date.

    Stops, with what is done kept, when another version goes live or somebody asks for it; lets a
    waiting training go first and asks for the rest again.

    Args:
        key: whose tasks.
        version: whose answers; `UNTRAINED` for the order alone, with empty answers.
        parts: the parts.

    Raises:
        StudioError: Label Studio could not be reached, or refused.
        ModelError: the version cannot be read or served here, or the store not written.
    """
    project = parts.store.project(key)
    if project is None:
        return {"state": "outdated", "stored": 0}
    stored = 0
    try:
        check_registered(parts, project)
        with _alive(parts.board, key):
            work = _work(project, version, parts)
            plan = _plan(work)
            whole = plan.whole
            for count in _stored(work, plan.changes):
                stored += count
                if parts.board.training_waits():
                    whole = False
                    break
            if not whole:
                parts.board.ask_refresh(key, version, again=True)
                return {"state": "continued later", "stored": stored}
            if work.predictor is not None:
                _note_unlike(work, work.predictor, plan)
                parts.board.note_shown(key, version, work.predictor.rule.to_json())
            removed = tidy(work) if stored or plan.untidy else 0
    except StoppedError as stopped:
        return {"state": str(stopped), "stored": stored}
    except DisconnectedError:
        return {"state": "disconnected", "stored": stored}
    except EarlierReleaseError as error:  # what is stored stays until there is another version
        log.warning("no pre-labels project=%s: %s", key, error)
        return {"state": NEEDS_TRAINING, "stored": stored}
    log.info("refreshed project=%s version=%s stored=%d removed=%d", key, version, stored, removed)
    return {"state": "done", "stored": stored}


@contextmanager
def _alive(board: Board, key: str) -> Iterator[None]:
    """Say that this process lives, from a thread of its own, until the block ends."""
    stop = threading.Event()

    def beat() -> None:
        while True:
            try:
                board.beat_refresh(key)
            except RedisError as error:
                log.warning("sign of life missed project=%s: %s", key, error)
            if stop.wait(BEAT):
                return

    thread = threading.Thread(target=beat, daemon=True, name="refresh-alive")
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join(timeout=5)
        with suppress(RedisError):  # it ends by itself, too
            board.refresh_ended(key)


def _work(project: Project, version: str, parts: Parts) -> Work:
    config = parse_label_config(str(parts.studio.settings(project.number)["label_config"]))
    work = Work(parts, project, version, config, None, time.time())
    work.check()
    if version == UNTRAINED:
        return work
    return replace(work, predictor=parts.predictors.get(project, version, config.tree))


def _plan(work: Work) -> Plan:
    """What is to be done."""
    tasks = list(_open_tasks(work))
    store, key = work.parts.store, work.project.key
    before, places = read_places(store, key), places_of(store, key, work.version)
    pool = _to_choose_from(tasks) if _order_is_due(work, tasks, before) else None
    wanted = _to_answer(work, tasks, places) | (pool or set())
    seen, whole = _looks(work, [task for task in tasks if task.task in wanted], pool or set())
    if pool is not None:
        places = _choose(work, tasks, seen, before, whole=whole)
    changes = [
        change
        for task in tasks
        if (change := _change(work, task, seen.get(task.task), places)) is not None
    ]
    changes.sort(key=lambda change: change.place)
    return Plan(
        changes,
        whole,
        untidy=any(task.more for task in tasks),
        answers={task: look.answer for task, look in seen.items() if look.answer is not None},
        still_open={task.task for task in tasks},
    )


def _note_unlike(work: Work, predictor: Predictor, plan: Plan) -> None:
    """Note which open images look unlike the labelled ones, and what is to be said of that."""
    if predictor.familiarity is None:
        return
    board, key = work.parts.board, work.project.key
    before = board.unlike(key, work.version)
    # After a rule has moved, or where nothing is noted, all open images have been looked at.
    looked = Looked({}, frozenset()) if before is None else Looked.from_json(before["looked"])
    looked = looked.updated(plan.answers, plan.still_open)
    told = count_unlike(looked, predictor.familiarity).to_json()
    board.note_unlike(key, work.version, {"looked": looked.to_json(), "told": told})


def _open_tasks(work: Work) -> Iterator[OpenTask]:
    """Open tasks that have a picture, each with the newest prediction of the version."""
    versions = _earlier_versions(work)
    for task in work.parts.studio.tasks(work.project.number, unlabelled_only=True):
        read = read_task(task, work.config)
        ours = _rows_of(task, {work.version})
        stored = max(ours, key=lambda row: int(row["id"]), default=None)
        more = len(ours) > 1 or bool(_rows_of(task, versions))
        if read.image is not None:
            skipped = any(one.reason == WAS_SKIPPED for one in read.ignored)
            yield OpenTask(read.task_id, read.image, stored, more, skipped)


def _rows_of(task: Mapping[str, Any], versions: set[str]) -> list[Mapping[str, Any]]:
    return [row for row in task.get("predictions") or () if row.get("model_version") in versions]


# Looking


def _order_is_due(work: Work, tasks: Sequence[OpenTask], places: Places | None) -> bool:
    """Is what to ask next to be chosen anew?"""
    if not tasks:
        return False
    if places is None or places.version != work.version:
        return True
    still_open = {task.task for task in tasks if not task.skipped}
    return places.used(still_open) or places.outgrown(still_open)


def _to_choose_from(tasks: Sequence[OpenTask]) -> set[int]:
    """Open tasks among which is chosen, no skipped ones; of very many, some drawn by chance."""
    ids = [task.task for task in tasks if not task.skipped]
    if len(ids) > MOST:
        ids = random.Random(len(ids)).sample(ids, MOST)  # noqa: S311 - no secret
    return set(ids)


def _to_answer(work: Work, tasks: Sequence[OpenTask], places: Places) -> set[int]:
    """Tasks whose answer, or place by the answer, may have to change."""
    if work.predictor is None:
        return set()
    noted = work.parts.board.shown(work.project.key, work.version)
    moved = noted is None or noted[0] != work.predictor.rule.to_json()
    return {
        task.task
        for task in tasks
        if moved or task.stored is None or (task.place < FRONT and task.task not in places.batch)
    }


def _looks(work: Work, tasks: Sequence[OpenTask], pool: set[int]) -> tuple[dict[int, Look], bool]:
    """What can be seen of the tasks' pictures, and whether all were looked at.

    Args:
        work: by which version.
        tasks: whose pictures.
        pool: those among which is chosen; of the others no features are held.
    """
    seen: dict[int, Look] = {}
    began = time.time()
    for start in range(0, len(tasks), CHUNK):
        work.check()
        part = tasks[start : start + CHUNK]
        for task, look in zip(part, _seen(work, part), strict=True):
            if isinstance(look, ImageError):  # nothing is stored: a visit asks for it again
                log.info("no picture task=%d: %s", task.task, look.reason)
            else:
                seen[task.task] = look.apart() if task.task in pool else Look(look.answer)
        done = start + len(part)
        work.tell("looking at pictures", done, len(tasks), began)
        if done < len(tasks) and work.parts.board.training_waits():
            return seen, False  # what is there is stored, the rest is asked for again
    return seen, True


def _seen(work: Work, part: Sequence[OpenTask]) -> list[Look | ImageError]:
    """Read the part's feature vectors and score them."""
    found = work.extractor.vectors([(task.image, task.task) for task in part])
    vectors = [one for one in found if not isinstance(one, ImageError)]
    if not vectors or work.predictor is None:
        return [one if isinstance(one, ImageError) else Look(None, one) for one in found]
    stacked = np.stack(vectors)
    log_p = work.predictor.log_probabilities(stacked)
    answers = work.predictor.told(log_p, work.predictor.likeness(stacked))
    told = zip(answers, vectors, log_p, strict=True)
    return [one if isinstance(one, ImageError) else Look(*next(told)) for one in found]


def _choose(
    work: Work,
    tasks: Sequence[OpenTask],
    seen: Mapping[int, Look],
    before: Places | None,
    *,
    whole: bool,
) -> Places:
    """What to ask next, written down before Label Studio is told."""
    answered = [
        (read.image, read.task_id)
        for task in work.parts.studio.tasks(work.project.number, annotated_only=True)
        if (read := read_task(task, work.config)).labels and read.image is not None
    ]
    # Like an answered image, a skipped one says that those that look like it are asked later.
    known = [*answered, *((task.image, task.task) for task in tasks if task.skipped)]
    looks = {task: look for task, look in seen.items() if look.vector is not None}
    features = [look.vector for look in looks.values() if look.vector is not None]
    width = len(features[0]) if features else 1
    log_p = [look.log_p for look in looks.values() if look.log_p is not None]
    pool = Pool(
        tasks=list(looks),
        features=_stack(features, width),
        log_p=np.stack(log_p) if log_p else None,
        taken=_stack(_vectors(work, known[-MOST:] if features else []), width),
        answered=len(answered),
        still_open=frozenset(task.task for task in tasks if not task.skipped),
        whole=whole,
    )
    places = choose(pool, work.config.tree, work.version, before)
    work.check()
    work.parts.store.write_order(work.project.key, places.to_json())
    work.parts.board.note_answers(work.project.key, 0)
    return places


def _vectors(work: Work, items: Sequence[Item]) -> Iterator[NDArray[np.float16]]:
    """Feature vectors of pictures that can be had."""
    for start in range(0, len(items), CHUNK):
        for one in work.extractor.vectors(items[start : start + CHUNK]):
            if not isinstance(one, ImageError):
                yield one


def _stack(rows: Iterable[NDArray[np.float16]], width: int) -> NDArray[np.float32]:
    found = list(rows)
    if not found:
        return np.empty((0, width), dtype=np.float32)
    return np.stack(found).astype(np.float32)


# What is to change


def _change(work: Work, task: OpenTask, look: Look | None, places: Places) -> Change | None:
    """What a task's prediction must become; None where it is right, or nothing can be said."""
    answer = None if look is None else look.answer
    if task.stored is not None:
        return _replaced(work, task, answer, places)
    if work.predictor is None:
        place = _place(task, places, None)
        return Change(task, prediction(work.config, None, score=place, version=work.version))
    if answer is None:
        return None
    place = _place(task, places, answer.margin)
    return Change(task, entry_of(answer, work.config, work.version, place))


def _place(task: OpenTask, places: Places, lead: float | None) -> float:
    return SKIPPED if task.skipped else places.place(task.task, lead)


def _replaced(work: Work, task: OpenTask, answer: Answer | None, places: Places) -> Change | None:
    """The stored prediction with another answer or place, where it needs one.

    Behind the front, places are left as they are: they change little, and nothing is asked by them
    before what to ask next is chosen anew.
    """
    stored = task.stored or {}
    place, result = task.place, stored.get("result")
    lead = None if answer is None else answer.margin
    if task.skipped or task.task in places.batch or place < FRONT:
        place = _place(task, places, lead)
    if answer is not None and _differs(stored, answer.path, work.config):
        result = entry_of(answer, work.config, work.version, place)["result"]
    if result == stored.get("result") and place == stored.get("score"):
        return None
    return Change(task, {"result": result, "score": place, "model_version": work.version})


def _differs(stored: Mapping[str, Any], path: tuple[str, ...] | None, config: LabelConfig) -> bool:
    try:
        node = stored_node(stored, config)
    except AnnotationError:  # of a tree that has changed since
        return True
    return (None if node is None else config.tree.paths[node]) != path


# Telling Label Studio


def _stored(work: Work, changes: Sequence[Change]) -> Iterator[int]:
    """Import what is new and change what was there, a slice at a time; how many each.

    Raises:
        StoppedError: it is not to go on.
    """
    began, done = time.time(), 0
    for start in range(0, len(changes), SLICE):
        work.check()
        part = changes[start : start + SLICE]
        new = [{"task": one.task.task, **one.entry} for one in part if one.task.stored is None]
        if new:
            work.parts.studio.import_predictions(work.project.number, new)
        for one in part:
            if one.task.stored is not None:
                number, entry = int(one.task.stored["id"]), one.entry
                work.parts.studio.update_prediction(number, entry["result"], score=one.place)
        done += len(part)
        work.tell("storing pre-labels", done, len(changes), began)
        yield len(part)


def tidy(work: Work) -> int:
    """Remove rows that open tasks need no more; how many.

    Doubles of the version's own at once, as they come of a visit in the moment of the import; those
    of earlier versions once nobody has them on the screen. What anybody has answered, skipped or
    begun keeps all its rows: removal would cut it from what was shown.

    Raises:
        StudioError: Label Studio could not be reached, or refused.
        StoppedError: it is not to go on.
    """
    key, board = work.project.key, work.parts.board
    due, earlier = _live_since(work) + GRACE, _earlier_versions(work)
    ripe = time.time() >= due
    board.drop_untidy(key)
    removed, left, began = 0, False, time.time()
    tasks = work.parts.studio.tasks(work.project.number, unlabelled_only=True, page_size=SLICE)
    for seen, task in enumerate(tasks):
        if task.get("annotations") or task.get("drafts"):
            continue
        doubles = sorted(_rows_of(task, {work.version}), key=lambda row: int(row["id"]))[:-1]
        old = _rows_of(task, earlier)
        left = left or (bool(old) and not ripe)
        for row in (*doubles, *(old if ripe else ())):
            work.parts.studio.delete_prediction(int(row["id"]))
            removed += 1
        if seen % SLICE == 0:
            work.check()
            work.tell("removing earlier pre-labels", seen, seen, began)
            if board.training_waits():
                left = True
                break
    if left:
        board.note_untidy(key, due)
    return removed


def _live_since(work: Work) -> float:
    """When the version went live, seconds since the epoch; 0 where nothing is known of that."""
    history = work.parts.store.history(work.project.key)
    return float(history[-1].get("at", 0.0)) if history else 0.0


def _earlier_versions(work: Work) -> set[str]:
    """Names of ours that predictions may bear, without the live one."""
    return work.parts.store.names(work.project.key) - {work.version}
