"""Feature vectors of a data set, for everything that learns from it or is judged on it.

Images go through the product's feature extractor and cache, so each image, network and augmentation
costs one pass in its life. Letters: P training images, V augmentations, n images, C channels.
"""

import hashlib
import io
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from evaluation.data import Dataset
from evaluation.errors import DatasetError
from evaluation.protocols import Degradation, small_tree
from hierarchy import LabelTree
from inference.augmentation import LEARNT_FROM, PLAIN
from inference.backbone import load_backbone
from inference.engine import make_engine
from inference.feature_cache import FeatureCache
from inference.feature_extractor import FeatureExtractor, Network
from inference.reference_index import ReferenceIndex
from studio.errors import ImageError
from studio.image_fetcher import FetchedImage

Vectors = NDArray[np.float16]
Ints = NDArray[np.int64]

#: Told of a stage, images done and images in all.
Tell = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Judged:
    """Images to be judged on.

    Attributes:
        vectors: ``(n, C)``.
        targets: ``(n,)`` their nodes.
    """

    vectors: Vectors
    targets: Ints


@dataclass(frozen=True)
class Features:
    """Vectors and labels of a data set.

    Attributes:
        tree: its label tree.
        train: ``(P, V, C)``, the plain augmentation first.
        poor: the same of poorer images, for those that are relabelled; None if not asked for.
        targets: ``(P,)`` the training images' nodes.
        judged: by name (``val``, ``test``, ``test blur2``, ...).
        networks: channels of each network, side by side in a vector.
    """

    tree: LabelTree
    train: Vectors
    poor: Vectors | None
    targets: Ints
    judged: Mapping[str, Judged]
    networks: tuple[int, ...]

    def small(self, leaves: int, seed: int) -> Self:
        """Draw a small tree, and keep the images of its nodes."""
        tree, place = small_tree(self.tree, leaves, seed)

        def kept(judged: Judged) -> Judged:
            nodes = place[judged.targets]
            return Judged(judged.vectors[nodes >= 0], nodes[nodes >= 0])

        nodes = place[self.targets]
        stays = nodes >= 0
        return type(self)(
            tree,
            self.train[stays],
            None if self.poor is None else self.poor[stays],
            nodes[stays],
            {name: kept(judged) for name, judged in self.judged.items()},
            self.networks,
        )

    def save(self, folder: Path) -> None:
        """Write files for other processes to map into memory."""
        arrays: dict[str, NDArray[Any]] = {"train": self.train, "targets": self.targets}
        if self.poor is not None:
            arrays["poor"] = self.poor
        for number, judged in enumerate(self.judged.values()):
            arrays |= {f"vectors{number}": judged.vectors, f"targets{number}": judged.targets}
        for name, array in arrays.items():
            np.save(folder / f"{name}.npy", array)
        facts = {
            "tree": self.tree.to_json(),
            "judged": list(self.judged),
            "networks": self.networks,
        }
        (folder / "facts.json").write_text(json.dumps(facts), encoding="utf-8")

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Read what :meth:`save` wrote; processes share the pages of the vectors."""
        facts = json.loads((folder / "facts.json").read_text(encoding="utf-8"))

        def read(name: str) -> NDArray[Any]:
            return np.asarray(np.load(folder / f"{name}.npy", mmap_mode="c"))

        return cls(
            LabelTree.from_json(facts["tree"]),
            read("train"),
            read("poor") if (folder / "poor.npy").exists() else None,
            read("targets"),
            {
                name: Judged(read(f"vectors{number}"), read(f"targets{number}"))
                for number, name in enumerate(facts["judged"])
            },
            tuple(facts["networks"]),
        )


class Extraction:
    """The networks and the cache that turn files into vectors."""

    def __init__(self, networks: Sequence[tuple[str, Path | None]], cache: Path) -> None:
        """Start the engines; the first time on a machine this takes some seconds.

        Args:
            networks: names, each with its file of weights or None for the package's own.
            cache: the product's cache folder.

        Raises:
            BackboneError: a network cannot be had.
        """
        backbones = [load_backbone(name, weights=file) for name, file in networks]
        engines = cache / "engines"
        self.networks = [Network(one, make_engine(one, cache_dir=engines)) for one in backbones]
        self._cache = cache
        self.fingerprint = "+".join(one.fingerprint for one in backbones)
        self.channels = tuple(one.channels for one in backbones)

    def vectors(
        self,
        files: Sequence[Path],
        augmentations: Sequence[int] = (PLAIN,),
        degradation: Degradation | None = None,
        tell: Callable[[int, int], None] | None = None,
    ) -> Vectors:
        """Return ``(n, V, C)`` vectors of files, made poorer first if asked for.

        Raises:
            DatasetError: a file is no image that can be read.
        """
        look = degradation or Degradation()
        extractor = FeatureExtractor(
            lambda reference, _: open_image(reference, look),
            self.networks,
            cache=FeatureCache(self._cache),
            index=ReferenceIndex(self._cache / "references" / look.key),
        )
        items = [(reference_of(file), None) for file in files]
        keys: dict[int, str] = {}
        for at, found in extractor.ensure(items, augmentations):
            if isinstance(found, ImageError):
                raise DatasetError(f"{files[at]}: {found.reason}") from found
            keys[at] = found
            if tell is not None:
                tell(len(keys), len(files))
        in_order = [keys[at] for at in range(len(files))]
        result = np.empty((len(files), len(augmentations), extractor.channels), dtype=np.float16)
        for at, augmentation in enumerate(augmentations):
            result[:, at] = extractor.read(items, in_order, augmentation=augmentation)
        return result


def extract(  # noqa: PLR0913 - what is turned into vectors, and how poor
    dataset: Dataset,
    extraction: Extraction,
    *,
    augmentations: Sequence[int] = LEARNT_FROM,
    poor: Degradation | None = None,
    tests: Sequence[Degradation] = (Degradation(),),
    tell: Tell,
) -> Features:
    """Turn a data set into vectors.

    Args:
        dataset: the images.
        extraction: the networks.
        augmentations: what training images are learnt in, the plain one first.
        poor: what relabelled training images look like in the low-resolution protocol.
        tests: what the test images look like, one judged set each.
        tell: told of progress.
    """

    def of(files: Sequence[Path], which: Sequence[int], look: Degradation, stage: str) -> Vectors:
        return extraction.vectors(files, which, look, lambda done, n: tell(stage, done, n))

    plain, train = Degradation(), dataset.train
    judged = {"val": (dataset.val, plain)}
    judged |= {f"test {one.key}".removesuffix(" plain"): (dataset.test, one) for one in tests}
    return Features(
        dataset.tree,
        of(train.files, augmentations, plain, "train"),
        of(train.files, augmentations, poor, f"train {poor.key}") if poor else None,
        train.targets,
        {
            name: Judged(of(split.files, (PLAIN,), look, name)[:, 0], split.targets)
            for name, (split, look) in judged.items()
        },
        extraction.channels,
    )


def reference_of(file: Path) -> str:
    """Name a file with its time and size, so that one that has changed is read again."""
    stat = file.stat()
    return f"{file.resolve()}|{stat.st_mtime_ns}|{stat.st_size}"


def open_image(reference: str, degradation: Degradation) -> FetchedImage:
    """Read a file, made poorer and packed without loss where that is asked for.

    Raises:
        ImageError: it cannot be read.
    """
    file = Path(reference.rsplit("|", 2)[0])
    try:
        data = file.read_bytes()
        if degradation.key != "plain":
            with Image.open(io.BytesIO(data)) as image:
                poorer = degradation.apply(image, file.name)
            buffer = io.BytesIO()
            poorer.save(buffer, "PNG", compress_level=1)
            data = buffer.getvalue()
    except OSError as error:
        raise ImageError(f"cannot be read as an image: {error}") from error
    return FetchedImage(hashlib.sha256(data).hexdigest(), data)
