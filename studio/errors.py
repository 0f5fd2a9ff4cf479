"""What can go wrong with Label Studio: one class per thing that a caller handles differently."""

from __future__ import annotations


class StudioError(Exception):
    """Base of every error raised by the `studio` package."""


class LabelConfigError(StudioError):
    """A label config cannot be read as a label tree; the message says how to fix it."""


class ContractError(StudioError):
    """A request body has the wrong shape; the message names the first bad field."""


class AnnotationError(StudioError):
    """A task or one of its annotations does not have the expected shape."""


class TreeFileError(StudioError):
    """A file that should hold a label tree does not; the message names the line or position."""


class ImageError(StudioError):
    """An image could not be fetched or decoded.

    Attributes:
        reason: what happened, in words an annotator can act on.
    """

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class ImageUnavailableError(ImageError):
    """An image cannot be fetched or decoded now: the same request may succeed later."""


class StudioUnavailableError(StudioError):
    """Label Studio did not answer, or cannot answer now: the same call may succeed later."""


class StudioRefusedError(StudioError):
    """Label Studio refused the access token (401) or the account behind it (403)."""


class LegacyTokensOffError(StudioRefusedError):
    """The legacy token is known, but legacy tokens are switched off in Label Studio."""


class PermissionMissingError(StudioRefusedError):
    """The token is good, but its account may not do what was asked."""


class StudioRequestError(StudioError):
    """Label Studio turned a request down for a reason other than the token.

    Attributes:
        status: the HTTP status code of the response.
    """

    def __init__(self, message: str, *, status: int) -> None:
        super().__init__(message)
        self.status = status


class ProjectMissingError(StudioRequestError):
    """Label Studio lists no such project: deleted, never created, or hidden from the account."""


class PrivateAddressError(StudioRequestError):
    """Label Studio does not call the private address it was given."""
