"""Pictures in, answers out: a gallery's features through a predictor, in chunks."""

from collections.abc import Sequence
from itertools import chain
from typing import Final

import numpy as np
from numpy.typing import NDArray

from hierarchy.quantised import QuantisedMaps, joined
from inference.batching import Together
from inference.gallery import Gallery, Item, Loaded
from inference.predictor import BATCH, Answer, Predictor
from inference.views import PLAIN
from studio.errors import ImageError

#: Groups of calls that are answered at once: one's head works while another's backbone does.
LANES: Final = 2


def answers(
    gallery: Gallery, predictor: Predictor, items: Sequence[Item]
) -> list[Answer | ImageError]:
    """One answer a picture, in order; a picture that cannot be had is its own error."""
    found: dict[int, Answer | ImageError] = {}
    waiting: list[tuple[int, QuantisedMaps]] = []

    def settle() -> None:
        maps = [maps for _, maps in waiting]
        told = predictor.answer(joined(maps)) if maps else []
        for (position, _), answer in zip(waiting, told, strict=True):
            found[position] = answer
        waiting.clear()

    for position, result in gallery.stream(items):
        if isinstance(result, ImageError):
            found[position] = result
        else:
            waiting.append((position, result))
        if len(waiting) == BATCH:
            settle()
    settle()
    return [found[position] for position in range(len(items))]


class SharedAnswers:
    """Answers for calls of few pictures that come at the same time, worked out together.

    Each call fetches and decodes its own pictures, so that nobody waits for another's storage; and
    a call whose pictures have all been seen before goes its own way, past those that wait for the
    network.
    What the network and all behind it cost beside the pictures themselves is spent once for all
    that wait. Threads share it.
    """

    def __init__(self, gallery: Gallery, predictor: Predictor) -> None:
        """Nothing is started: callers lend their threads."""

        def look(loaded: list[Loaded]) -> list[Answer]:
            return predictor.answer(gallery.infer(loaded))

        self._gallery = gallery
        self._look = look
        self._together: Together[list[Loaded], list[Answer]] = Together(
            look, lanes=LANES, join=lambda calls: list(chain.from_iterable(calls))
        )

    def __call__(self, items: Sequence[Item]) -> list[Answer | ImageError]:
        """See `answers`."""
        found = self._gallery.load(items)
        loaded = [one for one in found if not isinstance(one, ImageError)]
        work = self._together if any(one.pixels for one in loaded) else self._look
        told = iter(work(loaded) if loaded else ())
        return [one if isinstance(one, ImageError) else next(told) for one in found]


def maps_of(gallery: Gallery, items: Sequence[Item], *, view: int = PLAIN) -> NDArray[np.float16]:
    """``(n, C, H, W)`` maps of pictures that are known to be readable.

    Raises:
        ImageError: one is not any more.
    """
    maps = []
    for result in gallery.maps(items, view=view):
        if isinstance(result, ImageError):
            raise result
        maps.append(result)
    return np.stack(maps)
