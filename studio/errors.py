"""What can go wrong with Label Studio: one class for each thing a caller handles differently."""

from __future__ import annotations


class StudioError(Exception):
    """Base of every error raised by the `studio` package."""


class LabelConfigError(StudioError):
    """A project's labelling setup cannot be read as a label tree; the message names the mend."""


class ContractError(StudioError):
    """A request body has the wrong shape; the message names the first bad field."""


class AnnotationError(StudioError):
    """A task or one of its annotations does not have the expected shape."""


class PictureError(StudioError):
    """A picture could not be fetched or decoded.

    Attributes:
        reason: what happened, in words an annotator can act on.
    """

    def __init__(self, reason: str) -> None:
        """Keep the reason.

        Args:
            reason: what happened, in words an annotator can act on.
        """
        super().__init__(reason)
        self.reason = reason


class StudioUnavailableError(StudioError):
    """Label Studio did not answer, or cannot answer now: the same call may succeed later."""


class StudioRefusedError(StudioError):
    """Label Studio refused the access token (401) or the account behind it (403)."""


class StudioRequestError(StudioError):
    """Label Studio turned a request down for a reason other than the token.

    Attributes:
        status: the HTTP status code of the answer.
    """

    def __init__(self, message: str, *, status: int) -> None:
        """Keep the status beside the message.

        Args:
            message: what was asked, what came back and how to mend it.
            status: the HTTP status code of the answer.
        """
        super().__init__(message)
        self.status = status


class ProjectMissingError(StudioRequestError):
    """Label Studio answers, and lists no such project: deleted, never made, or not to be seen."""


class TreeFileError(StudioError):
    """A file that should hold a label tree does not; the message names the line or place."""
