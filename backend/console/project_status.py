"""The status of a project in words: for its card, and for the page that watches its training."""

import hashlib
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from backend.console.layout import plain, share, span
from backend.services import from_redis
from inference.errors import ModelError
from inference.insight import Missing
from inference.manifest import Manifest
from inference.predictor import check_runs
from inference.store import DISCONNECTED, GONE, UNCONFIRMED, Project
from worker import presence
from worker.errors import MisconfiguredError
from worker.parts import Parts
from worker.queue import RedisError
from worker.reading import Read
from worker.showing import nothing_shown
from worker.snapshot import left_out
from worker.unlike import unlike

#: Stages of a training, as people would call them.
STAGES: Mapping[str, str] = {
    "reading labels": "Reading labels from Label Studio",
    "fetching images": "Fetching images",
    "decoding": "Preparing images",
    "fitting": "Fitting the head",
    "fine-tuning": "Fine-tuning the network",
    "calibrating": "Calibrating how deep to answer",
    "publishing": "Publishing",
}

#: Names of the states of a project that is not connected.
STATES: Mapping[str, str] = {
    UNCONFIRMED: "Not confirmed yet",
    DISCONNECTED: "Disconnected",
    GONE: "Not in Label Studio",
}

#: Titles of a stage's accuracy: of which images it is.
ON: Mapping[str, str] = {
    "fitting": "Right on the level that was answered, of images held out",
    "fine-tuning": "Right on the level that was answered, of images it learns from",
}


@dataclass(frozen=True)
class Training:
    """A project's trainings, as Redis has them.

    Attributes:
        known: False while Redis is away; the rest is then empty.
        state: queued, running, idle.
        wishes: trainings that run, wait or were put off.
        progress: where the running one is.
        unlearnt: labels that no training has read.
        behind: labels that one has read and the live version has not; None: not counted yet.
        runs: how past ones ended, newest first.
    """

    known: bool
    state: str = "idle"
    wishes: Sequence[Mapping[str, Any]] = ()
    progress: Mapping[str, Any] | None = None
    unlearnt: int = 0
    behind: int | None = 0
    runs: Sequence[Mapping[str, Any]] = ()

    @classmethod
    def of(cls, parts: Parts, project: Project, version: str | None, learnt: Read) -> "Training":
        """Read them, beside the live version and how far that has read."""
        try:
            board, key = parts.board, project.key
            wishes = board.wishes(key)
            progress = board.progress(key) if wishes and wishes[0]["state"] == "running" else None
            state = wishes[0]["state"] if wishes and "job" in wishes[0] else "idle"
            return cls(
                known=True,
                state=state,
                wishes=wishes,
                progress=progress,
                unlearnt=board.unlearnt(key),
                behind=board.behind(key, version, learnt),
                runs=board.runs(key),
            )
        except (RedisError, MisconfiguredError):
            return cls(known=False)

    @property
    def put_off(self) -> Mapping[str, Any] | None:
        """The training that waits for its time."""
        return next((wish for wish in self.wishes if wish["state"] == "put off"), None)

    @property
    def stage(self) -> str:
        """The running training's stage, "" while nothing runs."""
        if self.state != "running":
            return ""
        told = str((self.progress or {}).get("stage", ""))
        return STAGES.get(told, told.capitalize()) or "Starting"

    @property
    def percent(self) -> int:
        """Share of the stage that is done."""
        told = self.progress or {}
        total = told.get("total") or 0
        return min(100, int(100 * (told.get("done") or 0) / total)) if total else 0

    @property
    def left(self) -> str:
        """Time that the stage will take, in words, "" where nobody knows."""
        seconds = (self.progress or {}).get("seconds_left")
        if self.state != "running" or seconds is None:
            return ""
        return f"about {span(seconds)} left in this stage" if seconds >= 1 else "nearly done"


@dataclass(frozen=True)
class ProjectStatus:
    """The status of one project.

    Attributes:
        project: its record.
        version: the live one, None while untrained.
        labels: that the live version has learnt from.
        accuracy: the deepest level that could be checked, how many of its held-out images were
            right there, and how many reach it.
        coverage: share of images that get a label.
        training: what Redis knows.
        problems: what is wrong, each with its fix.
        left_out: what answers are not learnt as they were given, a sentence each.
        missing: what the live version needs before it shows a label; None where it shows some.
        unlike: what to say of open images unlike the labelled ones, "" where all is as usual.
    """

    project: Project
    version: str | None
    labels: int | None
    accuracy: tuple[int, int, int] | None
    coverage: float | None
    training: Training
    problems: Sequence[tuple[str, str]] = field(default=())
    left_out: Sequence[str] = ()
    missing: Missing | None = None
    unlike: str = ""

    @property
    def kind(self) -> str:
        """The colour of its chip."""
        if self.training.state == "running":
            return "busy"
        if self.project.state in STATES:
            return "plain"
        if self.problems or not self.training.known:
            return "warn"
        return "good" if self.version and self.missing is None else "plain"

    @property
    def chip(self) -> str:
        """The project's state in a word or three."""
        if self.training.state == "running":
            return "Training"
        if self.training.state == "queued":
            return "Waiting for a worker"
        if self.project.state in STATES:
            return STATES[self.project.state]
        if self.problems or not self.training.known:
            return "Needs attention"
        if self.missing is not None:
            return "Shows nothing yet"
        return "Live" if self.version else "Untrained"


def project_status(parts: Parts, project: Project) -> ProjectStatus:
    """Read a project's status; what cannot be read is among the problems."""
    problems = []
    version: str | None = None
    manifest = Manifest()
    missing: Missing | None = None
    try:
        version = parts.store.current(project.key)
        if version:
            calibration = parts.records.calibration(project, version)
            summary = parts.records.summary(project.key, version)
            manifest = replace(summary, calibration=calibration)
            missing = nothing_shown(parts, project, version)
            check_runs(manifest, version)
    except ModelError as error:
        fix = "Promote another version under Versions, or train again."
        problems.append((plain(str(error)), fix))
    training = Training.of(parts, project, version, Read.of_version(manifest))
    if not training.known:
        what = "Redis cannot be reached: predictions go on, trainings wait."
        problems.append((what, "Start Redis, or correct REDIS_URL where the server is started."))
    if training.put_off is not None:
        problems.append(_put_off(training))
    elif training.runs and training.runs[0].get("state") == "failed":
        what = f"The last training failed: {plain(training.runs[0].get('why', ''))}"
        fix = "Start it again under Training; should it fail again, the worker's log says more."
        problems.append((what, fix))
    return ProjectStatus(
        project,
        version,
        manifest.labels.get("labels"),
        _deepest(manifest),
        manifest.calibration.get("given"),
        training,
        problems,
        left_out(manifest.labels),
        missing,
        _unlike_words(parts, project.key, version),
    )


def _unlike_words(parts: Parts, key: str, version: str | None) -> str:
    """Return what is to be said of open images unlike the labelled ones; "" for nothing."""
    found = from_redis(parts, lambda _: unlike(parts, key, version), None)
    return "" if found is None else str(found["words"])


def _put_off(training: Training) -> tuple[str, str]:
    wish = training.put_off or {}
    seconds = max(0.0, float(wish.get("not_before", 0)) - time.time())
    why = next(
        (plain(run.get("why", "")) for run in training.runs if run.get("state") == "postponed"), ""
    )
    return f"A training was put off: {why}", f"It is tried again in {span(seconds)} by itself."


def _deepest(manifest: Manifest) -> tuple[int, int, int] | None:
    rows = manifest.metrics.get("by_level", ())
    return (rows[-1]["level"], rows[-1]["right"], rows[-1]["checked"]) if rows else None


def sentence(status: ProjectStatus, every: int, after: float, *, brief: bool = False) -> str:
    """Say what a project does, in one line.

    Args:
        status: of the project.
        every: new labels that start a training.
        after: minutes after the last of fewer.
        brief: leave out what is shown beside it while a training runs.
    """
    training = status.training
    if training.state == "idle" and (state := presence.sentence(status.project)):
        return f"{state}."
    first = _learnt(status)
    if training.state == "running":
        return f"{first}; {'a training runs' if brief else _running(training)}."
    if training.state == "queued":
        return f"{first}; a training waits for a worker."
    if not training.known:
        return f"{first}."
    when = f"training at {_plural(every, 'new answer')}"
    if training.unlearnt or status.version is None:
        when += f", or {after:g} min after the last one"
    if status.version is None:
        return f"{first}: {_plural(training.unlearnt, 'label')} so far, first {when}."
    return f"{first}, {_newer(status.version, training)}, next {when}."


def _running(training: Training) -> str:
    left = f", {training.left}" if training.left else ""
    return f"training now: {training.stage.lower()}, {training.percent} %{left}"


def _newer(version: str, training: Training) -> str:
    """Say how many answers the live version has not learnt from."""
    new, read = training.unlearnt, training.behind
    if read is None:
        return f"newer answers than those of {version} are being counted"
    if not read:
        return f"{new or 'nothing'} new since {version}"
    which = f"{read} of them" if new else "them"
    return f"{new + read} new since {version} (a training has read {which} already)"


def _learnt(status: ProjectStatus) -> str:
    if status.version is None:
        return "Not trained yet"
    if status.labels is None:
        return f"{status.version} is live"
    return f"Learning from {_plural(status.labels, 'label')}"


def _plural(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def revision(*shown: object) -> str:
    """Return a text that changes with what is shown: a page then asks for its parts again."""
    text = json.dumps(shown, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def curves(training: Training) -> dict[str, Any]:
    """Return the running training's plots, by figure: loss, accuracy."""
    points = list((training.progress or {}).get("curve", ()))
    found: dict[str, Any] = {}
    for name, words, is_share in (("loss", "Loss, nats", False), ("accuracy", "", True)):
        some = [point for point in points if isinstance(point.get(name), int | float)]
        if some:
            title = words or ON.get(str(some[-1].get("stage")), "Right")
            some.sort(key=lambda point: point["at"])
            found[name] = {
                "x": [round(float(point["at"]), 4) for point in some],
                "series": [{"name": title, "values": [point[name] for point in some]}],
                "x_name": "done",
                "x_share": True,
                "y_name": title,
                "y_share": is_share,
                "x_range": [0, 1],
                **({"y_range": [0, 1]} if is_share else {}),
            }
    return found


def figures_of(training: Training) -> str:
    """Return the last figures of the running training, in words."""
    curve = list((training.progress or {}).get("curve", ()))
    words = []
    for name, form in (("loss", "loss {:.3f} nats"), ("accuracy", "right so far {}")):
        last = next((point[name] for point in reversed(curve) if name in point), None)
        if last is not None:
            words.append(form.format(share(last, 1) if name == "accuracy" else last))
    return ", ".join(words)
