"""What all methods of a comparison learn from and are judged on, computed once.

P training pictures, V views, N nodes, C and c channels before and after the reduction, H x W grid.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import safetensors.torch
import torch
from numpy.typing import NDArray
from torch import Tensor

from evaluation.album import Album
from evaluation.data import Dataset
from evaluation.protocols import Degradation
from hierarchy import LabelTree
from hierarchy.network import Features, Reduction
from inference.views import PLAIN
from worker import trainer
from worker.recipe import Recipe

Tell = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Judged:
    """Pictures to be judged on.

    Attributes:
        seen: their features, maps in bfloat16.
        targets: ``(n,)`` their nodes.
    """

    seen: Features
    targets: NDArray[np.int64]


@dataclass(frozen=True)
class Material:
    """Reduced maps and labels.

    Attributes:
        tree: N nodes.
        reduction: fitted on training pictures.
        views: features of the P training pictures, V times, the plain ones first.
        poor: the same of poorer pictures, for those that were relabelled; empty if not asked for.
        targets: ``(P,)`` the training pictures' nodes before relabelling.
        judged: by name (``val``, ``test``, ``test blur2``, ...).
    """

    tree: LabelTree
    reduction: Reduction
    views: Sequence[Features]
    poor: Sequence[Features]
    targets: NDArray[np.int64]
    judged: Mapping[str, Judged]

    def seen_at(self, relabelled: NDArray[np.bool_]) -> list[Features]:
        """The views, those of relabelled pictures in their poor form where there is one."""
        if not self.poor:
            return list(self.views)
        mask = torch.from_numpy(relabelled)
        return [
            Features(
                torch.where(mask[:, None, None, None], poor.maps, good.maps),
                torch.where(mask[:, None], poor.means, good.means),
            )
            for poor, good in zip(self.poor, self.views, strict=True)
        ]

    def save(self, folder: Path) -> None:
        """Write it for other processes to map into memory."""
        folder.mkdir(parents=True, exist_ok=True)
        features = {
            **{f"view.{n}": view for n, view in enumerate(self.views)},
            **{f"poor.{n}": view for n, view in enumerate(self.poor)},
            **{f"judged.{name}": judged.seen for name, judged in self.judged.items()},
        }
        tensors = {
            **{f"reduction.{name}": getattr(self.reduction, name) for name in _REDUCTION},
            **{f"maps.{name}": seen.maps for name, seen in features.items()},
            **{f"means.{name}": seen.means for name, seen in features.items()},
            **{f"nodes.{n}": torch.from_numpy(one.targets) for n, one in self.judged.items()},
            "targets": torch.from_numpy(self.targets),
        }
        whole = {name: tensor.clone() for name, tensor in tensors.items()}  # none share memory
        safetensors.torch.save_file(whole, folder / "material.safetensors")
        (folder / "tree.json").write_text(json.dumps(self.tree.to_json()), encoding="utf-8")

    @classmethod
    def load(cls, folder: Path) -> "Material":
        """Read what `save` wrote; pages are shared between processes."""
        found = safetensors.torch.load_file(folder / "material.safetensors")
        tree = json.loads((folder / "tree.json").read_text(encoding="utf-8"))
        names = [name.removeprefix("nodes.") for name in found if name.startswith("nodes.")]
        return cls(
            LabelTree.from_json(tree),
            Reduction(*(found[f"reduction.{name}"] for name in _REDUCTION)),
            _numbered(found, "view."),
            _numbered(found, "poor."),
            found["targets"].numpy(),
            {
                name: Judged(_features(found, f"judged.{name}"), found[f"nodes.{name}"].numpy())
                for name in names
            },
        )


_REDUCTION = ("weight", "bias", "centre", "spread")


def _features(tensors: Mapping[str, Tensor], name: str) -> Features:
    return Features(tensors[f"maps.{name}"], tensors[f"means.{name}"])


def _numbered(tensors: Mapping[str, Tensor], prefix: str) -> list[Features]:
    count = sum(name.startswith(f"maps.{prefix}") for name in tensors)
    return [_features(tensors, f"{prefix}{n}") for n in range(count)]


def gather(  # noqa: PLR0913 - what is compared, on what, and how poor
    dataset: Dataset,
    album: Album,
    recipe: Recipe,
    *,
    poor: Degradation | None = None,
    tests: Sequence[Degradation] = (Degradation(),),
    tell: Tell,
) -> Material:
    """Run the backbone on everything that is needed and reduce its maps.

    Args:
        dataset: the photos.
        album: the backbone.
        recipe: which views, and to how many channels.
        poor: what relabelled training pictures look like in the low-resolution protocol.
        tests: what the test pictures look like, one judged set each.
        tell: called with a stage, photos done and photos in all.
    """
    plain = Degradation()
    reduction = _fit_reduction(dataset, album, recipe, tell)

    def reduced(
        files: Sequence[Path], views: tuple[int, ...], look: Degradation, what: str
    ) -> list[Features]:
        kept: list[Features] = []
        for start, maps in album.maps(files, views=views, degradation=look):
            some = [trainer.reduced(reduction, torch.from_numpy(one).float()) for one in maps]
            kept = kept or [trainer.empty_like(one, len(files)) for one in some]
            stop = start + len(some[0])
            for whole, part in zip(kept, some, strict=True):
                whole.maps[start:stop], whole.means[start:stop] = part.maps, part.means
            tell(what, stop, len(files))
        return kept or [_nothing(reduction) for _ in views]

    train, single = dataset.train.files, (PLAIN,)
    judged = {
        "val": Judged(reduced(dataset.val.files, single, plain, "val")[0], dataset.val.targets)
    }
    for look in tests:
        name = "test" if look.key == "plain" else f"test {look.key}"
        maps = reduced(dataset.test.files, single, look, name)[0]
        judged[name] = Judged(maps, dataset.test.targets)
    return Material(
        dataset.tree,
        reduction,
        reduced(train, recipe.views, plain, "train"),
        reduced(train, recipe.views, poor, f"train, {poor.key}") if poor else [],
        dataset.train.targets,
        judged,
    )


def _nothing(reduction: Reduction) -> Features:
    maps = torch.empty(0, len(reduction.weight), 1, 1, dtype=torch.bfloat16)
    return Features(maps, torch.empty(0, len(reduction.centre)))


def _fit_reduction(dataset: Dataset, album: Album, recipe: Recipe, tell: Tell) -> Reduction:
    files = dataset.train.files

    def read(positions: Sequence[int], view: int) -> NDArray[np.float16]:
        some = [files[at] for at in positions]
        chunks = album.maps(some, views=(view,), degradation=Degradation())
        return np.concatenate([maps[0] for _, maps in chunks])

    none = np.zeros(0, dtype=np.int64)
    examples = trainer.Examples(
        read, recipe.views, len(files), none, none, none.astype(np.float32), none, []
    )
    return trainer.fit_reduction(
        examples, recipe, lambda stage, done, total, **_: tell(stage, done, total)
    )
