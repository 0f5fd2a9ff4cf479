"""What a job is asked to do: plain data, as it waits in Redis through deploys."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, Self


@dataclass(frozen=True)
class Order:
    """A wish for a training of one project.

    Attributes:
        project: key of the project in the model store.
        reason: for people: who or what asked.
        force: train even if no label is new, as when settings changed.
        fine_tune: train the backbone too; None leaves it to the server's setting.
        fast: train a small head in seconds, rather than the best one.
        attempt: how often it was postponed because Label Studio could not be reached.
        crashes: how often its process died.
    """

    project: str
    reason: str = "asked"
    force: bool = False
    fine_tune: bool | None = None
    fast: bool = False
    attempt: int = 0
    crashes: int = 0

    def __post_init__(self) -> None:
        """Refuse what cannot be meant.

        Raises:
            ValueError: with what to choose.
        """
        if self.fast and self.fine_tune:
            raise ValueError(
                "a fast training trains a small head and no backbone: ask for it, or for "
                "fine-tuning, not for both"
            )

    def joined(self, other: Self) -> Self:
        """One wish that fulfils both; where they differ on fine-tuning, the later word holds.

        The joint one is fast only if both are: the best head is what serves either.
        """
        tune = self.fine_tune if other.fine_tune is None else other.fine_tune
        return replace(
            self,
            force=self.force or other.force,
            fine_tune=tune,
            fast=self.fast and other.fast,
        )

    def to_json(self) -> dict[str, Any]:
        """Plain data for the queue."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """The order; fields that another release added are passed over.

        Earlier releases took a fast one that fine-tunes, and trained it fast.
        """
        known = {name: data[name] for name in cls.__dataclass_fields__ if name in data}
        if known.get("fast"):
            known["fine_tune"] = None
        return cls(**known)
