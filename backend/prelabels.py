"""Tasks in, predictions as Label Studio takes them out: for both servers, ours and its own."""

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from inference.answers import answers
from inference.errors import EarlierReleaseError
from inference.feature_extractor import FeatureExtractor, Item
from inference.predictor import Answer, Predictor
from inference.store import UNTRAINED, Project
from studio.errors import ImageError
from studio.label_config import LabelConfig
from studio.predictions import prediction
from worker.asking import Places, entry_of
from worker.parts import Parts

log = logging.getLogger(__name__)

Find = Callable[[FeatureExtractor, Predictor, Sequence[Item]], Sequence[Answer | ImageError]]


def predictions(  # noqa: PLR0913 - what a request brings, and who answers it
    parts: Parts,
    project: Project,
    config: LabelConfig,
    places: Places,
    tasks: Sequence[tuple[int, Mapping[str, Any]]],
    find: Find = answers,
) -> list[tuple[dict[str, Any], str]]:
    """Answer each task at the deepest node that a version can stand behind.

    Args:
        parts: the dependencies.
        project: whose tasks they are.
        config: its label config.
        places: the order of the version that answers, which names it; "untrained" for none.
        tasks: id and data of each.
        find: answers images.

    Returns:
        One prediction per task, in order, and what became of the task: ``answered``, ``nothing
        certain``, ``unreadable``, or "" where no version can answer.

    Raises:
        ModelError: the version cannot be read.
    """
    predictor = None
    try:
        if places.version != UNTRAINED:
            predictor = parts.predictors.get(project, places.version, config.tree)
    except EarlierReleaseError as error:  # a training is asked for; what is stored stays
        log.warning("no answers project=%s: %s", project.key, error)
    if predictor is None:
        return [(_empty(config, places, task), "") for task, _ in tasks]
    refs = [config.image_address(data) for _, data in tasks]
    items = [(ref, task) for ref, (task, _) in zip(refs, tasks, strict=True) if ref is not None]
    found = iter(find(parts.extractors.of(predictor), predictor, items))
    missing = ImageError(f"the task's data has no image address in {config.image_key!r}")
    rows = []
    for ref, (task, _) in zip(refs, tasks, strict=True):
        answer = missing if ref is None else next(found)
        if isinstance(answer, Answer):
            entry = entry_of(answer, config, places.version, places.place(task, answer.margin))
            rows.append((entry, "answered" if answer.path else "nothing certain"))
        else:
            log.warning("no answer task=%d: %s", task, answer.reason)
            rows.append((_empty(config, places, task), "unreadable"))
    return rows


def _empty(config: LabelConfig, places: Places, task: int) -> dict[str, Any]:
    return prediction(config, None, score=places.place(task), version=places.version)
