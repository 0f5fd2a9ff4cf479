"""Commands about projects and versions: each takes its arguments, prints, and returns a status."""

import json
import sys
import time
from argparse import Namespace
from dataclasses import asdict
from typing import Any, Final

from cli import heatmap, projects
from cli.connecting import connect_project, disconnect_project, forget_project
from inference import backup as backups
from inference.store import Project
from worker import choosing
from worker.doctor import examine
from worker.order import Order
from worker.parts import Parts
from worker.settings import Settings

#: Looks at an idle project, half a second apart, before a training counts as lost.
PATIENCE: Final = 20


def connect(arguments: Namespace, settings: Settings) -> int:
    """Set a project up in Label Studio."""
    over = arguments.take_over
    print(connect_project(Parts(settings), arguments.project, take_over=over, ask=_agreed))
    return 0


def disconnect(arguments: Namespace, settings: Settings) -> int:
    """Take this backend out of a project."""
    print("\n".join(disconnect_project(Parts(settings), arguments.project)))
    return 0


def forget(arguments: Namespace, settings: Settings) -> int:
    """Remove a project's versions."""
    ask = (lambda _: True) if arguments.yes else _agreed
    print(forget_project(Parts(settings), arguments.project, ask))
    return 0


def _agreed(question: str) -> bool:
    """Ask the person at the terminal; no where there is none."""
    if not sys.stdin.isatty():
        return False
    return input(f"{question} [y/N] ").strip().lower() in {"y", "yes"}


def train(arguments: Namespace, settings: Settings) -> int:
    """Ask for a training, or stop it."""
    given = {
        "--force": arguments.force,
        "--fine-tune": arguments.fine_tune is True,
        "--no-fine-tune": arguments.fine_tune is False,
        "--wait": arguments.wait,
    }
    also = [name for name, is_given in given.items() if is_given]
    if arguments.cancel and also:
        arguments.parser.error(f"--cancel starts no training: leave out {', '.join(also)}")
    parts, project = _project(arguments, settings)
    if arguments.cancel:
        stopped = parts.board.cancel(project.key)
        lines = [projects.describe_cancelled(one) for one in stopped] or ["nothing runs or waits"]
        _print(stopped, "\n".join(lines), as_json=arguments.json)
        return 0 if stopped else 1
    order = Order(project.key, "hrn train", force=arguments.force, fine_tune=arguments.fine_tune)
    asked = projects.ask_training(parts, project, order)
    if not arguments.wait:
        _print(asked, f"{asked['state']}: job {asked['job']}", as_json=arguments.json)
        return 0
    return follow(parts, project.key, asked["job"], as_json=arguments.json)


def follow(parts: Parts, key: str, job: str, *, as_json: bool) -> int:
    """Print a training's progress until it ends; its status."""
    last, idle = "", 0
    while idle < PATIENCE:
        ended = next((run for run in parts.board.runs(key) if run["job"] == job), None)
        if ended is not None and "again" in ended:  # its process died, another took its place
            job = ended["again"]
            continue
        if ended is not None:
            _print(ended, f"{ended['state']}: {ended['why']}", as_json=as_json)
            return 0 if ended["state"] in {"published", "nothing new", "kept back"} else 1
        if (now := parts.board.progress(key)) and not as_json:
            line = f"{now['stage']} {now['done']}/{now['total']}"
            if line != last:
                print(line, flush=True)
            last = line
        idle = idle + 1 if parts.board.state(key)[0] == "idle" else 0
        time.sleep(0.5)
    print(f"hrn: {job} is gone from Redis without a word: ask again", file=sys.stderr)
    return 1


def status(arguments: Namespace, settings: Settings) -> int:
    """Print versions, workers and trainings; 1 where Redis does not answer."""
    found = projects.status(Parts(settings))
    _print(found, projects.describe_all(found), as_json=arguments.json)
    return 1 if found["problem"] else 0


def versions(arguments: Namespace, settings: Settings) -> int:
    """Print the versions of a project."""
    rows = projects.versions(*_project(arguments, settings))
    lines = [projects.describe_version(row) for row in rows] or ["untrained"]
    _print(rows, "\n".join(lines), as_json=arguments.json)
    return 0


def promote(arguments: Namespace, settings: Settings) -> int:
    """Make a version live."""
    choosing.promote(*_project(arguments, settings), arguments.version, pin=arguments.pin)
    print(f"{arguments.version} is live")
    return 0


def rollback(arguments: Namespace, settings: Settings) -> int:
    """Go back to the version that was live before."""
    version = choosing.rollback(*_project(arguments, settings))
    print(f"{version} is live and stays so until `hrn promote`")
    return 0


def depth(arguments: Namespace, settings: Settings) -> int:
    """Print, or set, how deep pre-labels may go."""
    parts, project = _project(arguments, settings)
    limits = (arguments.target, arguments.minimum, arguments.maximum, arguments.strict)
    found = projects.limit_depth(parts, project, *limits)
    _print(found, projects.depth_text(found), as_json=arguments.json)
    return 0


def backup(arguments: Namespace, settings: Settings) -> int:
    """Write all versions into one file."""
    count = backups.backup(Parts(settings).store.files, arguments.file)
    print(f"{arguments.file}: {count} files")
    return 0


def restore(arguments: Namespace, settings: Settings) -> int:
    """Bring a backup back into a home without projects."""
    files = Parts(settings).store.files
    print(f"{backups.restore(arguments.file, files)} files are back in {files.where}")
    return 0


def predict(arguments: Namespace, settings: Settings) -> int:
    """Answer image files; 1 if one of them cannot be read."""
    if arguments.heatmap:
        heatmap.check_request(arguments.heatmap, arguments.files)
    parts, project = _project(arguments, settings)
    rows = projects.predict(parts, project, arguments.files)
    if arguments.heatmap:
        heatmap.write_heatmap(parts, project, arguments.files, arguments.heatmap)
    lines = [f"{row['file']}: {projects.describe_answer(row)}" for row in rows]
    _print(rows, "\n".join(lines), as_json=arguments.json)
    return 1 if any("problem" in row for row in rows) else 0


def doctor(arguments: Namespace, settings: Settings) -> int:
    """Print what is wrong and how to fix it; 1 if anything is."""
    found = examine(Parts(settings), arguments.project)
    lines = [
        f"ok    {one.what}" if one.ok else f"WRONG {one.what}\n      fix: {one.fix}"
        for one in found
    ]
    _print([asdict(one) for one in found], "\n".join(lines), as_json=arguments.json)
    return 0 if all(one.ok for one in found) else 1


def _project(arguments: Namespace, settings: Settings) -> tuple[Parts, Project]:
    parts = Parts(settings)
    return parts, projects.find(parts, arguments.project)


def _print(data: Any, text: str, *, as_json: bool) -> None:  # noqa: ANN401 - anything JSON takes
    print(json.dumps(data, indent=1, ensure_ascii=False) if as_json else text, flush=True)
