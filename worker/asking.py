"""Which images to ask about next, and the numbers by which Label Studio puts tasks in that order.

Label Studio orders by one number, the ``score`` of a prediction, lowest first. Here that is a
*place* and no confidence: below `FRONT` stand the tasks that are asked next, one after the other;
from there on the others, by the lead of the version's best leaf over the second, as a share of the
tasks whose lead is smaller. So the highest places are those that the version is surest of. How sure
it is of the node that it shows is another number, in the score of the result's items.
"""

import logging
import time
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final, Self

import numpy as np
from numpy.typing import NDArray

from hierarchy import LabelTree
from hierarchy.acquisition import ask
from inference.errors import ModelStoreError
from inference.predictor import Answer
from inference.store import ModelStore
from studio.label_config import LabelConfig
from studio.predictions import prediction

log = logging.getLogger(__name__)

#: Places below are those of the tasks that are asked next.
FRONT: Final = 0.1

#: Tasks that are asked next, until a training or the use of half of them brings others.
ASKED: Final = 100

#: Share of them drawn by chance: the honest sample for evaluation and calibration.
RANDOM_SHARE: Final = 0.05

#: Images among which is chosen; of more, so many are drawn. Features of 5,000 are 26 MB.
MOST: Final = 5000

#: The place of a task that an annotator skipped: behind all others.
SKIPPED: Final = 1.0

#: The place of a task of which nothing is known: neither among the first nor the surest.
UNKNOWN: Final = (1 + FRONT) / 2

#: Share of open tasks that may be new, and how many in any case, before what to ask next is chosen
#: again.
NEW_SHARE: Final = 0.1
NEW_LEAST: Final = 10

#: Leads of which the distribution is stored.
QUANTILES: Final = 201


@dataclass(frozen=True)
class Places:
    """Which tasks are asked next, and where the others stand.

    Attributes:
        version: whose order it is.
        batch: why each task that is asked next was chosen, by task, most useful first.
        leads: ascending quantiles of the open tasks' leads; empty before there is a version.
        rest: tasks behind the batch, most useful first; before there is a version.
        pool: open tasks that there were.
        newest: the highest id of a task that was considered.
        at: when it was made, seconds since the epoch.
        random: the version that asked, by task, of all tasks that were asked at random: what is
            answered of them stays here for good.
    """

    version: str
    batch: Mapping[int, str] = field(default_factory=dict)
    leads: tuple[float, ...] = ()
    rest: tuple[int, ...] = ()
    pool: int = 0
    newest: int = 0
    at: float = 0.0
    random: Mapping[int, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        numbers = {task: at for at, task in enumerate(self.batch)}
        behind = {task: at for at, task in enumerate(self.rest)}
        object.__setattr__(self, "_numbers", numbers)
        object.__setattr__(self, "_behind", behind)
        leads = np.array(self.leads or (0.0, 1.0))
        object.__setattr__(self, "_ladder", (leads, np.linspace(0, 1, len(leads))))

    _numbers: Mapping[int, int] = field(init=False, repr=False, compare=False)
    _behind: Mapping[int, int] = field(init=False, repr=False, compare=False)
    _ladder: tuple[NDArray[np.float64], NDArray[np.float64]] = field(
        init=False, repr=False, compare=False
    )

    def place(self, task: int, lead: float | None = None) -> float:
        """Return a task's rank score in [0, 1], lowest first.

        Args:
            task: its id; one that is new is placed by its lead.
            lead: of the version's best leaf over the second; None where it is not known.

        Example:
            >>> places = Places("v1", {7: "varied", 3: "random"}, leads=(0.0, 0.2, 1.0))
            >>> places.place(3, 0.9), places.place(8, 0.2), places.place(8)
            (0.075, 0.55, 0.55)
        """
        if task in self._numbers:
            place = FRONT * (self._numbers[task] + 0.5) / len(self.batch)
        elif lead is not None:
            place = _behind_front(float(np.interp(lead, *self._ladder)))
        elif task in self._behind:
            place = _behind_front((self._behind[task] + 0.5) / len(self.rest))
        else:
            place = UNKNOWN
        return round(place, 6)

    def used(self, still_open: set[int]) -> bool:
        """Tell whether half of the batch is answered, so that it is time to choose others."""
        left = sum(task in still_open for task in self.batch)
        return 2 * left <= len(self.batch) and left < len(still_open)

    def outgrown(self, still_open: set[int]) -> bool:
        """Tell whether so many tasks are new that a new batch should be chosen."""
        new = sum(task > self.newest for task in still_open)
        return new > max(NEW_LEAST, NEW_SHARE * self.pool)

    def to_json(self) -> dict[str, Any]:
        """Return plain data for the store."""
        return {
            "version": self.version,
            "batch": [[task, why] for task, why in self.batch.items()],
            "leads": list(self.leads),
            "rest": list(self.rest),
            "pool": self.pool,
            "newest": self.newest,
            "at": self.at,
            "random": [[task, version] for task, version in self.random.items()],
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """Read what ``to_json`` wrote."""
        return cls(
            version=str(data["version"]),
            batch={int(task): str(why) for task, why in data["batch"]},
            leads=tuple(float(lead) for lead in data["leads"]),
            rest=tuple(int(task) for task in data["rest"]),
            pool=int(data["pool"]),
            newest=int(data["newest"]),
            at=float(data["at"]),
            random={int(task): str(version) for task, version in data["random"]},
        )


def _behind_front(share: float) -> float:
    return FRONT + (1 - FRONT) * share


@dataclass(frozen=True)
class Pool:
    """The open tasks among which is chosen; B of them, C channels, N nodes.

    Attributes:
        tasks: their ids.
        features: ``(B, C)`` pooled features.
        log_p: ``(B, N)`` what the version says; None before there is one.
        taken: ``(T, C)`` pooled features of answered images.
        answered: tasks that have an answer, those whose image is gone as well.
        still_open: all open tasks that nobody skipped, the B among them.
        whole: are the B all that can be chosen? Otherwise it is done again with the others.
    """

    tasks: Sequence[int]
    features: NDArray[np.float32]
    log_p: NDArray[np.float64] | None
    taken: NDArray[np.float32]
    answered: int
    still_open: frozenset[int]
    whole: bool = True


def choose(pool: Pool, tree: LabelTree, version: str, before: Places | None) -> Places:
    """Choose what to ask next; equal pools are answered equally.

    A task that was to be asked at random and was not answered in time goes back among the others:
    asked later for another reason, it would be no fair draw.

    Args:
        pool: what is open and answered.
        tree: of the version, or of the label config before there is one.
        version: whose order it will be.
        before: the order so far, of whichever version.
    """
    known = {} if before is None else before.random
    drawn_before = {task: by for task, by in known.items() if task not in pool.still_open}
    newest = max(pool.still_open, default=0) if pool.whole else 0
    places = Places(
        version, pool=len(pool.still_open), newest=newest, at=time.time(), random=drawn_before
    )
    if not pool.tasks:
        return places
    asked = ask(
        pool.features,
        pool.log_p,
        tree,
        taken=pool.taken,
        count=ASKED,
        labels=pool.answered,
        seed=zlib.crc32(f"{version} {pool.answered}".encode()),
        random_share=RANDOM_SHARE,
    )
    order = [int(pool.tasks[at]) for at in asked.order]
    batch = dict(zip(order, asked.reasons, strict=False))
    drawn = {task: version for task, why in batch.items() if why == "random"}
    leads: tuple[float, ...] = ()
    if asked.margin is not None and len(asked.margin):
        shares = np.linspace(0, 1, QUANTILES)
        leads = tuple(round(float(lead), 6) for lead in np.quantile(asked.margin, shares))
    rest = () if leads else tuple(order[len(batch) :])
    return replace(
        places, batch=dict(batch), leads=leads, rest=rest, random={**drawn_before, **drawn}
    )


def read_places(store: ModelStore, key: str) -> Places | None:
    """Read the project's order; None where there is none that can be read."""
    try:
        data = store.read_order(key)
        return None if data is None else Places.from_json(data)
    except (ModelStoreError, KeyError, TypeError, ValueError) as error:
        log.warning("the order of work is made again project=%s: %s", key, error)
        return None


def places_of(store: ModelStore, key: str, version: str) -> Places:
    """Return the version's order; where it has none yet, one that knows of no task."""
    found = read_places(store, key)
    return found if found is not None and found.version == version else Places(version)


def asked_at_random(store: ModelStore, key: str) -> Mapping[int, str]:
    """Return the tasks that chance chose to be asked about, and the version that did.

    Their answers are a fair sample of the project's images, as no other answers are.
    """
    found = read_places(store, key)
    return {} if found is None else found.random


def entry_of(answer: Answer, config: LabelConfig, version: str, place: float) -> dict[str, Any]:
    """Build a prediction: the answer, how sure of it the version is, and the rank score."""
    return prediction(
        config, answer.path, score=place, version=version, confidence=answer.probability
    )
