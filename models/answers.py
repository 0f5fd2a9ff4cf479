"""Pictures in, answers out: a gallery's features through a predictor, in chunks."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from models.gallery import Gallery, Item
from models.predictor import BATCH, Answer, Predictor
from models.views import PLAIN
from studio.errors import PictureError


def answers(
    gallery: Gallery, predictor: Predictor, items: Sequence[Item]
) -> list[Answer | PictureError]:
    """One answer a picture, in order; a picture that cannot be had is its own error."""
    found: dict[int, Answer | PictureError] = {}
    waiting: list[tuple[int, NDArray[np.float16]]] = []

    def settle() -> None:
        maps = [maps for _, maps in waiting]
        for (position, _), answer in zip(
            waiting, predictor.answer(np.stack(maps)) if maps else [], strict=True
        ):
            found[position] = answer
        waiting.clear()

    for position, result in gallery.stream(items):
        if isinstance(result, PictureError):
            found[position] = result
        else:
            waiting.append((position, result))
        if len(waiting) == BATCH:
            settle()
    settle()
    return [found[position] for position in range(len(items))]


def maps_of(gallery: Gallery, items: Sequence[Item], *, view: int = PLAIN) -> NDArray[np.float16]:
    """``(n, C, H, W)`` maps of pictures that are known to be readable.

    Raises:
        PictureError: one is not any more.
    """
    maps = []
    for result in gallery.maps(items, view=view):
        if isinstance(result, PictureError):
            raise result
        maps.append(result)
    return np.stack(maps)
