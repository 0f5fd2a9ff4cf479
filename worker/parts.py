"""The real parts, put together from settings.

Each is opened when first used, so that what is not needed cannot fail.
"""

import re
import ssl
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from inference.extractors import FeatureExtractors
from inference.files import BucketFiles
from inference.predictor import Predictors
from inference.records import Records
from inference.store import ModelStore
from studio.client import LabelStudio
from studio.image_decoder import ImageLimits
from studio.image_fetcher import FetchedImage, ImageFetcher
from studio.image_sandbox import SandboxedDecoder
from studio.project_setup import normalised_url
from studio.tls import ssl_context
from worker.errors import MisconfiguredError
from worker.identity import is_ours
from worker.settings import Settings

if TYPE_CHECKING:
    from worker.queue import Board


def _check_address(url: str, ours: Settings) -> None:
    """Refuse an address that is a page of Label Studio, or this backend itself.

    Raises:
        MisconfiguredError: with the address that is meant.
    """
    if page := re.search(r"/projects(?:/\d.*)?$", urlsplit(url).path):
        meant = url[: -len(page[0])]
        raise MisconfiguredError(
            f"LABEL_STUDIO_URL is the address of a page, {url}: give Label Studio's own, {meant}"
        )
    if normalised_url(url) == normalised_url(ours.backend_url):
        raise MisconfiguredError(
            f"LABEL_STUDIO_URL and HRN_BACKEND_URL are the same address, {url}: the first is Label "
            "Studio's, the second this backend's"
        )


class Parts:
    """Container of what servers and jobs work with; each part is opened when first used."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings

    @cached_property
    def store(self) -> ModelStore:
        """Versions, in a folder or a bucket."""
        ours = self.settings
        return ModelStore(
            BucketFiles(ours.store_url, self._store_lock) if ours.in_bucket else ours.store
        )

    @contextmanager
    def _store_lock(self, name: str) -> Iterator[None]:
        """Hold a lock among all who share a bucket, in the Redis that they share.

        Raises:
            OSError: it cannot be had.
        """
        from redis.exceptions import RedisError

        lock = self.board.redis.lock(f"hrn:store:{name}", timeout=30, blocking_timeout=32)
        try:
            held = lock.acquire()
        except RedisError as error:
            raise OSError(0, f"its locks are in Redis, which is away ({error})") from error
        if not held:
            raise OSError(0, "somebody else has held its lock for 32 s")
        try:
            yield
        finally:
            with suppress(RedisError):  # it ends by itself
                lock.release()

    @cached_property
    def board(self) -> "Board":
        """Wishes and progress in Redis; connects at the first call.

        Raises:
            MisconfiguredError: no REDIS_URL.
        """
        if not self.settings.redis_url:
            raise MisconfiguredError(
                "REDIS_URL is not set: set it, or use `hrn up`, which brings a Redis of its own"
            )
        from worker.queue import Board, connect  # predictions also run where no queue is installed

        return Board(connect(self.settings.redis_url))

    @cached_property
    def studio(self) -> LabelStudio:
        """Label Studio's API.

        Raises:
            MisconfiguredError: its address or token is not set, or cannot be one.
        """
        if not self.settings.label_studio_url or not self.settings.label_studio_token:
            raise MisconfiguredError(
                "LABEL_STUDIO_URL and LABEL_STUDIO_API_KEY are needed to read labels: set both "
                "(the token is made in Label Studio under Account & Settings)"
            )
        url, token = self.settings.label_studio_url, self.settings.label_studio_token.reveal()
        _check_address(url, self.settings)
        try:
            return LabelStudio(url, token, trust=self.trust)
        except ValueError as error:
            raise MisconfiguredError(
                f"LABEL_STUDIO_URL or LABEL_STUDIO_API_KEY: {error}"
            ) from error

    @cached_property
    def trust(self) -> ssl.SSLContext:
        """Whose certificates are accepted."""
        named = (self.settings.requests_ca_bundle, self.settings.ssl_cert_file)
        return ssl_context(place for place in named if place is not None)

    @cached_property
    def limits(self) -> ImageLimits:
        """What one image may cost."""
        return ImageLimits.of(self.settings.max_megabytes, self.settings.max_megapixels)

    def other_addresses(self) -> tuple[str, ...]:
        """Return what browsers and Label Studio itself call it; looked up once per minute."""
        return self._other_addresses(int(time.monotonic() // 60))

    @cached_property
    def _other_addresses(self) -> Callable[[int], tuple[str, ...]]:
        @lru_cache(maxsize=1)
        def find(_minute: int) -> tuple[str, ...]:
            ours = self.settings
            own = [
                one.hostname for one in self.store.projects() if is_ours(one, ours.label_studio_url)
            ]
            return tuple(dict.fromkeys(filter(None, [ours.label_studio_page, *own])))

        return find

    @cached_property
    def fetcher(self) -> ImageFetcher:
        """Images, from wherever tasks point to and is allowed."""
        ours = self.settings
        known = bool(ours.label_studio_url and ours.label_studio_token)
        return ImageFetcher(
            ours.label_studio_url or None,
            self.studio.authorization if known else None,
            self.limits,
            allow_private=ours.allow_private,
            allowed_hosts=ours.allowed_hosts,
            local_files={"": ours.local_files} if ours.local_files else None,
            other_addresses=self.other_addresses,
            trust=self.trust,
        )

    @cached_property
    def decoders(self) -> SandboxedDecoder:
        """Files to images, in processes apart."""
        return SandboxedDecoder(max_pixels=self.limits.max_pixels)

    @cached_property
    def extractors(self) -> FeatureExtractors:
        """Features of images."""
        ours = self.settings

        def fetch(ref: str, task_id: int | None) -> FetchedImage:
            return self.fetcher.fetch(ref, task_id=task_id)

        return FeatureExtractors(
            ours.cache,
            fetch,
            networks=ours.networks,
            device=ours.device,
            limits=self.limits,
            decode=self.decoders,
        )

    @cached_property
    def records(self) -> Records:
        """What versions keep of their own checking."""
        return Records(self.store)

    @cached_property
    def predictors(self) -> Predictors:
        """Loaded versions."""
        return Predictors(self.store)
