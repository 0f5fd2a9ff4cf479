"""Where a long training stands, on disk: killed at any moment, it goes on from there.

One safetensors file a training: tensors, and what else there is to know as JSON in its header, so
that a single rename puts all of it there or nothing. A checkpoint only saves time: one that cannot
be written or read costs a line in the log, and the training its hours, never its outcome.
"""

import hashlib
import json
import logging
import os
import secrets
import shutil
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import safetensors
import safetensors.torch
from torch import Tensor

log = logging.getLogger(__name__)

#: Of the file; one of another form is passed over.
FORM: Final = 1

#: Seconds after which a checkpoint belongs to a training that nobody wants any more: two weeks.
MAX_AGE_S: Final = 14 * 24 * 3600.0

_STATE: Final = "state"


@dataclass(frozen=True)
class Saved:
    """A checkpoint, as it was read.

    Attributes:
        tensors: by name, on the CPU.
        state: plain data.
    """

    tensors: Mapping[str, Tensor]
    state: Mapping[str, Any]


def digest(facts: Mapping[str, Any]) -> str:
    """Return 16 hex digits over plain data: equal facts, equal trainings.

    Example:
        >>> digest({"seed": 0, "epochs": 3}) == digest({"epochs": 3, "seed": 0})
        True
        >>> digest({"seed": 0}) == digest({"seed": 1})
        False
    """
    text = json.dumps(facts, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


class Checkpoints:
    """The checkpoint of one training. One process at a time writes it."""

    def __init__(self, folder: Path, identity: str, *, every_s: float = 600.0) -> None:
        """Read and write nothing yet.

        Args:
            folder: for the trainings of one project, of which one runs at a time.
            identity: what `digest` says of everything that decides the outcome.
            every_s: seconds after which one is due within an epoch.
        """
        self.path = folder / f"{identity}.safetensors"
        self._identity = identity
        self._every_s = every_s
        self._last = time.monotonic()

    @property
    def due(self) -> bool:
        """Whether the last one is so long ago that another should be written now."""
        return time.monotonic() - self._last >= self._every_s

    def load(self) -> Saved | None:
        """Return what a training of this identity saved last; None if nothing can be read.

        Other trainings' checkpoints in the folder are removed: theirs were other labels.
        """
        self._remove_others()
        if not self.path.exists():
            return None
        try:
            with safetensors.safe_open(self.path, framework="pt") as file:
                state = json.loads((file.metadata() or {})[_STATE])
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping
            if state["form"] != FORM or state["identity"] != self._identity:
                raise ValueError(f"form {state['form']}, identity {state['identity']}")  # noqa: TRY301
        except (OSError, ValueError, KeyError, TypeError, safetensors.SafetensorError) as error:
            log.warning("checkpoint passed over file=%s: %s", self.path.name, error)
            return None
        return Saved(tensors, state)

    def save(self, tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> None:
        """Replace the checkpoint, whole or not at all.

        Args:
            tensors: by name, on any device.
            state: plain data.
        """
        header = {**state, "form": FORM, "identity": self._identity}
        whole = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
        work = self.path.parent / f".new-{secrets.token_hex(8)}"
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            safetensors.torch.save_file(whole, work, metadata={_STATE: json.dumps(header)})
            with work.open("rb") as file:
                os.fsync(file.fileno())
            work.replace(self.path)
        except (OSError, safetensors.SafetensorError) as error:
            log.warning("checkpoint not written file=%s: %s", self.path.name, error)
        finally:
            with suppress(OSError):
                work.unlink(missing_ok=True)
        self._last = time.monotonic()

    def _remove_others(self) -> None:
        for other in self.path.parent.glob("*"):
            if other != self.path:  # of other labels, or half written when its process was killed
                with suppress(OSError):
                    other.unlink()


def remove(folder: Path) -> None:
    """Remove a project's checkpoints: what came of them is published."""
    shutil.rmtree(folder, ignore_errors=True)


def prune(root: Path, max_age_s: float = MAX_AGE_S) -> None:
    """Remove checkpoints of all projects that nobody has gone on from for so long."""
    for file in root.glob("*/*"):
        with suppress(OSError):
            if time.time() - file.stat().st_mtime > max_age_s:
                file.unlink()
                log.info("old checkpoint removed file=%s/%s", file.parent.name, file.name)
