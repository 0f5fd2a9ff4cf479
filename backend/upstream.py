"""Our model under Label Studio's own server `label-studio-ml`, where somebody already runs that.

One class for both of its lines, PyPI's 1.0.9 and the 2.x of its repository: they call the same two
methods with different arguments. Flask and the queue are not needed here; docs/upstream.md says how
to use it and what is not available.
"""

import fcntl
import logging
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any, Final

from label_studio_ml.model import LabelStudioMLBase

from backend.prelabels import predictions
from inference.errors import ModelError
from inference.predictor import runs_here
from inference.store import UNTRAINED, Project
from inference.store import project_key as store_key
from studio.errors import ContractError, StudioError
from studio.json_fields import as_id, as_text
from studio.label_config import parse_label_config
from studio.schemas import Event, project_key
from worker.asking import places_of
from worker.errors import JobError, MisconfiguredError, redis_in_words
from worker.order import Order
from worker.parts import Parts
from worker.settings import Settings
from worker.snapshot import Snapshot
from worker.trainer import TooFewLabelsError
from worker.training import Ended, learn, read_labels

log = logging.getLogger(__name__)

#: ``<id>.<creation time>``, or the id alone.
_PROJECT: Final = re.compile(r"[0-9]{1,19}(\.[0-9]{1,19})?", re.ASCII)

Task = Mapping[str, Any]


class HRNModel(LabelStudioMLBase):  # type: ignore[misc] # the library has no types
    """The model under `label-studio-ml`: it answers and learns as far as that lets it.

    Settings come from the environment, as for every part of ours; versions from the model store.
    """

    #: Events that reach `fit`; 1.0.9 does not know START_TRAINING, neither knows the plurals.
    TRAIN_EVENTS = (
        "START_TRAINING",
        "ANNOTATION_CREATED",
        "ANNOTATION_UPDATED",
        "ANNOTATIONS_CREATED",
        "ANNOTATIONS_DELETED",
    )

    #: The version that the server answers `/setup` with, where that is in our hands.
    _reported: str | None = None

    def __init__(self, *args: Any, **kwargs: Any) -> None:  # noqa: ANN401 - each server has its own
        super().__init__(*args, **kwargs)
        last = kwargs.get("train_output")
        if isinstance(last, dict) and "job_id" in last:
            # 1.0.9 answers `/setup` with the last job's id, which it reads from this very dict
            # after making the model. Label Studio wants predictions under the same name.
            self._reported = last["job_id"] = _version(_parts(), self._project())

    def setup(self) -> None:
        """Set what 2.x answers `/setup` with; it calls this at the end of each start."""
        self._report(_version(_parts(), self._project()))

    def predict(
        self,
        tasks: Sequence[Task] | Task,
        context: Mapping[str, Any] | None = None,  # noqa: ARG002 - 2.x hands it over
        **kwargs: Any,  # noqa: ANN401
    ) -> list[dict[str, Any]]:
        """Answer each task at the deepest node that the live version can stand behind.

        Args:
            tasks: a list of tasks, or one.
            context: of an interactive call; an image's class does not depend on it.
            kwargs: ``project`` or ``project_id`` if the caller knows it.

        Returns:
            One prediction per task, in order; empty ones while untrained and for bad images.
            Without ``model_version`` where the server will not say the same in `/setup`: Label
            Studio then files them under what it said, and does not ask again at every visit.

        Raises:
            LabelConfigError: there is a version, and today's label config has no usable tree.
            ModelError: the version cannot be read.
        """
        rows = [tasks] if isinstance(tasks, Mapping) else list(tasks)
        parts = _parts()
        named = (kwargs.get("project"), kwargs.get("project_id"), *(r.get("project") for r in rows))
        project = self._project(*named)
        version = _version(parts, project)
        self._report(version)
        if project is None or version == UNTRAINED:
            empty = {"result": [], "score": 0.0, "model_version": UNTRAINED}
            return [self._filed(empty) for _ in rows]
        config = _label_config(self._label_config() or project.label_config)
        places = places_of(parts.store, project.key, version)
        asked = [(as_id(row.get("id")) or 0, row.get("data") or {}) for row in rows]
        found = predictions(parts, project, config, places, asked)
        return [self._filed(entry) for entry, _ in found]

    def fit(self, *args: Any, **kwargs: Any) -> dict[str, Any]:  # noqa: ANN401
        """Learn from the project's labels, or ask our worker to, where there is a queue.

        1.0.9 calls ``fit(tasks, workdir, event=..., data=...)``, 2.x calls ``fit(event, data)``.

        Returns:
            How it ended: ``state``, ``why``, ``version``, ``figures``, and the live version as
            ``model_version``. What can go wrong with labels, images and settings is said here
            and not raised: 1.0.9 drops errors, and 2.x would show Label Studio a page of HTML.
        """
        event, data = kwargs.get("event"), kwargs.get("data")
        if args and isinstance(args[0], str):  # 2.x
            event, data = args[0], args[1] if len(args) > 1 else data
        kind = _event(event)
        told = data.get("project") if isinstance(data, Mapping) else None
        config = as_text(told.get("label_config")) if isinstance(told, Mapping) else ""
        named = (kwargs.get("project"), told, getattr(self, "project_id", None))
        parts = _parts()
        try:
            ended = _fit(parts, named, config or self._label_config(), kind)
        except TooFewLabelsError as error:
            ended = Ended("too few labels", str(error))
        except (StudioError, ModelError, JobError, FloatingPointError) as error:
            ended = Ended("failed", str(error))
        log.info("fit event=%s state=%s: %s", kind, ended.state, ended.why)
        version = _version(parts, self._project(*named))
        self._report(version)
        return {**ended.to_json(), "model_version": version}

    def _label_config(self) -> str:
        return as_text(getattr(self, "label_config", None)) or ""

    def _project(self, *named: object) -> Project | None:
        """Find the project by what a call says of it, else by what the server set up."""
        named = (*named, getattr(self, "project_id", None))
        return find_project(_parts(), named, self._label_config())

    def _report(self, version: str) -> None:
        """Tell 2.x the version; 1.0.9 has nothing to tell it to."""
        if hasattr(self, "set"):
            self._reported = version
            self.set("model_version", version)

    def _filed(self, entry: dict[str, Any]) -> dict[str, Any]:
        if entry["model_version"] == self._reported:
            return entry
        return {name: value for name, value in entry.items() if name != "model_version"}


def find_project(parts: Parts, named: Iterable[object], label_config: str) -> Project | None:
    """Find the store's record of a project: by its name, else its id, else its label config.

    Where several fit, the one with the same label config, then the one made last.

    Args:
        parts: the dependencies.
        named: whatever may name it: ``<id>.<creation time>``, an id, a webhook's project.
        label_config: XML, "" if not known.
    """
    name = _name(named)
    address = parts.settings.label_studio_url

    def fits(project: Project) -> bool:
        if address and project.number and project.key != store_key(address, project.project):
            return False  # the same ids come from every Label Studio
        if name:
            return name in (project.project, str(project.number))
        return bool(label_config) and project.label_config == label_config

    def preference(project: Project) -> tuple[bool, int]:
        made = project.project.rpartition(".")[2]
        return project.label_config == label_config, int(made) if made.isdigit() else 0

    return max(filter(fits, parts.store.projects()), key=preference, default=None)


def remember_project(parts: Parts, named: Sequence[object], label_config: str) -> Project:
    """Return the project's record with today's label config, made if there is none.

    Raises:
        MisconfiguredError: it is not known, and the call does not say when it was made.
        ModelStoreError: the store cannot be written.
    """
    known = find_project(parts, named, label_config)
    if known is not None:
        return parts.store.register(replace(known, label_config=label_config or known.label_config))
    name = _name(named)
    if "." not in name:
        raise MisconfiguredError("expected a project with its creation time, as webhooks name it")
    address = parts.settings.label_studio_url
    key, number = store_key(address or "label-studio", name), int(name.partition(".")[0])
    return parts.store.register(Project(key, number, name, address, label_config))


def _name(named: Iterable[object]) -> str:
    """Return the first ``<id>.<creation time>`` among what names a project, else the first id."""
    names = [name for one in named if (name := _name_of(one))]
    return next((name for name in names if "." in name), names[0] if names else "")


def _name_of(one: object) -> str:
    if isinstance(one, Mapping):
        number, created = as_id(one.get("id")), as_text(one.get("created_at"))
        if number is None:
            return ""
        with suppress(ContractError):  # a time that cannot be read leaves the id
            return project_key(number, created)
        return str(number)
    text = str(one) if isinstance(one, str | int) and not isinstance(one, bool) else ""
    return text if _PROJECT.fullmatch(text) else ""


def _event(name: object) -> Event:
    if not name:
        return Event.START_TRAINING
    return next((event for event in Event if event == name), Event.OTHER)


def _version(parts: Parts, project: Project | None) -> str:
    """Return the name of the live version, "untrained" without one."""
    return (parts.store.current(project.key) if project else None) or UNTRAINED


def _fit(parts: Parts, named: Sequence[object], label_config: str, kind: Event) -> Ended:
    """Ask our worker, or train here.

    Raises:
        TooFewLabelsError, StudioError, ModelError, JobError: see ``worker.jobs``.
    """
    if kind != Event.START_TRAINING and not kind.changes_labels:
        return Ended("nothing to do", f"{kind} changes no labels")
    settings = parts.settings
    if not settings.redis_url and not (settings.label_studio_url and settings.label_studio_token):
        return Ended(
            "failed",
            "no labels to read: set LABEL_STUDIO_URL and LABEL_STUDIO_API_KEY (the token is made "
            "in Label Studio under Account & Settings)",
        )
    project = remember_project(parts, named, label_config)
    if settings.redis_url:
        return _ask_worker(parts, project, kind)
    with _alone(settings.home, project.key) as alone:
        if not alone:
            return Ended("busy", "a training of this project runs: ask again when it has ended")
        return _train(parts, project, kind)


def _ask_worker(parts: Parts, project: Project, kind: Event) -> Ended:
    try:
        from worker.queue import RedisError  # an upstream server may do without RQ
    except ImportError as error:
        return Ended("failed", f"REDIS_URL is set, but {error.name} is not installed: install it")
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
    """Hold a lock, one training per project at a time; 1.0.9 starts a process for each event."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / f"training-{key}.lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
        else:
            yield True  # closing the file opens the lock


def _train(parts: Parts, project: Project, kind: Event) -> Ended:
    project, config, snapshot = read_labels(project, parts)
    new, wanted = _unlearnt(parts, project, snapshot), parts.settings.train_every
    if kind != Event.START_TRAINING and new < wanted:
        return Ended("not yet", f"{new} new labels; {wanted} start a training (HRN_TRAIN_EVERY)")
    order = Order(project.key, "asked through label-studio-ml")
    return learn(order, project, config, snapshot, parts, _log_progress)


def _unlearnt(parts: Parts, project: Project, snapshot: Snapshot) -> int:
    """Count the labels newer than those that the live version has learnt from."""
    live = parts.store.current(project.key)
    manifest = parts.store.manifest(project.key, live) if live else None
    # A version of an earlier release answers nothing: all labels wait for its successor.
    through = str(manifest.trained_through) if manifest and runs_here(manifest) else ""
    return sum(label.updated_at > through for label in snapshot.labels)


def _log_progress(stage: str, done: int, total: int, **figures: float) -> None:
    log.debug("%s %d/%d %s", stage, done, total, figures)


def _parts() -> Parts:
    return _parts_of(Settings.from_environ(os.environ))


# Both servers make a new model at each request: what is slow to load stays with its settings.
_parts_of = lru_cache(maxsize=2)(Parts)
_label_config = lru_cache(maxsize=64)(parse_label_config)
