"""Training requests and how they ended: plain data, as it waits in Redis through deploys."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from enum import StrEnum
from typing import Any, Self


@dataclass(frozen=True)
class Order:
    """A request for a training of one project.

    Attributes:
        project: key of the project in the model store.
        reason: for people: who or what asked.
        force: train even if no label is new, as when settings changed.
        fine_tune: train the backbone too; None leaves it to the server's setting.
        attempt: how often it was postponed because Label Studio could not be reached.
        crashes: how often its process died.
    """

    project: str
    reason: str = "asked"
    force: bool = False
    fine_tune: bool | None = None
    attempt: int = 0
    crashes: int = 0

    def joined(self, other: Self) -> Self:
        """Return one request that fulfils both; on fine-tuning the later word holds."""
        tune = self.fine_tune if other.fine_tune is None else other.fine_tune
        return replace(self, force=self.force or other.force, fine_tune=tune)

    def to_json(self) -> dict[str, Any]:
        """Return plain data for the queue."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """Read a request; fields that another release added are passed over."""
        return cls(**{name: data[name] for name in cls.__dataclass_fields__ if name in data})


class RunState(StrEnum):
    """Ways in which a training ends, as the list of runs has them."""

    PUBLISHED = "published"
    REFUSED = "refused"
    KEPT_BACK = "kept back"
    NOTHING_NEW = "nothing new"
    TOO_FEW_LABELS = "too few labels"
    POSTPONED = "postponed"
    CANCELLED = "cancelled"
    REPLACED = "replaced"
    DIED = "died"
    DISCONNECTED = "disconnected"
    MISCONFIGURED = "misconfigured"
    FAILED = "failed"


@dataclass(frozen=True)
class Ended:
    """Outcome of a training.

    Attributes:
        state: a `RunState`, or a word of the adapter to label-studio-ml.
        why: the reason, for people.
        version: what was published.
        figures: its metrics.
    """

    state: str
    why: str
    version: str | None = None
    figures: Mapping[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Return plain data for the project's list of runs."""
        return {
            "state": str(self.state),
            "why": self.why,
            "version": self.version,
            "figures": dict(self.figures),
        }
