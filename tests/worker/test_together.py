"""Several processes train as one would, hand on what they report, and end with their job."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tests.worker.small_together import LABELS, RECIPE, Training
from tests.worker.tiny_ranks import RECIPE as TINY
from tests.worker.tiny_ranks import losses
from worker import together
from worker.errors import CancelledError
from worker.fitting import Report
from worker.together import TogetherError, processes_for, train_together
from worker.tune_recipe import TuneRecipe

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HRN_DEVICE", "cpu")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


def test_two_processes_learn_as_one_with_their_batches_together(tmp_path: Path) -> None:
    """What differs is the order of sums."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    program = ["--nproc-per-node", "2", "-m", "tests.worker.tiny_ranks", str(tmp_path / "told")]
    subprocess.run([*command, *program], cwd=ROOT, check=True, timeout=300)
    curve, sums = json.loads((tmp_path / "told").read_text())
    alone, alone_sums = losses(TINY)
    assert len(curve) == TINY.epochs
    assert len(set(curve)) == len(curve)
    assert curve == pytest.approx(alone, abs=1e-4)
    # A bias before a batch norm changes nothing: AdamW makes steps of its rounding errors.
    told = {n: v for n, v in alone_sums.items() if "running" not in n and "connect" not in n}
    assert {name: sums[name] for name in told} == pytest.approx(told, abs=2e-3)


def trained(made: Training, report: Report) -> None:
    train_together(
        made.task, made.network, made.rows, made.picture, report, processes=2, room=made.room
    )


def silent(stage: str, done: int, total: int, **figures: float) -> None:
    """Nobody listens."""


def test_a_job_s_training_by_two_processes(tmp_path: Path) -> None:
    made = Training(tmp_path)
    before = {name: value.clone() for name, value in made.network.named_parameters()}
    told: list[tuple[int, int, dict[str, float]]] = []

    def listen(stage: str, done: int, total: int, **figures: float) -> None:
        told.append((done, total, figures))

    trained(made, listen)
    steps = RECIPE.epochs * LABELS // RECIPE.batch
    assert [(done, total) for done, total, figures in told if not figures] == [
        (step, steps) for step in range(1, steps + 1)
    ]
    curve = [figures["loss"] for *_, figures in told if figures]
    assert len(curve) == RECIPE.epochs
    after = dict(made.network.named_parameters())
    assert [name for name in before if torch.equal(before[name], after[name])] == []
    assert not made.network.training
    assert list(made.room.iterdir()) == []
    assert (tmp_path / "checkpoints" / "one.safetensors").exists()


def test_it_goes_on_from_its_checkpoint(tmp_path: Path) -> None:
    def stop(stage: str, done: int, total: int, **figures: float) -> None:
        if figures:  # an epoch has ended, and is on disk
            raise CancelledError("asked to stop")

    with pytest.raises(CancelledError):
        trained(Training(tmp_path, epochs=400), stop)
    assert workers_in(tmp_path) == []
    told: list[int] = []

    def listen(stage: str, done: int, total: int, **figures: float) -> None:
        told.append(done)
        raise CancelledError("asked to stop")

    with pytest.raises(CancelledError):
        trained(Training(tmp_path, epochs=400), listen)
    assert told[0] > 1


def test_processes_that_fail_are_told_of(tmp_path: Path) -> None:
    made = Training(tmp_path)
    made.task = replace(made.task, backbone="no_such_network")
    with pytest.raises(TogetherError, match="2 processes that train together ended with status 1"):
        trained(made, silent)


def test_a_loss_that_is_no_number_is_told_as_such(tmp_path: Path) -> None:
    made = Training(tmp_path)
    with torch.no_grad():
        next(made.network.head.parameters()).fill_(float("nan"))
    with pytest.raises(FloatingPointError, match="the loss became nan in epoch 1"):
        trained(made, silent)
    assert workers_in(tmp_path) == []


def test_processes_end_when_their_job_is_killed(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.worker.small_together", str(tmp_path)]
    job = subprocess.Popen(command, cwd=ROOT)
    try:
        until((tmp_path / "began").exists)
        assert workers_in(tmp_path)
    finally:
        job.send_signal(signal.SIGKILL)
        job.wait(10)
    until(lambda: workers_in(tmp_path) == [])


def workers_in(folder: Path) -> list[int]:
    """Processes of a training that work below the folder."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            try:
                words = (entry / "cmdline").read_bytes().split(b"\0")
            except OSError:  # it has just ended
                continue
            if b"worker.together" in words and any(str(folder).encode() in word for word in words):
                found.append(int(entry.name))
    return found


def until(happened: Callable[[], bool]) -> None:
    ends = time.monotonic() + 120
    while not happened():
        assert time.monotonic() < ends
        time.sleep(0.1)


@pytest.mark.parametrize(
    ("gpus", "labels", "batch", "expected"),
    [(1, 100, 32, 1), (4, 100, 32, 4), (4, 10, 64, 2), (8, 3, 64, 1), (8, 65, 64, 8)],
)
def test_each_process_has_enough_of_every_step(
    monkeypatch: pytest.MonkeyPatch, gpus: int, labels: int, batch: int, expected: int
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    recipe = TuneRecipe(batch=batch)
    assert processes_for("cuda", labels, recipe) == expected
    assert processes_for("cpu", labels, recipe) == 1
    assert expected == 1 or labels // -(-labels // batch) >= together._LEAST * expected
