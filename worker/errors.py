"""What can end a job, one class for each thing that follows from it."""

from typing import ClassVar

from worker.order import RunState


class JobError(Exception):
    """Root of the package's errors; the message is the reason shown to people.

    Attributes:
        state: how a training that raises it is recorded.
    """

    state: ClassVar[RunState] = RunState.FAILED


class CancelledError(JobError):
    """Somebody asked the job to stop."""

    state = RunState.CANCELLED


class ReplacedError(JobError):
    """Another job has taken this one's place: it must not publish."""

    state = RunState.REPLACED


class MisconfiguredError(JobError):
    """A setting or the label config is missing or wrong; trying again cannot help."""

    state = RunState.MISCONFIGURED


def redis_in_words(error: Exception) -> str:
    """Say in words what Redis refuses: its own on a password speak of its protocol."""
    text = str(error)
    if "HELLO must be called" in text or "Authentication required" in text:
        return "a password is needed: REDIS_URL=redis://:PASSWORD@host:6379/0"
    return text
