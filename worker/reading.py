"""Watermark: which labels have been read, by the newest one's time, and by name at its edge.

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
    """Watermark of what has been read of a project's labels.

    Attributes:
        through: the newest label's ``updated_at``, "" if there was none.
        recent: ``updated_at`` of each label that was newer than ``since``, by its annotation; None
            where they are not known, and the time alone must do.
    """

    through: str = ""
    recent: Mapping[str, str] | None = None

    @property
    def since(self) -> str:
        """Time up to which all labels have been read.

        Example:
            >>> Read("2026-11-26T13:30:39.028347Z", {}).since
            '2026-11-26T13:29:39.028347Z'
        """
        if self.recent is None:
            return self.through
        when = parse_time(self.through)
        if when is None:
            return self.through
        return (when - LATE).astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")

    def lacks(self, annotation: int, updated_at: str) -> bool:
        """Tell whether this label has not been read.

        Example:
            >>> read = Read("2026-11-26T13:30:39.028347Z", {"7": "2026-11-26T13:30:39.028347Z"})
            >>> read.lacks(8, "2026-11-26T13:30:38.486798Z"), read.lacks(7, read.through)
            (True, False)
        """
        if self.recent is None or updated_at > self.through:
            return updated_at > self.through
        return updated_at > self.since and self.recent.get(str(annotation)) != updated_at

    def newer(self, other: "Read") -> "Read":
        """Return the one that has read more; of two as new, the one that knows more annotations."""
        return max(self, other, key=lambda one: (one.through, len(one.recent or ())))

    def to_json(self) -> dict[str, Any]:
        """Return plain data for Redis."""
        return {"through": self.through, "recent": self.recent and dict(self.recent)}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """Read what ``to_json`` wrote."""
        recent = data["recent"]
        return cls(str(data["through"]), None if recent is None else dict(recent))

    @classmethod
    def of_version(cls, manifest: Manifest) -> Self:
        """Return what a version has learnt from; of an earlier release's, by time alone."""
        recent = manifest.labels.get("recent")
        return cls(manifest.trained_through, dict(recent) if isinstance(recent, Mapping) else None)


def parse_time(stamp: str) -> datetime | None:
    """Read a time as Label Studio writes it; None for what is none."""
    try:
        when = datetime.fromisoformat(stamp)
    except ValueError:
        return None
    return when if when.tzinfo else when.replace(tzinfo=UTC)
