"""Our processes as they are, but for where they die: `python -m tests.chaos.hurt worker`.

A file ``hurt`` in HRN_HOME names a step and who dies there: ``job`` (its process alone), ``worker``
(both). Whoever comes to that step first removes the file and kills with SIGKILL. Files ``fails``
and ``nan`` hold keys of projects whose trainings raise an unexpected error, or have a loss that is
no number. Images that `tests.studio.failing_decoder` knows crash or hang their decoder. Hearts beat
faster than in production, so that a death is noticed after seconds, and trainings are short;
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

from inference import files
from inference.store import ModelStore
from studio import image_sandbox
from studio.client import LabelStudio
from worker import __main__ as program
from worker import jobs, prelabel_sync, progress, queue, reconcile, trainer, training
from worker.progress import Progress
from worker.training_config import TrainingConfig

#: Seconds: a heart's life, its beat, and between two looks at Label Studio.
LIFE: Final = 3
BEAT: Final = 0.3
LOOK: Final = 2.0

#: In the order in which a training comes to them.
STEPS: Final = (
    "taken",
    "reading labels",
    "fetching images",
    "fitting",
    "calibrating",
    "writing weights",
    "before the pointer",
    "after the pointer",
    "refreshing",
)


def tiny() -> TrainingConfig:
    """What is enough to train something, in a second."""
    return replace(TrainingConfig(), epochs=2, least_shown=512, folds=2, hidden=16)


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
    inside: Callable[[Path], None] = vars(files)["sync"]

    def outside(path: Path) -> None:
        if path.name == "weights.safetensors":
            whole = path.read_bytes()
            path.write_bytes(whole[: len(whole) // 2])
            die("writing weights")
            path.write_bytes(whole)
        inside(path)

    vars(files)["sync"] = outside


def _hurt_refreshing() -> None:
    """Die between two slices of pre-labels."""
    inside = LabelStudio.import_predictions

    def outside(self: LabelStudio, *args: Any) -> int:
        stored = inside(self, *args)
        die("refreshing")
        return stored

    vars(prelabel_sync)["SLICE"] = 5
    setattr(LabelStudio, "import_predictions", outside)  # noqa: B010 - as above


def _named(file: str, project: str) -> bool:
    path = Path(os.environ["HRN_HOME"]) / file
    return path.exists() and project in path.read_text(encoding="utf-8").split()


def _fail_always() -> None:
    """Raise what nobody expects, in trainings of the projects named."""
    inside = vars(jobs)["run"]

    def outside(order: Any, *more: Any) -> Any:
        if _named("fails", order.project):
            raise RuntimeError("something that nobody thought of")
        os.environ["HURT_PROJECT"] = order.project  # this process runs no other training
        return inside(order, *more)

    vars(jobs)["run"] = outside


def _lose_numbers() -> None:
    """Let the loss become NaN, in trainings of the projects named."""
    inside = vars(trainer)["fit"]

    def outside(network: Any, objective: Callable[..., Any], *more: Any, **names: Any) -> Any:
        def lost(*some: Any) -> Any:
            return objective(*some) * float("nan")

        ill = _named("nan", os.environ.get("HURT_PROJECT", ""))
        return inside(network, lost if ill else objective, *more, **names)

    vars(trainer)["fit"] = outside


def main(role: str) -> int:
    """Run a role of `python -m worker`, or the server, ready to die."""
    image_sandbox.COMMAND[1:] = ["-m", "tests.studio.failing_decoder"]
    if role == "serve":
        from cli.__main__ import main as hrn

        return hrn(["serve"])
    vars(queue)["HEARTBEAT_LIFE"] = LIFE
    vars(progress).update(HEARTBEAT=BEAT, INTERVAL=0.05)
    vars(reconcile).update(LOOK=LOOK, GLANCE=0.2)
    TrainingConfig.for_networks = lambda *_, **__: tiny()  # type: ignore[method-assign]
    before(jobs, "fine_tune", "taken")
    before(ModelStore, "point", "before the pointer")
    before(training, "go_live", "after the pointer")
    _hurt_reports()
    _hurt_writing()
    _hurt_refreshing()
    _fail_always()
    _lose_numbers()
    return program.main([] if role == "worker" else [role])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
