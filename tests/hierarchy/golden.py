"""Reads what the published code answered, stored in the shared folder."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from hierarchy import LabelTree


@dataclass(frozen=True)
class Golden:
    """One tree and one kind of scores, with float64 answers."""

    tree: LabelTree
    scores: Tensor
    """(B, N) float32."""
    targets: Tensor
    """(B,) int64."""
    losses: Tensor
    """(B,) nats."""
    gradient: Tensor
    """(B, N) of the mean loss."""
    marginals: Tensor
    """(B, N) probabilities."""


def read_goldens(shared: Path) -> list[Golden]:
    """Every tree that the folder has, with sigmoid and raw scores; CUB's must be there."""
    files = sorted((shared / "golden").glob("treeloss_*.npz"))
    assert "treeloss_cub.npz" in [file.name for file in files]
    return [golden for file in files for golden in _read(file)]


def _read(file: Path) -> Iterator[Golden]:
    with np.load(file) as stored:
        parents = stored["parent"].tolist()
        tree = LabelTree.from_parents(parents, [str(node) for node in range(len(parents))])
        for kind in ("sigmoid", "raw"):
            whole = torch.from_numpy(stored[f"{kind}_z_f64"])[:, None]
            yield Golden(
                tree=tree,
                scores=torch.from_numpy(stored[f"{kind}_x"]),
                targets=torch.from_numpy(stored[f"{kind}_labels"]).long(),
                losses=torch.from_numpy(stored[f"{kind}_loss_per_sample_f64"]),
                gradient=torch.from_numpy(stored[f"{kind}_grad_f64"]),
                marginals=torch.from_numpy(stored[f"{kind}_inference_f64"]) / whole,
            )
