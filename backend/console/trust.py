"""/console/projects/<key>/trust: how far to trust what is shown, and how far to go."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Final

import numpy as np
from flask import request
from flask.typing import ResponseReturnValue

from backend.console.blueprint import bp
from backend.console.layout import back_to, chosen, page, tell, the_project
from backend.services import from_redis, services
from backend.versions import shown_since
from hierarchy.calibration import Preview, preview
from hierarchy.decisions import Decisions, leading_levels
from hierarchy.depth_selection import DepthRule
from inference.errors import ModelStoreError
from inference.insight import (
    WINDOW,
    Bin,
    LevelCurve,
    Running,
    calibration_bins,
    coverage_curves,
    level_name,
    level_rows,
    running,
)
from inference.predictor import followed_rule
from inference.records import Known
from inference.store import Project
from worker import choosing
from worker.choosing import ChoiceError
from worker.queue import RedisError
from worker.unlike import unlike

#: Images of about one probability, from which on their share of right ones is drawn.
LEAST_IN_BIN: Final = 5


@bp.get("/projects/<key>/trust")
def trust(key: str) -> ResponseReturnValue:
    """Show curves, thresholds, and a preview of other settings where the query names some."""
    project = the_project(key)
    known, names, live = chosen(project)
    now = _now(project)
    asked, problem = _asked(now, request.args)
    words: dict[str, Any] = {
        "title": "Trust",
        "project": project,
        "known": known,
        "names": names,
        "live": live,
        "now": now,
        "asked": asked,
        "problem": problem,
        "previewed": "target" in request.args and not problem,
    }
    if known is None or known.record is None:
        return page("trust", **words, depth=1 if known is None else known.tree.depth)
    seen, in_force = known.record.seen, _in_force(project, known)
    parts = services().parts
    rule = in_force["rule"]
    return page(
        "trust",
        **words,
        depth=known.tree.depth,
        in_force=in_force,
        levels=level_rows(known.record, rule, known.decisions),
        uncounted=uncounted(known.decisions),
        told=shown_since(parts.store, key, known.version),
        unlike=from_redis(parts, lambda _: unlike(parts, key, known.version), None),
        before=_previewed(known, now),
        after=_previewed(known, asked) if asked != now and not problem else None,
        coverage_chart=coverage_data(coverage_curves(seen, rule)),
        calibration_chart=calibration_data(
            calibration_bins(seen, rule),
            [level_name(seen, step) for step in range(seen.right.shape[1])],
        ),
        running_chart=_running(project, known),
    )


@bp.post("/projects/<key>/trust")
def set_trust(key: str) -> ResponseReturnValue:
    """Keep other settings; open tasks get answers by the new rule."""
    project = the_project(key)
    asked, problem = _asked(_now(project), request.form)
    if problem:
        tell(f"Nothing was changed: {problem}.", "wrong")
        return back_to("trust", key=key)
    try:
        choosing.set_depth(services().parts, asked)
    except RedisError:
        tell("Kept. Redis is away, so open tasks change with the next version.", "plain")
    else:
        tell("Kept. Pre-labels follow it from now on; open tasks change in the background.")
    return back_to("trust", key=key)


def _now(project: Project) -> Project:
    """Return the project with the server's target accuracy where it has none of its own."""
    target = project.target_accuracy or services().parts.settings.target_accuracy
    return replace(project, target_accuracy=target)


def _asked(now: Project, given: Mapping[str, str]) -> tuple[Project, str]:
    """Return the project with the settings of a query or form, and what is wrong with them."""
    if "target" not in given:
        return now, ""
    try:
        target = round(float(given.get("target", "").replace(",", ".")) / 100, 6)
        minimum = int(given.get("minimum", "") or 1)
        maximum = int(given.get("maximum", "") or 0) or None
        choosing.check_depth(target, minimum, maximum)
    except (ValueError, OverflowError):
        return now, "expected a percentage for the target and whole numbers for depths"
    except ChoiceError as error:
        return now, str(error)
    asked = replace(now, target_accuracy=target, minimum_depth=minimum, maximum_depth=maximum)
    return replace(asked, strict=given.get("strict") == "on"), ""


def _previewed(known: Known, asked: Project) -> Preview:
    assert known.record is not None  # noqa: S101 - checked by who calls
    assert asked.target_accuracy is not None  # noqa: S101 - see `_now`
    return preview(
        known.record.seen,
        target=asked.target_accuracy,
        minimum=asked.minimum_depth,
        maximum=asked.maximum_depth,
        strict=asked.strict,
    )


def _in_force(project: Project, known: Known) -> dict[str, Any]:
    """Return the rule that answers follow now, and in words where it comes from."""
    calibration = known.calibration(project)
    own = DepthRule.from_json(calibration["rule"])
    rule = followed_rule(services().parts.store, project.key, known.version, own)
    grounds = {
        "certified": "certified on held-out images",
        "estimated": "an estimate from held-out images",
        "none": "too little evidence: nothing is shown",
    }
    words = grounds[calibration["standing"]]
    if calibration != known.manifest.calibration:
        words = f"fitted to these settings: {words}"
    return {"rule": rule, "followed": rule != own, "words": words, "grounds": calibration}


def uncounted(decisions: Decisions) -> str:
    """Say which levels and labels are not counted since they cannot be wrong, "" if none."""
    tree, first = decisions.tree, leading_levels(decisions.tree)
    if first >= tree.depth:
        return "This tree leaves no choice: every image has the same labels."
    alone = decisions.stands != np.arange(len(tree))
    single = sum(level > first for level in np.array(tree.levels)[alone].tolist())
    words = []
    if first:
        levels = "Level 1 names" if first == 1 else f"Levels 1 to {first} name"
        words.append(f"{levels} every image alike and {'is' if first == 1 else 'are'} not counted.")
    if single:
        words.append(
            "A label without a sibling cannot be wrong once the label above it is right: it is "
            "shown with that one where the version is sure of it, and not counted."
        )
    return " ".join(words)


def _running(project: Project, known: Known) -> dict[str, Any] | None:
    try:
        known_answers = services().parts.store.read_following(project.key, known.version) or {}
    except ModelStoreError:  # `shown_since` logs it
        return None
    found = running(known_answers.get("rows") or [])
    return running_data(found) if len(found.answers) > 1 else None


# Charts, as the macro of that name wants them


def coverage_data(curves: Sequence[LevelCurve], *, steps: int = 50) -> dict[str, Any] | None:
    """Plot the accuracy of each level at even steps of coverage; None without any."""
    grid = np.linspace(1 / steps, 1, steps)
    series = []
    for curve in curves:
        if curve.coverage:
            last = len(curve.coverage) - 1
            at = np.minimum(np.searchsorted(np.array(curve.coverage), grid - 1e-9), last)
            values = np.array(curve.accuracy)[at].tolist()
            series.append({"name": f"level {curve.level}", "values": values})
    if not series:
        return None
    shares = {"x_share": True, "y_share": True, "x_range": [0, 1]}
    names = {"x_name": "images answered", "y_name": "of those right"}
    return {"x": grid.round(4).tolist(), "series": series, **names, **shares}


def calibration_data(
    levels: Sequence[Sequence[Bin]], names: Sequence[str]
) -> dict[str, Any] | None:
    """Plot what came true against what was stated, by level; None where too little is known."""
    levels = [[one for one in level if one.count >= LEAST_IN_BIN] for level in levels]
    stated = sorted({round(one.stated, 3) for level in levels for one in level})
    if not stated:
        return None
    stated = sorted({0.0, *stated, 1.0})
    series = []
    for name, level in zip(names, levels, strict=True):
        there = {round(one.stated, 3): round(one.came_true, 4) for one in level}
        values = [there.get(x) for x in stated]
        series.append({"name": f"level {name}", "values": values, "points": True})
    series.append({"name": "as promised", "values": stated, "soft": True})
    shares = {"x_share": True, "y_share": True, "x_range": [0, 1], "y_range": [0, 1]}
    axes = {"x_name": "stated probability", "y_name": "came true"}
    return {"x": stated, "series": series, **axes, **shares}


def running_data(told: Running) -> dict[str, Any]:
    """Plot the running accuracy, by the number of answers."""
    series = [
        {"name": f"newest {WINDOW}", "values": list(told.accuracy)},
        {"name": "all so far", "values": list(told.overall), "dashed": True},
    ]
    names = {"x_name": "answers that could be checked", "y_name": "right"}
    return {"x": list(told.answers), "series": series, **names, "y_share": True}
