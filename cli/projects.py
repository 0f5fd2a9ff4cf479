"""What the commands do to one project: ask for training, show, choose a version, predict."""

import hashlib
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from cli.redis_server import no_answer
from inference.errors import ModelError
from inference.predictor import check_runs
from inference.store import CONNECTED, DISCONNECTED, GONE, Project
from studio.errors import ImageError
from studio.image_fetcher import FetchedImage
from worker import choosing, presence
from worker.errors import MisconfiguredError
from worker.order import Order
from worker.parts import Parts
from worker.queue import RedisError
from worker.reading import Read
from worker.showing import nothing_shown
from worker.snapshot import counted, left_out, passed_over
from worker.unlike import unlike


class UsageError(Exception):
    """The command was asked for something that is not there; the message says what there is."""


def find(parts: Parts, wanted: str | None, *, connected_first: bool = True) -> Project:
    """Find the project that is meant: by its number in Label Studio, its key, or as the only one.

    Of several that fit, one that is connected alone; any, without ``connected_first``.

    Raises:
        UsageError: none, or several, fit.
    """
    known = parts.store.projects()
    fitting = [p for p in known if wanted is None or wanted in (str(p.number), p.key, p.project)]
    if len(fitting) > 1 and connected_first:
        fitting = [p for p in fitting if p.state == CONNECTED] or fitting
    if len(fitting) == 1:
        return fitting[0]
    if not known:
        raise UsageError(
            f"no project has called yet in {where(parts)}: connect one (`hrn connect "
            "--project NUMBER`), or set HRN_HOME if yours are elsewhere"
        )
    # A number tells them apart, unless they are of several Label Studios.
    numbers = [p.number for p in known]
    names = ", ".join(
        (str(p.number) if numbers.count(p.number) == 1 else p.key)
        + (f" ({p.title})" if p.title else "")
        for p in known
    )
    what = "no project" if not fitting else "more than one project"
    meant = "" if wanted is None else f" {wanted!r}"
    raise UsageError(f"{what} fits{meant}: give --project with one of: {names}")


def where(parts: Parts) -> str:
    """Return where versions are: a whole path, or a bucket's address."""
    ours = parts.settings
    return parts.store.files.where if ours.in_bucket else str(ours.store.resolve())


def ask_training(parts: Parts, project: Project, order: Order) -> dict[str, Any]:
    """Ask for a training.

    Raises:
        DisconnectedError: Label Studio has no use for this backend in the project any more.
    """
    if project.state in (DISCONNECTED, GONE):
        raise presence.DisconnectedError(presence.sentence(project))
    asked = parts.board.ask(order)
    return {"project": project.key, "job": asked.job, "state": asked.state}


def status(parts: Parts) -> dict[str, Any]:
    """Return the status of all, as plain data."""
    workers: list[dict[str, Any]] = []
    waiting, problem = None, ""
    try:
        workers, waiting = parts.board.workers(), parts.board.depth()
    except RedisError as error:
        problem = no_answer(error)
    except MisconfiguredError as error:
        problem = f"no server runs here: {error}"
    return {
        "home": str(parts.settings.home.resolve()),
        "store": where(parts),
        "problem": problem,
        "workers": workers,
        "waiting_jobs": waiting,
        "projects": [project_status(parts, project) for project in parts.store.projects()],
    }


def describe_all(found: Mapping[str, Any]) -> str:
    """Say the status of all."""
    where = f"home {found['home']}"
    lines = [describe(row) for row in found["projects"]]
    if not lines:
        none = (
            "no project has called yet: connect one (`hrn connect --project NUMBER`), or set "
            f"HRN_HOME if yours are elsewhere than in {found['store']}"
        )
        lines = [none]
    if found["problem"]:
        return "\n".join([*lines, where, f"PROBLEM: {found['problem']}"])
    workers, jobs = len(found["workers"]), found["waiting_jobs"]
    counts = f"{workers} worker{'' if workers == 1 else 's'}, {jobs} waiting job"
    return "\n".join([*lines, f"{counts}{'' if jobs == 1 else 's'}; {where}"])


def describe_cancelled(request: Mapping[str, Any]) -> str:
    """Say what became of a training that was cancelled."""
    reason = (request.get("order") or {}).get("reason") or "no reason given"
    if request["state"] == "running":
        return f"{request['job']} was asked to stop, which takes seconds ({reason})"
    waited = "was put off" if request["state"] == "put off" else "waited"
    return f"a training that {waited} was dropped ({reason})"


def project_status(parts: Parts, project: Project) -> dict[str, Any]:
    """Return a project's version, what runs, and how the last training ended."""
    version, learnt = parts.store.current(project.key), Read()
    told: dict[str, Any] = {
        "project": project.number,
        "title": project.title,
        "key": project.key,
        "label_studio": project.label_studio,
        "version": version,
        "pinned": project.pinned,
        "state": project.state,
    }
    if problem := presence.sentence(project):
        told["state_text"] = problem
    if version:
        try:
            manifest = parts.records.summary(project.key, version)
            calibration = parts.records.calibration(project, version)
            missing = nothing_shown(parts, project, version)
            check_runs(manifest, version)
        except ModelError as error:
            told["problem"] = str(error)
        else:
            told |= {"metrics": manifest.metrics, "labels": manifest.labels}
            told["calibration"] = calibration
            learnt = Read.of_version(manifest)
            told["following"] = following(parts, project, version)
            told["missing"] = missing and {**asdict(missing), "words": missing.words}
    try:
        state, job = parts.board.state(project.key)
        runs = parts.board.runs(project.key)
        told |= {
            "training": state,
            "job": job,
            "progress": parts.board.progress(project.key),
            "events_since": parts.board.events(project.key)[0],
            "unlearnt": parts.board.unlearnt(project.key),
            "behind": parts.board.behind(project.key, version, learnt),
            "unlike": unlike(parts, project.key, version),
            "last_run": runs[0] if runs else None,
        }
    except (RedisError, MisconfiguredError):
        told["training"] = "unknown: Redis cannot be reached"
    return told


def describe(told: dict[str, Any]) -> str:
    """Say the status of a project."""
    lines = [f"Project {told['project']} {told['title']!r}: {told['version'] or 'untrained'}"]
    if told["pinned"]:
        lines[0] += " (chosen by hand: new versions wait; `hrn promote` ends that)"
    if "state_text" in told:
        lines.append(f"  {told['state_text']}")
    if "problem" in told:
        lines.append(f"  problem: {told['problem']}")
    if "calibration" in told:
        missing = told.get("missing")
        nothing = missing and f"shows nothing yet: {missing['words']}"
        lines.append(f"  {nothing or promise(told['calibration'])}")
        lines += [f"  {line}" for line in _learnt(told)]
    if told.get("following"):
        lines.append(f"  {seen_since(told['following'])}")
    if progress := told.get("progress"):
        left = progress.get("seconds_left")
        tail = "" if left is None else f", {left:.0f} s left in this stage"
        lines.append(
            f"  training: {progress['stage']} {progress['done']}/{progress['total']}{tail}"
        )
    elif told["training"] != "idle":
        lines.append(f"  training: {told['training']}")
    if new := newer(told["version"], told.get("unlearnt", 0), told.get("behind", 0)):
        lines.append(f"  {new}")
    if run := told.get("last_run"):
        ago = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(run["ended_at"]))
        lines.append(f"  last training: {run['state']} at {ago} ({run['why']})")
    return "\n".join(lines)


def _learnt(told: dict[str, Any]) -> list[str]:
    """Say what the live version has learnt from, how right it is, and where that fails."""
    count, right = told["labels"]["labels"], levels(told["metrics"])
    lines = [
        f"learnt from {count} labels; of images held out whose label reaches it, right on {right}",
        *left_out(told["labels"]),
    ]
    if passed := passed_over(told["labels"]):
        lines.append(f"passed over: {counted(passed)}")
    if (found := told.get("unlike")) and found["words"]:
        lines.append(found["words"])
    return lines


def newer(version: str | None, unlearnt: int, behind: int | None) -> str:
    """Say how many answers the live version has not learnt from; "" if there are none.

    Args:
        version: the live one.
        unlearnt: labels that no training has read.
        behind: labels that one has read and this version has not; None: not counted yet.
    """
    if not version:
        return f"{unlearnt} labels so far" if unlearnt else ""
    if behind is None:
        return f"newer answers that {version} has not learnt are being counted"
    if not unlearnt + behind:
        return ""
    read = f", {behind} of them read by a training" if behind else ""
    return f"{unlearnt + behind} newer answers, which {version} has not learnt{read}"


def promise(calibration: dict[str, Any]) -> str:
    """Say what is promised of shown labels, and on what grounds."""
    target = f"{calibration['rule']['target']:.0%}"
    given = (
        f"{calibration['given']:.0%} of images get a label, "
        f"mean depth {calibration['mean_depth']:.2f}"
    )
    grounds = (
        f"{calibration['wrong']} of {calibration['checked']} shown labels were wrong when held out"
    )
    if drawn := calibration.get("drawn"):
        grounds += f", {calibration['drawn_wrong']} of the {drawn} drawn at random"
    if calibration["standing"] == "certified":
        return f"shown labels are {target} right, certified ({grounds}); {given}"
    if calibration["standing"] == "estimated":
        return (
            f"shown labels are {target} right by estimate, too few images for a certificate "
            f"({grounds}); {given}"
        )
    return f"no label is shown: too little evidence yet that {target} would be right"


def levels(metrics: dict[str, Any]) -> str:
    """Say the accuracy by level: of the held-out images whose label reaches that level."""
    parts = [
        f"level {row['level']} {row['accuracy']:.0%} of {row['checked']}"
        for row in metrics.get("by_level", ())
    ]
    return ", ".join(parts) or "no level (nothing was kept that could be checked)"


def following(parts: Parts, project: Project, version: str) -> dict[str, Any] | None:
    """Return how right shown labels of a version were, None if no annotator answered."""
    try:
        kept = parts.store.read_following(project.key, version)
    except ModelError as error:
        return {"problem": str(error)}
    return None if kept is None else kept.get("told")


def seen_since(told: dict[str, Any]) -> str:
    """Say the running accuracy of shown labels."""
    if "problem" in told:
        return f"answers to pre-labels: {told['problem']}"
    parts = [
        f"{'all' if not row['level'] else 'level ' + str(row['level'])} {row['accuracy']:.0%} of "
        f"{row['checked']} ({row['low']:.0%} to {row['high']:.0%})"
        for row in told["levels"]
        if row["accuracy"] is not None
    ]
    what = ", ".join(parts) + " right" if parts else "none could be checked yet"
    return f"shown since, by annotators' answers: {what}; {told['grounds']}"


def versions(parts: Parts, project: Project) -> list[dict[str, Any]]:
    """Return every version with its figures, oldest first."""
    current, told = parts.store.current(project.key), []
    for name in parts.store.versions(project.key):
        row: dict[str, Any] = {"version": name, "live": name == current}
        try:
            manifest = parts.records.summary(project.key, name)
        except ModelError as error:
            row["problem"] = str(error)
        else:
            keys = ("published_at", "parent", "metrics", "calibration", "labels", "gate", "seconds")
            row |= {key: getattr(manifest, key) for key in keys}
            row["following"] = following(parts, project, name)
        told.append(row)
    return told


def describe_version(row: dict[str, Any]) -> str:
    """Say a version in a line."""
    mark = "*" if row["live"] else " "
    if "problem" in row:
        return f"{mark} {row['version']:6} {row['problem']}"
    when = time.strftime("%Y-%m-%d %H:%M", time.localtime(row["published_at"]))
    gate = "" if row["gate"]["passed"] else f"  refused: {row['gate']['why']}"
    return (
        f"{mark} {row['version']:6} {when}  {row['labels']['labels']:5} labels  "
        f"right on {levels(row['metrics'])}; {row['calibration']['standing']}, "
        f"{row['calibration']['given']:.0%} given{gate}"
    )


def live_version(parts: Parts, project: Project) -> str:
    """Return the name of the live version.

    Raises:
        UsageError: the project has no version yet.
    """
    version = parts.store.current(project.key)
    if version is None:
        raise UsageError(f"{project.key} is untrained: label some images, then `hrn train`")
    return version


def predict(parts: Parts, project: Project, files: Sequence[Path]) -> list[dict[str, Any]]:
    """Answer image files on this machine.

    Raises:
        UsageError: the project has no version yet.
        ModelError: the version cannot be used here.
    """
    version = live_version(parts, project)
    predictor = parts.predictors.get(project, version)
    extractor = parts.extractors.of(predictor)
    rows: list[dict[str, Any]] = []
    for file in files:
        try:
            vector = extractor.vectors_of_image(read_image(file))
        except ImageError as error:
            rows.append({"file": str(file), "problem": error.reason})
            continue
        (found,) = predictor.answer(vector[None])
        rows.append(
            {
                "file": str(file),
                "version": version,
                "answer": found.path,
                "probability": round(found.probability, 4),
                "best_leaf": found.leaf,
                "confidence": round(found.confidence, 4),
                "reason": found.why,
            }
        )
    return rows


def read_image(file: Path) -> FetchedImage:
    """Read an image file.

    Raises:
        ImageError: it cannot be read.
    """
    try:
        data = file.read_bytes()
    except OSError as error:
        raise ImageError(f"{file} cannot be read: {error.strerror}") from error
    return FetchedImage(hashlib.sha256(data).hexdigest(), data)


def describe_answer(row: Mapping[str, Any]) -> str:
    """Say what would be shown of one image, and what the model takes it for, or its problem."""
    if "problem" in row:
        return str(row["problem"])
    best = f"best leaf {' > '.join(row['best_leaf'])} ({row['confidence']:.0%})"
    if row["answer"]:
        return f"{' > '.join(row['answer'])} ({row['probability']:.0%}); {best}"
    return f"no label is shown ({row['reason']}); {best}"


def limit_depth(  # noqa: PLR0913 - a project, and each thing that may be asked of it
    parts: Parts,
    project: Project,
    target: float | None,
    minimum: int | None,
    maximum: int | None,
    strict: bool | None,  # noqa: FBT001 - yes, no or as it is
) -> dict[str, Any]:
    """Set what is asked for, and tell what would be shown at which depth.

    Raises:
        ChoiceError: a value is out of range.
    """
    asked = replace(
        project,
        target_accuracy=project.target_accuracy if target is None else target,
        minimum_depth=project.minimum_depth if minimum is None else minimum,
        maximum_depth=project.maximum_depth if maximum is None else maximum or None,
        strict=project.strict if strict is None else strict,
    )
    choosing.set_depth(parts, asked)
    told: dict[str, Any] = {
        "project": asked.key,
        "target": asked.target_accuracy or parts.settings.target_accuracy,
        "minimum": asked.minimum_depth,
        "maximum": asked.maximum_depth,
        "strict": asked.strict,
        "version": None,
    }
    return {**told, **_preview(parts, asked)}


def _preview(parts: Parts, project: Project) -> dict[str, Any]:
    """Return what the live version would show of the images that it was checked on."""
    told = choosing.depth_preview(parts, project)
    if told is None:
        return {}
    live, found = told
    shares = [round(share, 4) for share in found.depths]
    levels = list(found.levels)
    return {"version": live, "standing": found.standing, "shares": shares, "levels": levels}


def depth_text(told: Mapping[str, Any]) -> str:
    """Say how deep pre-labels go, and what would be shown."""
    limit = "any depth" if told["maximum"] is None else f"depth {told['maximum']}"
    of_what = "on each level" if told["strict"] else "of shown labels"
    lines = [f"target {told['target']:.0%} {of_what}, from depth {told['minimum']} to {limit}"]
    if told["version"] is None:
        return "\n".join([*lines, "  no version is live yet"])
    shares, nothing = told["shares"], told["shares"][0]
    depths = ", ".join(f"depth {level} {shares[level]:.0%}" for level in told["levels"])
    lines.append(
        f"  {told['version']} would show, of the images it was checked on: {depths}, "
        f"nothing {nothing:.0%} ({told['standing']})"
    )
    return "\n".join(lines)
