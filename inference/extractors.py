"""Feature extractors by the networks they need: the server's own, and those of other versions."""

import logging
import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Literal

from torch import Tensor, nn

from inference.backbone import (
    PACKAGES,
    Backbone,
    RandomWeights,
    fingerprint,
    load_backbone,
)
from inference.engine import make_engine
from inference.errors import BackboneError
from inference.feature_cache import FeatureCache
from inference.feature_extractor import MAX_AGE_S, FeatureExtractor, Network
from inference.predictor import Predictor
from inference.reference_index import ReferenceIndex
from studio.image_decoder import ImageLimits
from studio.image_fetcher import FetchedImage
from studio.image_sandbox import ImageDecoder

log = logging.getLogger(__name__)

#: Feature extractors kept in memory, each with its networks' engines.
KEPT = 4

Fetch = Callable[[str, int | None], FetchedImage]
#: A network's name, and its file of weights where no package brings them.
Source = tuple[str, Path | None]


def tuned_fingerprint(base: Backbone, module: nn.Module) -> str:
    """Name a fine-tuned backbone's features; equal weights, equal name."""
    return fingerprint(f"{base.name}-tuned", module, base.preparation)


def tuned_backbone(name: str, weights: Mapping[str, Tensor]) -> Backbone:
    """Build a network with the weights that a fine-tuned version carries.

    Raises:
        BackboneError: there is no such network, or the weights are not its.
    """
    base = load_backbone(name, weights=RandomWeights())
    try:
        base.module.load_state_dict(dict(weights))
    except RuntimeError as error:
        raise BackboneError(f"the version's backbone is not a {name}: {error}") from error
    return replace(base, fingerprint=tuned_fingerprint(base, base.module))


class FeatureExtractors:
    """Loads each network once per process, when it is first needed. Thread-safe."""

    def __init__(  # noqa: PLR0913 - the settings that concern images
        self,
        cache: Path,
        fetch: Fetch,
        *,
        networks: Sequence[Source],
        device: Literal["auto", "cpu", "cuda"] = "auto",
        limits: ImageLimits | None = None,
        decode: ImageDecoder | None = None,
    ) -> None:
        """Nothing is loaded yet.

        Args:
            cache: folder for features, references and converted networks.
            fetch: reference and task id -> image.
            networks: those that new versions stand on, one or more.
            device: runs them.
            limits: what one image may cost.
            decode: turns files into images.
        """
        self._cache = cache
        self._features = FeatureCache(cache)
        self._index = ReferenceIndex(cache / "references")
        self._fetch = fetch
        self._sources = tuple(networks)
        self._device = device
        self._limits = limits or ImageLimits()
        self._decode = decode
        self._loaded: dict[Source, Backbone] = {}
        self._made: OrderedDict[str, FeatureExtractor] = OrderedDict()
        self._lock = threading.RLock()

    def backbones(self) -> tuple[Backbone, ...]:
        """Load the networks that new versions stand on.

        Raises:
            BackboneError: one cannot be built here; the message says what to give.
        """
        return tuple(self._backbone(source) for source in self._sources)

    def backbone(self) -> Backbone:
        """Load the network that fine-tuning trains further: the last one named.

        Raises:
            BackboneError: see `backbones`.
        """
        return self._backbone(self._sources[-1])

    def base(self) -> FeatureExtractor:
        """Give the extractor that new versions stand on.

        Raises:
            BackboneError: see `backbones`.
        """
        with self._lock:
            return self._extractor(self.backbones())

    def of(self, predictor: Predictor) -> FeatureExtractor:
        """Give the extractor that a version's head was trained on.

        It need not be the server's own, if its networks' weights are in the version or in packages.

        Raises:
            BackboneError: the version stands on a network that is not here.
        """
        with self._lock:
            if predictor.backbone_fingerprint in self._made:
                self._made.move_to_end(predictor.backbone_fingerprint)
                return self._made[predictor.backbone_fingerprint]
            if predictor.backbone_weights:
                found: Sequence[Backbone] = [
                    tuned_backbone(predictor.backbone_name, predictor.backbone_weights)
                ]
            else:
                found = self._named(predictor.backbone_name)
            mark = "+".join(one.fingerprint for one in found)
            if mark != predictor.backbone_fingerprint:
                raise BackboneError(
                    f"{predictor.version} was trained on {predictor.backbone_fingerprint}, which "
                    f"this server does not have: set HRN_BACKBONE={predictor.backbone_name} and "
                    "HRN_BACKBONE_WEIGHTS to the weights that it was trained on, or train anew"
                )
            return self._extractor(found)

    def prune(self, max_bytes: int) -> int:
        """Bring the cached features under a size; bytes removed."""
        self._index.prune(MAX_AGE_S)
        return self._features.prune(max_bytes)

    def _named(self, names: str) -> list[Backbone]:
        """Load the networks of these names that can be had here."""
        configured = dict(self._sources)
        found = []
        for name in names.split("+"):
            if name in configured or name in PACKAGES:
                with suppress(BackboneError):  # `of` says which is missing
                    found.append(self._backbone((name, configured.get(name))))
        return found

    def _backbone(self, source: Source) -> Backbone:
        with self._lock:
            if source not in self._loaded:
                name, weights = source
                self._loaded[source] = load_backbone(
                    name, weights=weights, cache=self._cache / "engines"
                )
            return self._loaded[source]

    def _extractor(self, backbones: Sequence[Backbone]) -> FeatureExtractor:
        mark = "+".join(one.fingerprint for one in backbones)
        if mark not in self._made:
            self._made[mark] = FeatureExtractor(
                self._fetch,
                [self._network(one) for one in backbones],
                cache=self._features,
                index=self._index,
                limits=self._limits,
                decode=self._decode,
            )
            self._forget_oldest(mark)
        return self._made[mark]

    def _network(self, backbone: Backbone) -> Network:
        """Take the network from another extractor that has it, or start its engine."""
        for extractor in self._made.values():
            for network in extractor.networks:
                if network.backbone.fingerprint == backbone.fingerprint:
                    return network
        folder = self._cache / "engines"
        return Network(backbone, make_engine(backbone, device=self._device, cache_dir=folder))

    def _forget_oldest(self, newest: str) -> None:
        """Each fine-tuned version brings a network of its own; our own extractor stays."""
        sources = [self._loaded.get(source) for source in self._sources]
        own = "+".join(one.fingerprint for one in sources if one is not None)
        while len(self._made) > KEPT:
            del self._made[next(mark for mark in self._made if mark not in (own, newest))]
