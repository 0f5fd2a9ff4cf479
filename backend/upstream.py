"""Our model under Label Studio's own server `label-studio-ml`, where somebody already runs that.

One class for both of its lines, PyPI's 1.0.9 and the 2.x of its repository: they call the same two
methods with different words, so what was given is read and nothing asks which server it is. Flask
and the queue are not needed here; docs/upstream.md says how to use it and what is not available.
"""

import fcntl
import hashlib
import logging
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, Final, Self

from label_studio_ml.model import LabelStudioMLBase

from inference.answers import answers
from inference.errors import EarlierReleaseError, ModelError
from inference.predictor import Answer, runs_here
from inference.store import Project
from inference.store import project_key as store_key
from studio.annotations import read_task
from studio.errors import ContractError, ImageError, StudioError
from studio.json_fields import as_id, as_text
from studio.label_config import LabelConfig, parse_label_config
from studio.predictions import prediction
from studio.schemas import Event, project_key
from worker.asking import entry_of, places_of
from worker.errors import JobError, redis_in_words
from worker.order import Order
from worker.parts import Parts
from worker.settings import Settings
from worker.snapshot import Snapshot, take
from worker.trainer import TooFewLabelsError
from worker.training import Ended, learn, read_labels

log = logging.getLogger(__name__)

#: The version's name before there is one; our own server says the same.
UNTRAINED: Final = "untrained"

#: ``<id>.<creation time>``, or the id alone.
_PROJECT: Final = re.compile(r"[0-9]{1,19}(\.[0-9]{1,19})?", re.ASCII)


class HRNModel(LabelStudioMLBase):  # type: ignore[misc] # the library has no types
    """Answers and learns as our own server does, as far as `label-studio-ml` lets it.

    Settings come from the environment, as for every part of ours; versions from the model store.
    """

    #: What Label Studio sends; 1.0.9 does not know START_TRAINING, neither knows the plurals.
    TRAIN_EVENTS = (
        "START_TRAINING",
        "ANNOTATION_CREATED",
        "ANNOTATION_UPDATED",
        "ANNOTATIONS_CREATED",
        "ANNOTATIONS_DELETED",
    )

    #: What the server answers `/setup` with, where that is in our hands.
    _reported: str | None = None

    def __init__(self, *args: Any, **kwargs: Any) -> None:  # noqa: ANN401 - each server has its own
        super().__init__(*args, **kwargs)
        last = kwargs.get("train_output")
        if isinstance(last, dict) and "job_id" in last:
            # 1.0.9 answers `/setup` with the last job's id, which it reads from this very dict
            # after making the model. Label Studio wants predictions under the same name.
            self._reported = last["job_id"] = self._live() or UNTRAINED

    def setup(self) -> None:
        """2.x calls this at the end of each start, then answers `/setup` with what is set here."""
        self._report(self._live())

    def predict(
        self,
        tasks: Sequence[Mapping[str, Any]] | Mapping[str, Any],
        context: Mapping[str, Any] | None = None,  # noqa: ARG002 - 2.x hands it over
        **kwargs: Any,  # noqa: ANN401
    ) -> list[dict[str, Any]]:
        """Answer each task at the deepest node that the live version can stand behind.

        Args:
            tasks: a list of tasks, or one.
            context: of an interactive call; a picture's class does not depend on it.
            kwargs: ``project`` or ``project_id`` if the caller knows it.

        Returns:
            One prediction a task, in order; empty ones while untrained and for bad pictures.
            Without ``model_version`` where the server will not say the same in `/setup`: Label
            Studio then files them under what it said, and does not ask again at every visit.

        Raises:
            LabelConfigError: there is a version, and today's label config has no usable tree.
            ModelError: the version cannot be read.
        """
        rows = [tasks] if isinstance(tasks, Mapping) else list(tasks)
        parts = _parts()
        named = self._named(kwargs.get("project"), kwargs.get("project_id"), *_projects_of(rows))
        project = find_project(parts, named)
        version = parts.store.current(project.key) if project else None
        self._report(version)
        if project is None or version is None:
            empty = {"result": [], "score": 0.0, "model_version": UNTRAINED}
            return [self._filed(empty) for _ in rows]
        config = _label_config(named.label_config or project.label_config)
        return [self._filed(entry) for entry in _predictions(parts, project, version, config, rows)]

    def fit(self, *args: Any, **kwargs: Any) -> dict[str, Any]:  # noqa: ANN401
        """Learn from the project's labels, or ask our worker to, where there is a queue.

        1.0.9 calls ``fit(tasks, workdir, event=..., data=...)``, with tasks from `/train` and an
        event from `/webhook`; 2.x calls ``fit(event, data)``.

        Returns:
            How it ended: ``state``, ``why``, ``version``, ``figures``, and the live version as
            ``model_version``. What can go wrong with labels, pictures and settings is said here
            and not raised: 1.0.9 drops errors, and 2.x would show Label Studio a page of HTML.
        """
        call = FitCall.read(args, kwargs)
        named = self._named(
            kwargs.get("project"), call.data.get("project"), call.folder, *_projects_of(call.tasks)
        )
        config = call.data.get("project")
        if isinstance(config, Mapping) and as_text(config.get("label_config")):
            named = replace(named, label_config=as_text(config.get("label_config")))
        parts = _parts()
        try:
            ended = _fit(parts, named, call)
        except TooFewLabelsError as error:
            ended = Ended("too few labels", str(error))
        except (StudioError, ModelError, JobError, FloatingPointError) as error:
            ended = Ended("failed", str(error))
        log.info("fit event=%s state=%s: %s", call.kind, ended.state, ended.why)
        known = find_project(parts, named)
        live = parts.store.current(known.key) if known else None
        self._report(live)
        return {**ended.to_json(), "model_version": live or UNTRAINED}

    def _named(self, *told: object) -> "Named":
        """The project, by what a call said of it, else by what the server set up."""
        config = as_text(getattr(self, "label_config", None))
        return Named.read([*told, getattr(self, "project_id", None)], config)

    def _live(self) -> str | None:
        parts = _parts()
        project = find_project(parts, self._named())
        return parts.store.current(project.key) if project else None

    def _report(self, version: str | None) -> None:
        """Tell 2.x the version; 1.0.9 has nothing to tell it to."""
        if hasattr(self, "set"):
            self._reported = version or UNTRAINED
            self.set("model_version", self._reported)

    def _filed(self, entry: dict[str, Any]) -> dict[str, Any]:
        if entry["model_version"] == self._reported:
            return entry
        return {name: value for name, value in entry.items() if name != "model_version"}


@dataclass(frozen=True)
class FitCall:
    """What `fit` was called with, in either server's words.

    Attributes:
        kind: the event; START_TRAINING where tasks were handed over without one.
        data: the webhook's body, empty if there was none.
        tasks: annotated tasks, as 1.0.9's `/train` hands them over.
        folder: name of the folder that 1.0.9 works in: all that `/train` tells of the project.
    """

    kind: Event
    data: Mapping[str, Any]
    tasks: tuple[Mapping[str, Any], ...]
    folder: str

    @classmethod
    def read(cls, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Self:
        """Sort the arguments out."""
        spoken = list(args)
        event, data = kwargs.get("event"), kwargs.get("data")
        tasks, folder = kwargs.get("tasks"), kwargs.get("workdir")
        if spoken and isinstance(spoken[0], str):  # 2.x
            event, data = spoken[0], spoken[1] if len(spoken) > 1 else data
        elif spoken:  # 1.0.9
            tasks, folder = spoken[0], spoken[1] if len(spoken) > 1 else folder
        return cls(
            _event(event),
            data if isinstance(data, Mapping) else {},
            tuple(_annotated(task) for task in tasks or () if isinstance(task, Mapping)),
            Path(str(folder)).parent.name if folder else "",
        )


def _event(name: object) -> Event:
    if not name:
        return Event.START_TRAINING
    return next((event for event in Event if event == name), Event.OTHER)


def _annotated(task: Mapping[str, Any]) -> Mapping[str, Any]:
    """Annotations were called completions when 1.0.9's ancestors were written."""
    if "annotations" in task or "completions" not in task:
        return task
    return {**task, "annotations": task["completions"]}


@dataclass(frozen=True)
class Named:
    """A project, as far as a call names it.

    Attributes:
        project: ``<id>.<creation time>``, "" if not told.
        number: its id, None if not told.
        label_config: XML, "" if not told.
    """

    project: str
    number: int | None
    label_config: str

    @classmethod
    def read(cls, told: Iterable[object], label_config: str) -> Self:
        """The first full name among what was told, else the first id."""
        names = [name for one in told if (name := _project_name(one))]
        full = next((name for name in names if "." in name), "")
        first = full or next(iter(names), "")
        return cls(full, int(first.split(".")[0]) if first else None, label_config)


def _project_name(told: object) -> str:
    """``<id>.<creation time>`` or ``<id>`` from whatever names a project, "" if it does not."""
    if isinstance(told, Mapping):
        number, created = as_id(told.get("id")), as_text(told.get("created_at"))
        if number is None:
            return ""
        with suppress(ContractError):  # a time that cannot be read leaves the id
            return project_key(number, created)
        return str(number)
    text = str(told) if isinstance(told, str | int) and not isinstance(told, bool) else ""
    return text if _PROJECT.fullmatch(text) else ""


def _projects_of(tasks: Iterable[object]) -> list[object]:
    """What the first task says of its project: 1.0.9 keeps it from `predict` in any other form."""
    first = next(iter(tasks), None)
    return [first.get("project")] if isinstance(first, Mapping) else []


def find_project(parts: Parts, named: Named) -> Project | None:
    """The store's record of a project: by its name, else its id, else its label config.

    Where several fit, the one with the same label config, then the one made last.
    """
    address = parts.settings.label_studio_url

    def fits(project: Project) -> bool:
        if address and project.number and project.key != store_key(address, project.project):
            return False  # the same ids come from every Label Studio
        if named.project:
            return project.project == named.project
        if named.number is not None:
            return project.number == named.number
        return bool(named.label_config) and project.label_config == named.label_config

    def preference(project: Project) -> tuple[bool, int]:
        made = project.project.rpartition(".")[2]
        return project.label_config == named.label_config, int(made) if made.isdigit() else 0

    return max(filter(fits, parts.store.projects()), key=preference, default=None)


def remember_project(parts: Parts, named: Named) -> Project:
    """The project's record, made if there is none.

    A project that nobody names is known by its label config.

    Raises:
        StudioError: only the id is told, and Label Studio does not say when the project was made.
        ModelStoreError: the store cannot be written.
    """
    known = find_project(parts, named)
    if known is not None:
        config = named.label_config or known.label_config
        return parts.store.register(replace(known, label_config=config))
    address = parts.settings.label_studio_url
    name = named.project
    if not name and named.number is not None:
        created = None
        if _has_api(parts.settings):
            created = parts.studio.settings(named.number).get("created_at")
        name = project_key(named.number, str(created)) if created else f"{named.number}.0"
    if name:
        key, number = store_key(address or "label-studio", name), int(name.split(".")[0])
    else:
        digest = hashlib.sha256(named.label_config.encode()).hexdigest()
        key, number, name = f"label-config-{digest[:16]}", 0, "0.0"
    return parts.store.register(Project(key, number, name, address, named.label_config))


def _predictions(
    parts: Parts,
    project: Project,
    version: str,
    config: LabelConfig,
    rows: Sequence[Mapping[str, Any]],
) -> Iterator[dict[str, Any]]:
    """One entry per task, in order."""
    places = places_of(parts.store, project.key, version)
    try:
        predictor = parts.predictors.get(project, version, config.tree)
    except EarlierReleaseError as error:  # a training is needed; what is stored stays
        log.warning("no answers project=%s: %s", project.key, error)
        for row in rows:
            place = places.place(as_id(row.get("id")) or 0)
            yield prediction(config, None, score=place, version=version)
        return
    extractor = parts.extractors.of(predictor)
    refs = [config.image_address(row.get("data") or {}) for row in rows]
    items = [
        (ref, as_id(row.get("id")) or 0)
        for ref, row in zip(refs, rows, strict=True)
        if ref is not None
    ]
    found = iter(answers(extractor, predictor, items))
    for ref, row in zip(refs, rows, strict=True):
        answer = (
            ImageError(f"its data has no image address in {config.image_key!r}")
            if ref is None
            else next(found)
        )
        task = as_id(row.get("id")) or 0
        if isinstance(answer, Answer):
            yield entry_of(answer, config, version, places.place(task, answer.margin))
        else:
            log.warning("no answer task=%d: %s", task, answer.reason)
            yield prediction(config, None, score=places.place(task), version=version)


def _fit(parts: Parts, named: Named, call: FitCall) -> Ended:
    """Hand over, or train here.

    Raises:
        TooFewLabelsError, StudioError, ModelError, JobError: see ``worker.jobs``.
    """
    if call.kind != Event.START_TRAINING and not call.kind.changes_labels:
        return Ended("nothing to do", f"{call.kind} changes no labels")
    project = remember_project(parts, named)
    handed_over = _hand_over(parts, project, call.kind) if parts.settings.redis_url else None
    if handed_over is not None:
        return handed_over
    with _alone(parts.settings.home, project.key) as alone:
        if not alone:
            return Ended("busy", "a training of this project runs: ask again when it has ended")
        return _train(parts, project, call)


def _hand_over(parts: Parts, project: Project, kind: Event) -> Ended | None:
    """Ask our worker and return at once; None where its queue is not installed."""
    try:
        from worker.queue import RedisError  # an upstream server may do without RQ
    except ImportError as error:
        log.warning("REDIS_URL is set, but %s is not installed: training here", error.name)
        return None
    try:
        if kind == Event.START_TRAINING:
            asked = parts.board.ask(Order(project.key, "asked through label-studio-ml"))
            return Ended(asked.state, f"our worker has it as {asked.job}")
        parts.board.note_event(project.key)
    except RedisError as error:
        return Ended("failed", f"Redis cannot be reached: {redis_in_words(error)}")
    return Ended("noted", "our worker trains when its policy says so")


@contextmanager
def _alone(folder: Path, key: str) -> Iterator[bool]:
    """One training of a project at a time; 1.0.9 starts a process for each event."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / f"training-{key}.lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
        else:
            yield True  # closing the file opens the lock


def _train(parts: Parts, project: Project, call: FitCall) -> Ended:
    """Read labels from Label Studio, else from the tasks that were handed over, and learn."""
    if _has_api(parts.settings) and project.number:
        project, config, snapshot = read_labels(project, parts)
    elif call.tasks:
        config = _label_config(project.label_config)
        snapshot = take((read_task(task, config) for task in call.tasks), config.tree)
    else:
        return Ended(
            "failed",
            "no labels to read: set LABEL_STUDIO_URL and LABEL_STUDIO_API_KEY (the token is made "
            "in Label Studio under Account & Settings)",
        )
    new, wanted = _unlearnt(parts, project, snapshot), parts.settings.train_every
    if call.kind != Event.START_TRAINING and new < wanted:
        return Ended("not yet", f"{new} new labels; {wanted} start a training (HRN_TRAIN_EVERY)")
    order = Order(project.key, "asked through label-studio-ml")
    return learn(order, project, config, snapshot, parts, _log_progress)


def _unlearnt(parts: Parts, project: Project, snapshot: Snapshot) -> int:
    """Labels newer than what the live version has learnt."""
    live = parts.store.current(project.key)
    manifest = parts.store.manifest(project.key, live) if live else None
    # A version of an earlier release answers nothing: all labels wait for its successor.
    through = str(manifest.trained_through) if manifest and runs_here(manifest) else ""
    return sum(label.updated_at > through for label in snapshot.labels)


def _log_progress(stage: str, done: int, total: int, **figures: float) -> None:
    log.debug("%s %d/%d %s", stage, done, total, figures)


def _has_api(settings: Settings) -> bool:
    return bool(settings.label_studio_url and settings.label_studio_token)


def _parts() -> Parts:
    return _parts_of(Settings.from_environ(os.environ))


# Both servers make a new model at each request: what is slow to load stays with its settings.
@lru_cache(maxsize=2)
def _parts_of(settings: Settings) -> Parts:
    return Parts(settings)


_label_config = lru_cache(maxsize=64)(parse_label_config)
