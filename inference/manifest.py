"""Manifests: what a model version says of itself, in plain data, sealed by a checksum."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Final, Self

from inference.errors import ModelStoreError

#: The layout of a manifest; a release that cannot read an older one says so instead of guessing.
FORMAT: Final = 1

#: Field of the file: the checksum over all others.
SEAL: Final = "manifest_sha256"

#: The kind of head that a manifest names, and those of earlier releases, which read feature maps.
KIND: Final = "hrn"
EARLIER_KINDS: Final = ("frozen", "residual")

#: A part of a manifest that only its writer and its readers know, as plain data.
Part = Mapping[str, Any]


@dataclass(frozen=True)
class Manifest:
    """A model version's manifest; `Manifest()` is that of a version of which nothing is known.

    Attributes:
        project: ``<id>.<epoch>``, as Label Studio sends it.
        tree: the label tree that the version was trained with (`LabelTree.to_json`).
        network: kind and sizes of the head.
        backbone: ``name`` and ``fingerprint`` of the networks that the head stands on.
        recipe: the training config.
        calibration: the depth rule and its grounds (`Fitted.to_json`).
        metrics: figures of the held-out images.
        labels: the labels that were read, and how many images could not be.
        trained_through: the time of the newest label that was read.
        parent: the version that was live before, None for the first.
        gate: whether the version passed the gate, and why.
        seconds: the training's duration.
        version: the version's name, given by the model store.
        published_at: seconds since 1970, likewise.
        weights_sha256: checksum of the file of weights, likewise.
        weights_bytes: its size, likewise.
    """

    project: str = ""
    tree: Part = field(default_factory=dict)
    network: Part = field(default_factory=dict)
    backbone: Part = field(default_factory=dict)
    recipe: Part = field(default_factory=dict)
    calibration: Part = field(default_factory=dict)
    metrics: Part = field(default_factory=dict)
    labels: Part = field(default_factory=dict)
    trained_through: str = ""
    parent: str | None = None
    gate: Part = field(default_factory=dict)
    seconds: float = 0.0
    version: str = ""
    published_at: float = 0.0
    weights_sha256: str = ""
    weights_bytes: int = 0

    @property
    def runs_here(self) -> bool:
        """Tell whether this release can run the version's head."""
        return self.network.get("kind") not in EARLIER_KINDS

    def to_json(self) -> dict[str, Any]:
        """Return the file's content, with its format and its seal."""
        data: dict[str, Any] = json.loads(json.dumps({**asdict(self), "format": FORMAT}))
        return {**data, SEAL: digest(data)}

    @classmethod
    def from_json(cls, data: Mapping[str, Any], version: str) -> Self:
        """Read a file's content.

        Args:
            data: what `to_json` returned.
            version: the name under which it was found.

        Raises:
            ModelStoreError: it is of a format that this release does not know, was changed since
                it was published, or is another version's.
        """
        if data.get("format") != FORMAT:
            raise ModelStoreError(
                f"{version} has manifest format {data.get('format')!r}, this release reads "
                f"{FORMAT}: install the release that wrote it, or train again"
            )
        sealed = {name: value for name, value in data.items() if name != SEAL}
        # The release before wrote no seal: its manifests are read as they are.
        if SEAL in data and data[SEAL] != digest(sealed):
            raise ModelStoreError(
                f"the manifest of {version} is not the one published: it was edited or damaged "
                "since; restore the file or roll back"
            )
        if data.get("version") != version:
            raise ModelStoreError(
                f"the manifest of {version} is that of {str(data.get('version'))[:20]!r}: its "
                "folder was renamed or copied; restore it or roll back"
            )
        return cls(**{one.name: data[one.name] for one in fields(cls) if one.name in data})


def digest(data: Mapping[str, Any]) -> str:
    """Return the checksum of plain data, however its file is laid out."""
    plain = json.dumps(data, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(plain.encode()).hexdigest()
