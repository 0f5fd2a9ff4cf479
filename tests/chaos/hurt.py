"""Our processes as they are, but for where they die: `python -m tests.chaos.hurt worker`.

A file ``hurt`` in HRN_HOME names a step and who dies there: ``job`` (its process alone), ``worker``
(both). Whoever comes to that step first removes the file and kills with SIGKILL. Hearts beat faster
than in production, so that a death is noticed after seconds, and trainings are short;
nothing else differs.
"""

import os
import signal
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import wraps
from pathlib import Path
from typing import Any, Final

import openvino  # noqa: F401 - here once, not after each fork: a job is to take a second or two
import timm  # noqa: F401

from models import store
from models.store import ModelStore
from studio.client import LabelStudio
from worker import __main__ as program
from worker import jobs, progress, queue, reconcile, refreshing, training
from worker.progress import Progress
from worker.recipe import Recipe

#: Seconds: a heart's life, its beat, and between two looks at Label Studio.
LIFE: Final = 3
BEAT: Final = 0.3
LOOK: Final = 2.0

#: In the order in which a training comes to them.
STEPS: Final = (
    "taken",
    "reading labels",
    "fetching pictures",
    "fitting",
    "calibrating",
    "writing weights",
    "before the pointer",
    "after the pointer",
    "refreshing",
)


def tiny() -> Recipe:
    """What is enough to train something, in a second."""
    return replace(Recipe.fast(), epochs=2, least_steps=8, folds=2, hidden=16)


def die(step: str) -> None:
    """Die here, if somebody asked for it."""
    wish = Path(os.environ["HRN_HOME"]) / "hurt"
    try:
        named, _, who = wish.read_text(encoding="utf-8").partition(":")
    except FileNotFoundError:
        return
    if named != step:
        return
    wish.unlink()
    if who == "worker":
        os.kill(os.getppid(), signal.SIGKILL)
    os.kill(os.getpid(), signal.SIGKILL)


def before(owner: Any, name: str, step: str) -> None:
    """Die on the way into a function."""
    inside = getattr(owner, name)

    @wraps(inside)
    def outside(*args: Any, **more: Any) -> Any:
        die(step)
        return inside(*args, **more)

    setattr(owner, name, outside)


def _hurt_reports() -> None:
    """Die in the middle of a stage that is reported."""
    inside = Progress.__call__

    def outside(self: Progress, stage: str, done: int, total: int, **figures: float) -> None:
        inside(self, stage, done, total, **figures)
        if 2 * done >= total or stage == "reading labels":
            die(stage)

    vars(progress)["Progress"].__call__ = outside


def _hurt_writing() -> None:
    """Die when half of the weights are on disk."""
    inside: Callable[[Path, bytes], None] = vars(store)["_write_durably"]

    def outside(path: Path, data: bytes) -> None:
        if path.name == "weights.safetensors":
            inside(path, data[: len(data) // 2])
            die("writing weights")
        inside(path, data)

    vars(store)["_write_durably"] = outside


def _hurt_refreshing() -> None:
    """Die between two slices of pre-labels."""
    inside = LabelStudio.import_predictions

    def outside(self: LabelStudio, *args: Any) -> int:
        stored = inside(self, *args)
        die("refreshing")
        return stored

    vars(refreshing)["SLICE"] = 5
    setattr(LabelStudio, "import_predictions", outside)  # noqa: B010 - as above


def main(role: str) -> int:
    """Run a role of `python -m worker`, ready to die."""
    vars(queue)["HEARTBEAT_LIFE"] = LIFE
    vars(progress).update(HEARTBEAT=BEAT, INTERVAL=0.05)
    vars(refreshing)["BEAT"] = BEAT
    vars(reconcile).update(LOOK=LOOK, GLANCE=0.2)
    vars(training)["Recipe"] = tiny
    before(jobs, "fine_tune", "taken")
    before(ModelStore, "point", "before the pointer")
    before(training, "go_live", "after the pointer")
    _hurt_reports()
    _hurt_writing()
    _hurt_refreshing()
    return program.main([] if role == "worker" else [role])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
