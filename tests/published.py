"""Small real versions in a store: fresh weights on the real backbones, no training."""

from dataclasses import replace

import torch

from hierarchy import LabelTree
from hierarchy.calibration import Fitted
from hierarchy.depth_selection import DepthRule
from hierarchy.heads import HRNHead
from inference.manifest import Manifest
from inference.store import ModelStore, Project, project_key
from worker.settings import Settings

#: A price so low that the deepest node is answered however unsure the network is.
BOLD = 1e-6

#: Of the two networks that are the default.
CHANNELS = 2560

TREE = LabelTree.from_paths([("Fruit", "Apple"), ("Fruit", "Pear"), ("Milk",)])
OTHER = LabelTree.from_paths([("Cat", "Siamese", "Blue"), ("Dog",)])


def project(label_studio: str, name: str = "1.1795440233", xml: str = "") -> Project:
    """A project of that Label Studio, not yet in any store."""
    key = project_key(label_studio, name)
    return Project(key, int(name.split(".", maxsplit=1)[0]), name, label_studio, xml)


def manifest(
    tree: LabelTree, price: float | None, fingerprint: str, trained_through: str = ""
) -> Manifest:
    """What a training would write."""
    rule = DepthRule(0.9, price, ((1.0, 0.0),) * tree.depth)
    levels = [
        {"level": level + 1, "checked": 10, "right": 9, "accuracy": 0.9}
        for level in range(tree.depth)
    ]
    return Manifest(
        project="1.1795440233",
        tree=tree.to_json(),
        network={"kind": "hrn", "channels": CHANNELS, "hidden": 8, "members": 1},
        backbone={"name": Settings.backbone, "fingerprint": fingerprint},
        calibration=Fitted(rule, "estimated", 20, 1, 0.8, 1.5).to_json(),
        metrics={"by_level": levels, "leaf_accuracy": 0.8, "leaf_checked": 10},
        labels={"labels": 20, "digest": "none"},
        trained_through=trained_through,
        gate={"passed": True, "why": "the first version"},
        seconds=1.0,
    )


def publish(
    store: ModelStore,
    known: Project,
    tree: LabelTree = TREE,
    *,
    price: float | None = BOLD,
    trained_through: str = "",
    fingerprint: str = "tf_efficientnet_lite0-unknown+tf_efficientnet_lite2-unknown",
) -> str:
    """Publish a version and make it live; its name. Without a price it shows nothing."""
    head = HRNHead(tree, CHANNELS, hidden=8, members=1)
    told = manifest(tree, price, fingerprint, trained_through)
    version = store.publish(known.key, told, head.state_dict())
    store.point(known.key, version, reason="test")
    return version


def publish_earlier(store: ModelStore, known: Project, tree: LabelTree = TREE) -> str:
    """Publish what an earlier release trained, a head on feature maps, and make it live."""
    network = {"kind": "frozen", "channels": 1280, "reduced": 8, "width": 8, "hidden": 8}
    told = replace(manifest(tree, BOLD, "tf_efficientnet_lite0-unknown"), network=network)
    version = store.publish(known.key, told, {"centre": torch.zeros(1280)})
    store.point(known.key, version, reason="test")
    return version
