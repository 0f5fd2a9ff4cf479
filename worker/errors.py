"""What can end a job, one class for each thing that follows from it."""


class JobError(Exception):
    """Root of the package's errors; the message is the reason shown to people."""


class CancelledError(JobError):
    """Somebody asked the job to stop."""


class ReplacedError(JobError):
    """Another job has taken this one's place: it must not publish."""


class MisconfiguredError(JobError):
    """A setting or the label config is missing or wrong; trying again cannot help."""
