"""A small network, pictures and versions, for tests that run everything for real."""

import hashlib
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from PIL import Image
from torch import Tensor

from hierarchy import LabelTree
from hierarchy.calibration import Evidence, fit_rule
from hierarchy.decisions import Decisions
from hierarchy.familiarity import Familiarity
from hierarchy.heads import HRNHead
from inference.backbone import RandomWeights, load_backbone
from inference.extractors import FeatureExtractors
from inference.insight import as_tensors
from inference.manifest import Manifest
from inference.predictor import (
    BACKBONE,
    EVIDENCE,
    build_head,
    evidence_tensors,
    familiarity_tensors,
)
from inference.store import ModelStore, Project
from studio.errors import ImageError
from studio.image_fetcher import FetchedImage

#: timm's own network for tests: 0.4 million weights, 256 channels, maps of 5 x 5.
NAME = "test_efficientnet"

#: Another one, of tokens: 64 channels, 10 x 10 patches and a class token.
VIT = "test_vit"

CHANNELS = 256

#: A small head for it.
HEAD = {"kind": "hrn", "channels": CHANNELS, "hidden": 8, "members": 1}


def weights_file(folder: Path, seed: int = 0, network: str = NAME) -> Path:
    """A file as timm publishes them, of a network that nobody trained."""
    backbone = load_backbone(network, weights=RandomWeights(seed))
    state = backbone.module.state_dict()
    path = folder / f"{network}-{seed}.safetensors"
    safetensors.torch.save_file({k.removeprefix("network."): v for k, v in state.items()}, path)
    return path


def png(seed: int) -> bytes:
    """A picture of its own for each seed: a few large squares of colour."""
    squares = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(squares).resize((180, 180), Image.Resampling.NEAREST).save(buffer, "png")
    return buffer.getvalue()


def fetch(ref: str, _task: int | None) -> FetchedImage:
    """``<seed>.png``; anything else is not there."""
    name = ref.removesuffix(".png")
    if not name.isdigit():
        raise ImageError("HTTP 404: not found")
    data = png(int(name))
    return FetchedImage(hashlib.sha256(data).hexdigest(), data)


def extractors(cache: Path, weights: Path) -> FeatureExtractors:
    return FeatureExtractors(cache, fetch, networks=[(NAME, weights)], device="cpu")


def project(key: str = "somewhere-1-17", **more: Any) -> Project:
    return Project(key, 1, "1.17", "http://somewhere", "<View/>", **more)


def head_of(tree: LabelTree, network: Mapping[str, Any] = HEAD, seed: int = 0) -> HRNHead:
    """A head that answers something else for each picture."""
    head = build_head(tree, {**network, "seed": seed})
    with torch.no_grad():
        for name, value in head.named_parameters():
            if "score" in name:
                value.mul_(8)
    return head.eval()


def seen(count: int = 200, levels: int = 2) -> Evidence:
    """Held-out pictures on which calibrated probabilities of nested nodes came true or not."""
    draw = np.random.default_rng(count)
    steps = draw.beta(8, 1, (count, levels))
    right = (draw.random((count, levels)) < steps).cumprod(axis=1).astype(np.int64)
    return Evidence(np.asarray(np.cumprod(steps, axis=1), dtype=np.float64), right)


def publish(  # noqa: D417 - the rest is what its name says
    store: ModelStore,
    owner: Project,
    tree: LabelTree,
    head: HRNHead,
    *,
    network: Mapping[str, Any] = HEAD,
    backbone: tuple[str, str] = (NAME, "fingerprint"),
    backbone_weights: Mapping[str, Tensor] | None = None,
    known: Evidence | None = None,
    familiarity: Familiarity | None = None,
    target: float = 0.9,
) -> str:
    """A version as training writes it.

    Args:
        known: the evidence that its rule is fitted on; none is kept where it is None.
    """
    held = seen(levels=len(Decisions.of(tree).levels)) if known is None else known
    rule = fit_rule(held, target=target)
    manifest = Manifest(
        tree=tree.to_json(),
        network=network,
        backbone={"name": backbone[0], "fingerprint": backbone[1]},
        calibration=rule.to_json(),
    )
    tensors = dict(head.state_dict())
    tensors |= {f"{BACKBONE}{name}": value for name, value in (backbone_weights or {}).items()}
    if known is not None:
        kept = evidence_tensors(known)
        none = np.zeros(len(known), dtype=np.int64)
        kept |= as_tensors(
            truth=none,
            nodes=np.zeros((len(known), tree.depth), dtype=np.int64),
            labels=np.zeros(len(tree), dtype=np.int64),
        )
        if known.drawn is not None:
            kept[f"{EVIDENCE}drawn"] = torch.from_numpy(known.drawn)
        tensors |= kept
    tensors |= familiarity_tensors(familiarity)
    return store.publish(owner.key, manifest, tensors)
