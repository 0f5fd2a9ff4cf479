"""A choice in the label tree -> the prediction JSON that Label Studio stores and shows."""

from __future__ import annotations

import math
import re
from typing import Final

from studio.labelconfig import LabelConfig

#: Version names are ours: letters, digits, dot, underscore and hyphen.
VERSION: Final = re.compile(r"[A-Za-z0-9._-]+")


def prediction(
    config: LabelConfig,
    path: tuple[str, ...] | None,
    *,
    score: float,
    version: str,
    confidence: float | None = None,
) -> dict[str, object]:
    """One entry of the ``results`` that `/predict` answers with.

    Args:
        config: the project's labelling setup.
        path: the node answered, of any depth; None or () answers nothing, which shows an empty
            control and still keeps the score by which tasks are ordered.
        score: the number by which Label Studio orders tasks, lowest first; values outside [0, 1]
            are clipped.
        version: name of the model version; must be the one that `/setup` answers with.
        confidence: how sure the version is of the node, clipped likewise; it stands in the score of
            the result's items, which orders nothing. None for the same number as ``score``.

    Raises:
        UnknownLabelError: if the path is not in the tree.
        ValueError: if the score is not a finite number, or the version is no version name. One
            such entry would cost Label Studio the whole batch, or store what nobody can find.

    Example:
        >>> from studio.labelconfig import parse_label_config
        >>> config = parse_label_config(
        ...     '<View><Image name="image" value="$image"/>'
        ...     '<Choices name="kind" toName="image"><Choice value="Milk"/></Choices></View>'
        ... )
        >>> prediction(config, None, score=0.25, version="v1")
        {'result': [], 'score': 0.25, 'model_version': 'v1'}
        >>> prediction(config, ("Milk",), score=0.25, version="v1")["result"][0]["value"]
        {'choices': ['Milk']}
    """
    place = _checked_score(score)
    sure = place if confidence is None else _checked_score(confidence)
    if VERSION.fullmatch(version) is None:
        raise ValueError(f"a version is letters, digits, '.', '_' and '-', got {version!r:.80}")
    values = _values(config, path) if path else []
    result = [
        {
            "from_name": control,
            "to_name": config.image_name,
            "type": "taxonomy" if config.kind == "taxonomy" else "choices",
            "value": value,
            "score": sure,
        }
        for control, value in values
    ]
    return {"result": result, "score": place, "model_version": version}


def _checked_score(score: float) -> float:
    number = float(score)
    if not math.isfinite(number):
        raise ValueError(f"a score must be a finite number, got {score!r}")
    return min(max(number, 0.0), 1.0)


def _values(config: LabelConfig, path: tuple[str, ...]) -> list[tuple[str, dict[str, object]]]:
    """(control, value) of each result that shows a node: one for a Taxonomy, else one a level."""
    node = config.tree.index(path)
    if config.kind == "taxonomy":
        return [(config.controls[node], {"taxonomy": [list(path)]})]
    names, controls = config.tree.names, config.controls
    return [(controls[up], {"choices": [names[up]]}) for up in config.tree.ancestors(node)]
