"""/console/projects/<key>/trust: how far to trust what is shown, and how far to go."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from http import HTTPStatus
from typing import Any, Final

import numpy as np
from flask import redirect, request, url_for
from flask.typing import ResponseReturnValue

from backend.console.blueprint import bp
from backend.console.layout import page, tell, the_project
from backend.console.picking import chosen
from backend.services import services
from hierarchy.choice import DepthRule
from hierarchy.decisions import Decisions, leading_levels
from hierarchy.feedback import Preview, preview
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
from worker.errors import MisconfiguredError
from worker.queue import RedisError
from worker.unlike import unlike

log = logging.getLogger(__name__)

#: Pictures of about one probability, from which on their share of right ones is drawn.
LEAST_IN_BIN: Final = 5


@dataclass(frozen=True)
class Asked:
    """What a project asks of its answers, with the server's default filled in.

    Attributes:
        target: accuracy of shown labels.
        minimum: shallowest depth.
        maximum: deepest depth, None for no limit.
        strict: whether each level keeps the target for itself.
    """

    target: float
    minimum: int
    maximum: int | None
    strict: bool

    @classmethod
    def of(cls, project: Project) -> "Asked":
        """As the project asks now."""
        target = project.target_accuracy or services().parts.settings.target_accuracy
        return cls(target, project.minimum_depth, project.maximum_depth, project.strict)

    def on(self, project: Project) -> Project:
        """The project asking for this."""
        return replace(
            project,
            target_accuracy=self.target,
            minimum_depth=self.minimum,
            maximum_depth=self.maximum,
            strict=self.strict,
        )


@bp.get("/projects/<key>/trust")
def trust(key: str) -> ResponseReturnValue:
    """Curves, thresholds, and a preview of other settings where the query names some."""
    project = the_project(key)
    known, names, live = chosen(project)
    now = Asked.of(project)
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
    rule = in_force["rule"]
    return page(
        "trust",
        **words,
        depth=known.tree.depth,
        in_force=in_force,
        levels=level_rows(known.record, rule, known.decisions),
        uncounted=uncounted(known.decisions),
        told=_told(project, known),
        unlike=_unlike(project, known),
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
    asked, problem = _asked(Asked.of(project), request.form)
    if problem:
        tell(f"Nothing was changed: {problem}.", "wrong")
        return redirect(url_for("console.trust", key=key), HTTPStatus.SEE_OTHER)
    try:
        choosing.set_depth(services().parts, asked.on(project))
    except RedisError:
        tell("Kept. Redis is away, so open tasks change with the next version.", "plain")
    else:
        tell("Kept. Pre-labels follow it from now on; open tasks change in the background.")
    return redirect(url_for("console.trust", key=key), HTTPStatus.SEE_OTHER)


def _asked(now: Asked, given: Any) -> tuple[Asked, str]:  # noqa: ANN401 - a query or a form
    """What a form asks for, and what is wrong with it, in words."""
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
    return Asked(target, minimum, maximum, given.get("strict") == "on"), ""


def _previewed(known: Known, asked: Asked) -> Preview:
    assert known.record is not None  # noqa: S101 - checked by who calls
    return preview(
        known.record.seen,
        target=asked.target,
        minimum=asked.minimum,
        maximum=asked.maximum,
        strict=asked.strict,
    )


def _in_force(project: Project, known: Known) -> dict[str, Any]:
    """The rule that answers follow now, and in words where it comes from."""
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
    """Which levels and labels the figures leave out since they cannot be wrong, "" if none."""
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


def _kept(project: Project, known: Known) -> dict[str, Any]:
    try:
        return services().parts.store.read_following(project.key, known.version) or {}
    except ModelStoreError as error:
        log.warning("not told how labels did project=%s: %s", project.key, error)
        return {}


def _told(project: Project, known: Known) -> dict[str, Any] | None:
    """What annotators' answers say of what was shown, None if nothing."""
    told: dict[str, Any] | None = _kept(project, known).get("told")
    return told


def _unlike(project: Project, known: Known) -> dict[str, Any] | None:
    """How many open images look unlike the labelled ones; None where nothing is known of that."""
    try:
        return unlike(services().parts, project.key, known.version)
    except (RedisError, MisconfiguredError):
        return None


def _running(project: Project, known: Known) -> dict[str, Any] | None:
    told = running(_kept(project, known).get("rows") or [])
    return running_data(told) if len(told.answers) > 1 else None


# Charts, as the macro of that name wants them


def coverage_data(curves: Sequence[LevelCurve], *, steps: int = 50) -> dict[str, Any] | None:
    """Accuracy of each level at even steps of coverage; None without any."""
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
    names = {"x_name": "pictures answered", "y_name": "of those right"}
    return {"x": grid.round(4).tolist(), "series": series, **names, **shares}


def calibration_data(
    levels: Sequence[Sequence[Bin]], names: Sequence[str]
) -> dict[str, Any] | None:
    """What came true against what was stated, level by level; None where too little is known."""
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
    """The running accuracy, by the number of answers."""
    series = [
        {"name": f"newest {WINDOW}", "values": list(told.accuracy)},
        {"name": "all so far", "values": list(told.overall), "dashed": True},
    ]
    names = {"x_name": "answers that could be checked", "y_name": "right"}
    return {"x": list(told.answers), "series": series, **names, "y_share": True}
