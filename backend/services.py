"""The dependencies of routes, and what is cached between requests."""

import logging
import re
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from functools import lru_cache
from typing import Final, TypeVar, cast

from flask import current_app

from inference.answers import FEW, answers
from inference.errors import ModelStoreError
from inference.feature_extractor import FeatureExtractor, Item
from inference.predictor import Answer, Predictor
from inference.store import (
    CONNECTED,
    DISCONNECTED,
    GONE,
    UNCONFIRMED,
    UNTRAINED,
    Project,
    project_key,
)
from studio.errors import ImageError
from studio.label_config import LabelConfig, parse_label_config
from studio.schemas import SetupCall
from worker.asking import Places, places_of
from worker.errors import MisconfiguredError
from worker.parts import Parts
from worker.queue import Board, RedisError

log = logging.getLogger(__name__)

T = TypeVar("T")

#: Seconds for which hints are not tried after Redis did not answer one.
AWAY: Final = 5.0

#: Calls with many images at once: each may hold 45 MB of images that are under way.
BATCHES: Final = 8

Answers = list[Answer | ImageError]


class Services:
    """The parts of one application."""

    def __init__(self, parts: Parts) -> None:
        self.parts = parts
        #: A label config of thousands of choices comes with every call and seldom changes.
        self.label_config = lru_cache(maxsize=64)(parse_label_config)
        self.records = parts.records
        #: Images that the console looks at together: predictions go first.
        self.looks = threading.BoundedSemaphore(2)
        self._batches = threading.BoundedSemaphore(BATCHES)
        self._redis_away_until = 0.0
        self._places = lru_cache(maxsize=64)(lambda key, v, _: places_of(parts.store, key, v))

    def hint(self, what: str, note: Callable[[Board], None]) -> None:
        """Note in Redis what may be lost.

        Not tried for a while after Redis did not answer: waiting for it, each of a storm of events
        would hold a thread for seconds, and predictions would stand behind them.
        """
        if time.monotonic() < self._redis_away_until:
            log.info("redis is away: event not noted action=%s", what)
            return
        try:
            note(self.parts.board)
        except (RedisError, MisconfiguredError) as error:
            self._redis_away_until = time.monotonic() + AWAY
            log.warning("event not noted action=%s: %s", what, error)

    def key(self, project: str) -> str:
        """Return the store's name for ``<id>.<epoch>``, the same on every route.

        Our own setting names the Label Studio: what it says of itself is often localhost, and it
        says so on `/setup` alone.
        """
        return project_key(self.parts.settings.label_studio_url or "label-studio", project)

    def remember(self, project: str, xml: str, hostname: str = "") -> Project:
        """Store what a call says of a project, and return the project as the store knows it.

        A store that cannot be written is logged: predictions go on, `/ready` and doctor tell.
        """
        number = int(project.split(".", maxsplit=1)[0])
        # What it says of itself is kept and shown; a password in it would be, too.
        ours = self.parts.settings
        hostname = re.sub(r"//.*@", "//", hostname)
        address = ours.label_studio_url or hostname
        # Where Label Studio can be asked, the reconciler confirms the project, or forgets it.
        state = UNCONFIRMED if ours.label_studio_url and ours.label_studio_token else CONNECTED
        heard = Project(
            self.key(project), number, project, address, xml, state=state, hostname=hostname
        )
        try:
            return self.parts.store.register(heard)
        except ModelStoreError as error:
            log.error("project not remembered: %s", error)  # noqa: TRY400 - no traceback needed
            return heard

    def version(self, project: Project) -> str:
        """Return the live version's name, read each time: new ones need no restart."""
        return self.parts.store.current(project.key) or UNTRAINED

    def places(self, project: Project, version: str) -> Places:
        """Return the order of the version's tasks, read again whenever it was written."""
        return self._places(project.key, version, self.parts.store.order_stamp(project.key))

    def answers(
        self, extractor: FeatureExtractor, predictor: Predictor, items: Sequence[Item]
    ) -> Answers:
        """Answer each image; of calls with many images a few run at once."""
        with self._batches if len(items) > FEW else nullcontext():
            return answers(extractor, predictor, items)

    def hear(self, call: SetupCall) -> tuple[Project, LabelConfig]:
        """Take a `/setup` in.

        Raises:
            LabelConfigError: the config has no usable tree; the project is remembered all the same.
        """
        project = self.remember(call.project, call.schema, call.hostname)
        if project.state in (DISCONNECTED, GONE):  # Label Studio calls it only for a backend
            project = self._confirm_again(project)
        return project, self.label_config(call.schema)

    def _confirm_again(self, project: Project) -> Project:
        try:
            return self.parts.store.note_state(project.key, UNCONFIRMED) or project
        except ModelStoreError as error:
            log.error("state not noted: %s", error)  # noqa: TRY400 - no traceback needed
            return project


def from_redis(parts: Parts, read: Callable[[Board], T], otherwise: T) -> T:
    """Read something from Redis, or return something else while that is away."""
    try:
        return read(parts.board)
    except (RedisError, MisconfiguredError):
        return otherwise


def services() -> Services:
    """Return the services of the application that handles this request."""
    return cast("Services", current_app.extensions["services"])
