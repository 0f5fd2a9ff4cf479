"""Functions that the queue runs: plain data in, and how it ended out.

A job is safe to run twice and to be killed at any line: nothing that people see changes before its
last act, and what it notes before that (labels read, features cached) may be noted again.
"""

import logging
import os
import time
from dataclasses import asdict
from typing import Any

from rq import get_current_job

from inference.errors import ModelError, ModelStoreError
from studio.errors import (
    ImageUnavailableError,
    StudioError,
    StudioRefusedError,
    StudioUnavailableError,
)
from worker.drift_monitor import monitor_drift
from worker.errors import JobError
from worker.order import Ended, Order, RunState
from worker.parts import Parts
from worker.prelabel_sync import SyncState, sync_prelabels
from worker.presence import check_registered
from worker.progress import Progress
from worker.queue import Board, backoff
from worker.settings import Settings
from worker.trainer import TooFewLabelsError
from worker.training import run

log = logging.getLogger(__name__)

#: What a person or time may put right: the request is kept, with its reason shown. Of images only
#: those that could not be had for now: what is no image stays none.
MAY_PASS = (
    StudioUnavailableError,
    StudioRefusedError,
    ImageUnavailableError,
    ModelStoreError,
)

#: Times that such a training is tried again, and seconds before the first.
MOST_ATTEMPTS = 5
FIRST_PAUSE = 30.0


def fine_tune(order: dict[str, Any]) -> dict[str, Any]:
    """Queue entry: train one project. Its outcome is in the project's list of runs."""
    parts = Parts(Settings.from_environ(os.environ))
    current = get_current_job()
    return train_once(Order.from_json(order), parts, current.id if current else "by-hand")


def refresh(project: str, version: str) -> dict[str, Any]:
    """Queue entry: give a project's open tasks the pre-labels of a version, and their order."""
    parts = Parts(Settings.from_environ(os.environ))
    try:
        ended = sync_prelabels(project, version, parts)
    except (StudioError, ModelError) as error:  # the reconciler asks again until it is done
        return _stopped("pre-label sync", project, version, error)
    if ended.state in (SyncState.DONE, SyncState.NEEDS_TRAINING):
        parts.board.note_refreshed(project, version)
    return asdict(ended)


def follow(project: str, version: str) -> dict[str, Any]:
    """Queue entry: hold annotators' answers against what a version showed them."""
    parts = Parts(Settings.from_environ(os.environ))
    try:
        return asdict(monitor_drift(project, version, parts))
    except StudioUnavailableError as error:
        parts.board.note_heard(project)  # the reconciler asks again
        return _stopped("drift monitor", project, version, error)
    except (StudioError, ModelError) as error:  # and here after a while
        return _stopped("drift monitor", project, version, error)


def _stopped(what: str, project: str, version: str, error: Exception) -> dict[str, Any]:
    log.warning("%s stopped project=%s version=%s: %s", what, project, version, error)
    return {"state": "stopped", "why": str(error)}


def train_once(order: Order, parts: Parts, job_id: str) -> dict[str, Any]:
    """Run one order to its end, whatever that is, and record it."""
    board, started = parts.board, time.time()
    progress = Progress(board, order.project, job_id, order.reason)
    try:
        with progress.heartbeat():
            ended = _guarded(order, parts, progress)
        return _record(board, order, job_id, started, ended)
    except Exception as error:  # a fault of ours: people see its name, the log its traceback
        why = f"unexpected {type(error).__name__}: the worker's log has it under {job_id}"
        _record(board, order, job_id, started, Ended(RunState.FAILED, why))
        raise
    finally:
        board.finished(order.project, job_id)


def _record(
    board: Board, order: Order, job_id: str, started: float, ended: Ended
) -> dict[str, Any]:
    outcome = {
        "job": job_id,
        "reason": order.reason,
        "started_at": started,
        "seconds": round(time.time() - started, 2),
        **ended.to_json(),
    }
    board.log_run(order.project, outcome)
    log.info(
        "training ended job=%s project=%s state=%s: %s",
        job_id,
        order.project,
        ended.state,
        ended.why,
    )
    return outcome


def _guarded(order: Order, parts: Parts, progress: Progress) -> Ended:
    """Run a training; return every way it can end, in words for people."""
    try:
        if (project := parts.store.project(order.project)) is not None:
            check_registered(parts, project)
        return run(order, parts, progress)
    except TooFewLabelsError as error:
        return Ended(
            RunState.TOO_FEW_LABELS, str(error), figures={"passed_over": error.passed_over}
        )
    except MAY_PASS as error:
        return _later(order, parts, str(error))
    except JobError as error:
        return Ended(error.state, str(error))
    except (StudioError, ModelError, FloatingPointError) as error:
        log.warning("training failed project=%s: %s", order.project, error)
        return Ended(RunState.FAILED, str(error))


def _later(order: Order, parts: Parts, why: str) -> Ended:
    if order.attempt >= MOST_ATTEMPTS:
        return Ended(RunState.FAILED, f"{why} (tried {order.attempt + 1} times)")
    pause = backoff(order.attempt + 1, FIRST_PAUSE)
    parts.board.postpone(order, pause)
    return Ended(RunState.POSTPONED, f"{why}; tried again in {pause:.0f} s")
