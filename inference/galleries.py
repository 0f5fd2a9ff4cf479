"""One gallery a backbone: the server's own, and those of versions whose backbone was fine-tuned."""

import copy
import dataclasses
import logging
import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Literal

from torch import Tensor, nn

from inference.backbone import Backbone, fingerprint, remembered_backbone
from inference.engine import make_engine
from inference.errors import BackboneError
from inference.features import FeatureCache
from inference.gallery import MAX_AGE_S, Gallery
from inference.predictor import Predictor
from inference.references import ReferenceIndex
from studio.image_decoder import ImageLimits
from studio.image_fetcher import FetchedImage
from studio.image_sandbox import ImageDecoder

log = logging.getLogger(__name__)

#: Backbones kept in memory, each with its engine.
KEPT = 4

Fetch = Callable[[str, int | None], FetchedImage]


def tuned_fingerprint(base: Backbone, module: nn.Module) -> str:
    """The name of a fine-tuned backbone's features; equal weights, equal name."""
    return fingerprint(f"{base.name}-tuned", module, base.preparation)


def with_weights(base: Backbone, weights: Mapping[str, Tensor]) -> Backbone:
    """The same network with the weights that a version carries.

    Raises:
        BackboneError: they are not this network's.
    """
    module = copy.deepcopy(base.module)
    try:
        module.load_state_dict(dict(weights))
    except RuntimeError as error:
        raise BackboneError(f"the version's backbone is not a {base.name}: {error}") from error
    card = dataclasses.replace(base.card, fingerprint=tuned_fingerprint(base, module))
    return Backbone(card, module)


class Galleries:
    """Loads each backbone once a process, when it is first needed. Thread-safe."""

    def __init__(  # noqa: PLR0913 - the settings that concern pictures
        self,
        cache: Path,
        fetch: Fetch,
        *,
        backbone: str,
        weights: Path | None = None,
        device: Literal["auto", "cpu", "cuda"] = "auto",
        limits: ImageLimits | None = None,
        decode: ImageDecoder | None = None,
    ) -> None:
        self._cache = cache
        self._fetch = fetch
        self._name = backbone
        self._weights = weights
        self._device = device
        self._limits = limits or ImageLimits()
        self._decode = decode
        self._index = ReferenceIndex(cache / "references")
        self._base: Backbone | None = None
        self._made: OrderedDict[str, Gallery] = OrderedDict()
        self._lock = threading.RLock()

    def backbone(self) -> Backbone:
        """The backbone that new versions stand on.

        Raises:
            BackboneError: it cannot be built here; the message says what to give.
        """
        with self._lock:
            if self._base is None:
                self._base = remembered_backbone(
                    self._name, weights=self._weights, folder=self._cache / "engines"
                )
            return self._base

    def base(self) -> Gallery:
        """Features of the server's own backbone."""
        with self._lock:
            return self._gallery(self.backbone())

    def of(self, predictor: Predictor) -> Gallery:
        """Features that a version's head was trained on.

        Raises:
            BackboneError: the version stands on a backbone that this server does not run.
        """
        with self._lock:
            if predictor.backbone_fingerprint in self._made:
                self._made.move_to_end(predictor.backbone_fingerprint)
                return self._made[predictor.backbone_fingerprint]
            if predictor.backbone_weights:
                found = with_weights(self.backbone(), predictor.backbone_weights)
            else:
                found = self.backbone()
            if found.fingerprint != predictor.backbone_fingerprint:
                raise BackboneError(
                    f"{predictor.version} was trained on {predictor.backbone_fingerprint}, this "
                    f"server has {found.fingerprint}: set HRN_BACKBONE={predictor.backbone_name} "
                    "(and its weights), or train anew"
                )
            return self._gallery(found)

    def prune(self, max_bytes: int) -> int:
        """Bring the cached features of all backbones under a size; bytes removed."""
        self._index.prune(MAX_AGE_S)
        return FeatureCache(self._cache / "features", "any").prune(max_bytes)

    def _gallery(self, backbone: Backbone) -> Gallery:
        if backbone.fingerprint not in self._made:
            engine = make_engine(backbone, device=self._device, cache_dir=self._cache / "engines")
            self._made[backbone.fingerprint] = Gallery(
                self._fetch,
                engine,
                backbone.preparation,
                cache=FeatureCache(self._cache / "features", backbone.fingerprint),
                index=self._index,
                limits=self._limits,
                decode=self._decode,
            )
            self._forget_oldest()
        return self._made[backbone.fingerprint]

    def _forget_oldest(self) -> None:
        """Each fine-tuned version brings a network of its own; our own backbone stays."""
        base = None if self._base is None else self._base.fingerprint
        while len(self._made) > KEPT:
            del self._made[next(name for name in self._made if name != base)]
