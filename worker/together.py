"""Starts a training on several devices, and is what each of its processes runs.

The job writes what is needed into a folder and starts torchrun, which starts `python -m
worker.together FOLDER` once a device. The leading process adds a line to a file for each report and
leaves the weights at the end. All of them end when the job does, however that ends.
"""

import fcntl
import json
import logging
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Final

import safetensors.torch
import torch

from hierarchy import LabelTree
from inference.backbone import load_backbone
from worker.checkpoints import Checkpoints
from worker.errors import JobError
from worker.fitting import Report, Rows
from worker.photos import Pixels, varied
from worker.ranks import gathered
from worker.tune_recipe import TuneRecipe
from worker.tuning import Lessons, Network, Tuner, tree_aim, tuned_head

log = logging.getLogger(__name__)

_TASK, _START, _ROWS, _END = "task.json", "start.safetensors", "rows.safetensors", "end.safetensors"
_IMAGES, _REPORTS, _HELD = "images", "reports.jsonl", "held"

#: Seconds between two looks at what was reported.
_PAUSE: Final = 0.2
#: Seconds that the processes have to end by themselves.
_GRACE: Final = 10.0
#: Least labels of a step for each process: batch norms want some company.
_LEAST: Final = 4


class TogetherError(JobError):
    """The processes of a training ended without a result; the worker's log says why."""


@dataclass(frozen=True)
class Task:
    """A training, in plain data.

    Attributes:
        backbone: a timm name.
        backbone_weights: a file, where no package brings them.
        recipe: the settings.
        tree: `LabelTree.to_json`.
        checkpoints: a folder.
        identity: of the training.
    """

    backbone: str
    backbone_weights: str | None
    recipe: Mapping[str, Any]
    tree: Mapping[str, Any]
    checkpoints: str
    identity: str


def processes_for(device: str, labels: int, recipe: TuneRecipe) -> int:
    """Return how many processes to train with: one per GPU, if each has enough of a step."""
    there = torch.cuda.device_count() if device == "cuda" else 1
    smallest = labels // max(1, -(-labels // recipe.batch))
    return max(1, min(there, smallest // _LEAST))


def train_together(  # noqa: PLR0913 - what a training is made of, and where
    task: Task,
    network: Network,
    rows: Rows,
    image: Callable[[int], bytes],
    report: Report,
    *,
    processes: int,
    room: Path,
) -> None:
    """Train the network with several processes; its weights are those they end with.

    Args:
        task: what they need to know.
        network: as it begins; changed in place.
        rows: the labels.
        image: position -> what `worker.photos.small` stored of it.
        report: called with what the leading process reports; may raise to stop.
        processes: how many.
        room: a folder on a disk with room for the images.

    Raises:
        TogetherError: they ended without a result.
        FloatingPointError: the loss is not finite.
    """
    room.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=room, prefix="together-") as made:
        folder = Path(made)
        _write(folder, task, network, rows, image)
        with (folder / _HELD).open("w") as held:  # let go when this process dies
            fcntl.flock(held, fcntl.LOCK_EX)
            _run(folder, processes, report)
        network.load_state_dict(safetensors.torch.load_file(folder / _END))
        network.eval()


def _write(
    folder: Path, task: Task, network: Network, rows: Rows, image: Callable[[int], bytes]
) -> None:
    (folder / _TASK).write_text(json.dumps(vars(task)), encoding="utf-8")
    start = {name: value.contiguous() for name, value in network.state_dict().items()}
    safetensors.torch.save_file(start, folder / _START)
    labels = {"image": rows.image, "target": rows.target, "weight": rows.weight}
    safetensors.torch.save_file(
        {name: value.contiguous() for name, value in labels.items()}, folder / _ROWS
    )
    (folder / _IMAGES).mkdir()
    for at in set(rows.image.tolist()):
        (folder / _IMAGES / str(at)).write_bytes(image(at))
    (folder / _REPORTS).touch()


def _run(folder: Path, processes: int, report: Report) -> None:
    command = [
        *(sys.executable, "-m", "torch.distributed.run"),
        *("--nnodes", "1", "--nproc-per-node", str(processes)),
        *("--master-addr", "127.0.0.1", "--master-port", str(_free_port())),
        *("-m", "worker.together", str(folder)),
    ]
    root = str(Path(__file__).resolve().parents[1])
    environment = {**os.environ, "PYTHONPATH": root}
    environment.setdefault("OMP_NUM_THREADS", "1")
    process = subprocess.Popen(command, env=environment, start_new_session=True)
    try:
        with (folder / _REPORTS).open(encoding="utf-8") as reports:
            while process.poll() is None:
                _hand_on(reports, report)
                time.sleep(_PAUSE)
            _hand_on(reports, report)
    finally:
        _end(process)
    if process.returncode or not (folder / _END).exists():
        raise TogetherError(
            f"{processes} processes that train together ended with status {process.returncode}: "
            "the worker's log has their words"
        )


def _hand_on(reports: IO[str], report: Report) -> None:
    while (line := reports.readline()).endswith("\n"):
        entry = json.loads(line)
        if "failed" in entry:
            raise FloatingPointError(entry["failed"])
        report(entry["stage"], entry["done"], entry["total"], **entry["figures"])
    if line:  # half of one
        reports.seek(reports.tell() - len(line.encode()))


def _end(process: "subprocess.Popen[bytes]") -> None:
    for number in (signal.SIGTERM, signal.SIGKILL):
        with suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        with suppress(subprocess.TimeoutExpired):
            process.wait(_GRACE)
            return


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


# What each process runs


def main(folder: Path) -> None:
    """Train this process's share."""
    task = Task(**json.loads((folder / _TASK).read_text(encoding="utf-8")))
    recipe = TuneRecipe(**{name: v for name, v in task.recipe.items() if name != "kind"})
    weights = None if task.backbone_weights is None else Path(task.backbone_weights)
    base = load_backbone(task.backbone, weights=weights)
    tree = LabelTree.from_json(task.tree)
    head = tuned_head(tree, base.channels, recipe)
    network = Network(base, head)
    network.load_state_dict(safetensors.torch.load_file(folder / _START))
    rows = Rows(**safetensors.torch.load_file(folder / _ROWS))
    with (
        gathered() as (ranks, device),
        (folder / _HELD).open() as held,
        (folder / _REPORTS).open("a", encoding="utf-8", buffering=1) as reports,
    ):

        def show(image: int, draw: str) -> Pixels:
            data = (folder / _IMAGES / str(image)).read_bytes()
            return varied(data, base.preparation, draw)

        def report(stage: str, done: int, total: int, **figures: float) -> None:
            if _is_free(held):
                sys.exit("the job that this training belongs to has died")
            if ranks.leads:
                entry = {"stage": stage, "done": done, "total": total, "figures": figures}
                reports.write(json.dumps(entry) + "\n")

        saved = Checkpoints(Path(task.checkpoints), task.identity)
        tuner = Tuner(
            network,
            tree_aim(tree),
            Lessons(rows, show),
            recipe,
            device=str(device),
            checkpoints=saved,
            ranks=ranks,
        )
        try:
            tuner.run(report)
        except FloatingPointError as error:
            reports.write(json.dumps({"failed": str(error)}) + "\n")
            raise
        if ranks.leads:
            end = {name: value.cpu().contiguous() for name, value in network.state_dict().items()}
            safetensors.torch.save_file(end, folder / _END)


def _is_free(held: IO[str]) -> bool:
    """Tell whether whoever held the lock has let go, without taking it."""
    try:
        fcntl.flock(held, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    fcntl.flock(held, fcntl.LOCK_UN)
    return True


if __name__ == "__main__":
    main(Path(sys.argv[1]))
