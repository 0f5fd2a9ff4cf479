"""Which labels have been read: by the newest one's time, and by name where that is not enough.

Label Studio may list an annotation later than one that was made after it (seen: half a second
apart, while it was busy). So for the last minute before the newest label it is not the time that
says what has been read, but the annotations themselves.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Final, Self

from inference.manifest import Manifest

#: How much later than others an annotation may come to be seen.
LATE: Final = timedelta(seconds=60)


@dataclass(frozen=True)
class Read:
    """What of a project's labels has been read.

    Attributes:
        through: the newest label's ``updated_at``, "" if there was none.
        recent: ``updated_at`` of each label that was newer than ``since``, by its annotation; None
            where nobody kept them, and the time alone must do.
    """

    through: str = ""
    recent: Mapping[str, str] | None = None

    @property
    def since(self) -> str:
        """Labels up to this time have been read, whatever they are called.

        Example:
            >>> Read("2026-11-26T13:30:39.028347Z", {}).since
            '2026-11-26T13:29:39.028347Z'
        """
        if self.recent is None:
            return self.through
        try:
            when = datetime.fromisoformat(self.through)
        except ValueError:
            return self.through
        when = when if when.tzinfo else when.replace(tzinfo=UTC)
        return (when - LATE).astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")

    def lacks(self, annotation: int, updated_at: str) -> bool:
        """Is this label one that has not been read?

        Example:
            >>> read = Read("2026-11-26T13:30:39.028347Z", {"7": "2026-11-26T13:30:39.028347Z"})
            >>> read.lacks(8, "2026-11-26T13:30:38.486798Z"), read.lacks(7, read.through)
            (True, False)
        """
        if self.recent is None or updated_at > self.through:
            return updated_at > self.through
        return updated_at > self.since and self.recent.get(str(annotation)) != updated_at

    def newer(self, other: "Read") -> "Read":
        """The one that has read more; of two as new the one that knows more names."""
        return max(self, other, key=lambda one: (one.through, len(one.recent or ())))

    def to_json(self) -> dict[str, Any]:
        """Plain data for Redis."""
        return {"through": self.through, "recent": self.recent and dict(self.recent)}

    @classmethod
    def from_json(cls, told: Mapping[str, Any]) -> Self:
        """What ``to_json`` wrote."""
        recent = told["recent"]
        return cls(str(told["through"]), None if recent is None else dict(recent))

    @classmethod
    def of_version(cls, manifest: Manifest) -> Self:
        """What a version has learnt from; of one that an earlier release wrote, by time alone."""
        recent = manifest.labels.get("recent")
        return cls(manifest.trained_through, dict(recent) if isinstance(recent, Mapping) else None)
