"""A network as it will be published, and the usual way to make one: a head on frozen features."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from hierarchy import LabelTree
from hierarchy.depth_selection import DepthRule
from inference.manifest import KIND
from inference.store import Project
from worker import trainer
from worker.fitting import Report
from worker.gathering import Gathered
from worker.parts import Parts
from worker.training_config import TrainingConfig


@dataclass(frozen=True)
class Made:
    """A trained network as it will be published.

    Attributes:
        trained: head, rule and figures.
        network: the manifest's description of the head.
        backbone: name and fingerprint.
        config: its settings.
        backbone_weights: of a fine-tuned backbone, else empty.
    """

    trained: trainer.Trained
    network: dict[str, Any]
    backbone: dict[str, str]
    config: dict[str, Any]
    backbone_weights: Mapping[str, Tensor] = field(default_factory=dict)


def fit_head(  # noqa: PLR0913 - what fine-tuning takes, and the settings
    tree: LabelTree,
    gathered: Gathered,
    parts: Parts,
    project: Project,
    progress: Report,
    config: TrainingConfig | None = None,
    former: DepthRule | None = None,
) -> Made:
    """Train a head on frozen features; on the CPU, where they are and it takes seconds."""
    examples, extractor = gathered.examples, parts.extractors.base()
    networks = [one.backbone.channels for one in extractor.networks]
    config = config or TrainingConfig.for_networks(networks)
    trained = trainer.train(
        tree,
        examples,
        config,
        target=project.target_accuracy or parts.settings.target_accuracy,
        minimum=project.minimum_depth,
        maximum=project.maximum_depth,
        strict=project.strict,
        former=former,
        report=progress,
    )
    return Made(
        trained,
        {"kind": KIND, "channels": examples.vectors.shape[2], **config.sizes(tree)},
        {"name": extractor.name, "fingerprint": extractor.fingerprint},
        config.to_json(),
    )
