"""What can end a job, one class for each thing that follows from it."""


class JobError(Exception):
    """Root of the package's errors; the message is the reason shown to people."""


class CancelledError(JobError):
    """Somebody asked the job to stop."""


class ReplacedError(JobError):
    """Another job has taken this one's place: it must not publish."""


class MisconfiguredError(JobError):
    """A setting or the label config is missing or wrong; trying again cannot help."""


def redis_in_words(error: Exception) -> str:
    """What Redis refuses, for people: its own words on a password speak of its protocol."""
    text = str(error)
    if "HELLO must be called" in text or "Authentication required" in text:
        return "a password is needed: REDIS_URL=redis://:PASSWORD@host:6379/0"
    return text
