"""Errors of an evaluation: one class for each thing to fix."""


class ExperimentError(Exception):
    """Root of the package's errors."""


class DatasetError(ExperimentError):
    """A folder of photos or its lists are not as expected: the message says how to fix them."""


class ProtocolError(ExperimentError):
    """A protocol was asked for that cannot be: a share above 1, a blur below 0."""


class ResultsError(ExperimentError):
    """A figure or a file of results cannot be read, joined or drawn: the message says why."""
