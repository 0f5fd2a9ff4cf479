"""A network as it will be published, and the usual way to make one: a head on frozen features."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from hierarchy import LabelTree
from hierarchy.choice import DepthRule
from inference.store import Project
from worker import trainer
from worker.fitting import Report
from worker.gathering import Gathered
from worker.parts import Parts
from worker.recipe import Recipe


@dataclass(frozen=True)
class Made:
    """A trained network as it will be published.

    Attributes:
        trained: head, rule and figures.
        network: the manifest's description of the head.
        backbone: name and fingerprint.
        recipe: its settings.
        backbone_weights: of a fine-tuned backbone, else empty.
    """

    trained: trainer.Trained
    network: dict[str, Any]
    backbone: dict[str, str]
    recipe: dict[str, Any]
    backbone_weights: Mapping[str, Tensor] = field(default_factory=dict)


def fit_head(  # noqa: PLR0913 - what fine-tuning takes, and the recipe
    tree: LabelTree,
    gathered: Gathered,
    parts: Parts,
    project: Project,
    progress: Report,
    recipe: Recipe | None = None,
    former: DepthRule | None = None,
) -> Made:
    """The frozen backbone's head; on the CPU, where its maps are and it takes seconds."""
    recipe = recipe or Recipe()
    trained = trainer.train(
        tree,
        gathered.examples,
        recipe,
        target=project.target_accuracy or parts.settings.target_accuracy,
        minimum=project.minimum_depth,
        maximum=project.maximum_depth,
        strict=project.strict,
        former=former,
        report=progress,
    )
    backbone = parts.galleries.backbone()
    network = {
        "kind": "frozen",
        "channels": backbone.channels,
        **recipe.sizes(),
        "reduced": min(recipe.reduced, backbone.channels),
    }
    return Made(
        trained,
        network,
        {"name": backbone.name, "fingerprint": backbone.fingerprint},
        recipe.to_json(),
    )
