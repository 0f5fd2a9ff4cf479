"""Photos on disk -> a backbone's feature maps, by the way that served pictures go.

Maps are cached by content, so each photo, view and degradation costs one pass in its life.
"""

import hashlib
import io
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from evaluation.errors import DatasetError
from evaluation.protocols import Degradation
from hierarchy.quantised import joined
from inference.backbone import Backbone
from inference.engine import make_engine
from inference.features import FeatureCache
from inference.gallery import Gallery
from inference.references import ReferenceIndex
from studio.errors import ImageError
from studio.image_fetcher import FetchedImage

#: Photos whose maps are in memory at once.
CHUNK = 64


class Album:
    """One backbone's maps of photos, poorer ones included."""

    def __init__(self, backbone: Backbone, cache: Path) -> None:
        """Start the engine; the first time on a machine this takes some seconds.

        Args:
            backbone: what to run.
            cache: a folder of our own, for any number of backbones.
        """
        self.backbone = backbone
        self._engine = make_engine(backbone, cache_dir=cache / "engines")
        self._cache = cache

    def maps(
        self, files: Sequence[Path], *, views: tuple[int, ...], degradation: Degradation
    ) -> Iterator[tuple[int, list[NDArray[np.float16]]]]:
        """Position of the first photo and each view's maps ``(n, C, h, w)``, by chunk, in order.

        Each photo is decoded once for all of its views, and not at all if they are cached.

        Raises:
            DatasetError: a photo cannot be read.
        """
        gallery = Gallery(
            lambda ref, _: open_photo(ref, degradation),
            self._engine,
            self.backbone.preparation,
            cache=FeatureCache(self._cache / "features", self.backbone.fingerprint),
            index=ReferenceIndex(self._cache / "references" / degradation.key),
        )
        for start in range(0, len(files), CHUNK):
            part = files[start : start + CHUNK]
            items = [(ref_of(file), None) for file in part]
            found = {}
            for at, one in gallery.stream_views(items, views):
                if isinstance(one, ImageError):
                    raise DatasetError(f"{part[at]}: {one.reason}") from one
                found[at] = one
            yield (
                start,
                [joined([found[at][view] for at in range(len(part))]).restored() for view in views],
            )


def ref_of(file: Path) -> str:
    """The file with its time and size, so that a changed one is read anew."""
    stat = file.stat()
    return f"{file.resolve()}|{stat.st_mtime_ns}|{stat.st_size}"


def open_photo(ref: str, degradation: Degradation | None = None) -> FetchedImage:
    """The file's bytes, made poorer and packed without loss where that is asked for."""
    file = Path(ref.rsplit("|", 2)[0])
    try:
        data = file.read_bytes()
        if degradation is not None and degradation.key != "plain":
            with Image.open(io.BytesIO(data)) as image:
                poorer = degradation.apply(image, file.name)
            buffer = io.BytesIO()
            poorer.save(buffer, "PNG", compress_level=1)
            data = buffer.getvalue()
    except OSError as error:
        raise ImageError(f"cannot be read as a picture: {error}") from error
    return FetchedImage(hashlib.sha256(data).hexdigest(), data)
