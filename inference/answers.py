"""Images in, pre-labels out: an extractor's features through a predictor."""

from collections.abc import Sequence

import numpy as np

from inference.feature_extractor import FeatureExtractor, Item
from inference.predictor import Answer, Predictor
from studio.errors import ImageError

#: Images of a call that is computed together with other calls; one with more is a batch by itself.
FEW = 8


def answers(
    extractor: FeatureExtractor, predictor: Predictor, items: Sequence[Item]
) -> list[Answer | ImageError]:
    """Answer each image, in order; an image that cannot be had is its own error.

    Each call fetches and decodes its own images, so that nobody waits for another's storage; the
    networks compute those of few images together with other calls that come at the same time.
    """
    if len(items) <= FEW:
        loaded = extractor.load(items)
        ready = [one for one in loaded if not isinstance(one, ImageError)]
        rows = iter(extractor.infer(ready))
        found = [one if isinstance(one, ImageError) else next(rows) for one in loaded]
    else:
        found = extractor.vectors(items)
    vectors = [one for one in found if not isinstance(one, ImageError)]
    answered = iter(predictor.answer(np.stack(vectors)) if vectors else ())
    return [one if isinstance(one, ImageError) else next(answered) for one in found]
