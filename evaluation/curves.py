"""Learning curves of labelling campaigns: kept as a JSON file, shown as tables, drawn.

A curve is one strategy with one seed; tables show means over seeds at each number of questions.
"""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import fmean
from typing import Any, Literal, Self, TypeAlias, get_args

import numpy as np
from numpy.typing import NDArray

from evaluation.errors import ResultsError

FORM = 1
"""Of the JSON file; a reader of another form says so."""

Coarse: TypeAlias = Literal["use", "drop"]

#: The strategy that the others are measured against.
REFERENCE = "random"


@dataclass(frozen=True)
class Campaign:
    """What tells campaigns apart.

    Attributes:
        strategy: its name.
        seed: of the choice, the annotators and the training.
        coarse: whether answers above the leaf are learnt from.
        pseudo: the probability from which the head labels open pictures itself; None: it does not.
    """

    strategy: str
    seed: int
    coarse: Coarse = "use"
    pseudo: float | None = None

    @property
    def name(self) -> str:
        """What the campaign is called in tables, whatever its seed."""
        coarse = "" if self.coarse == "use" else ", coarse dropped"
        pseudo = "" if self.pseudo is None else f", pseudo {self.pseudo:g}"
        return f"{self.strategy}{coarse}{pseudo}"


@dataclass(frozen=True)
class Point:
    """A training within a campaign.

    Attributes:
        questions: asked so far.
        figures: by name; rates in [0, 1], the others counts.
    """

    questions: int
    figures: Mapping[str, float]


@dataclass(frozen=True)
class Curve:
    """A campaign and what came of it, by rising number of questions."""

    campaign: Campaign
    points: tuple[Point, ...]


@dataclass(frozen=True)
class Curves:
    """Campaigns that may be compared.

    Attributes:
        curves: each campaign at most once.
        settings: what all share; plain data.
        machine: where they ran, plain text by name.
    """

    curves: tuple[Curve, ...]
    settings: Mapping[str, Any] = field(default_factory=dict)
    machine: Mapping[str, str] = field(default_factory=dict)

    @property
    def names(self) -> tuple[str, ...]:
        """Of campaigns, in order of appearance."""
        return tuple(dict.fromkeys(curve.campaign.name for curve in self.curves))

    def of(self, name: str) -> tuple[Curve, ...]:
        """All seeds of one, by seed."""
        found = (curve for curve in self.curves if curve.campaign.name == name)
        return tuple(sorted(found, key=lambda curve: curve.campaign.seed))

    def having(self, curve: Curve) -> Self:
        """These and one more; it takes the place of an earlier one of the same campaign."""
        kept = (one for one in self.curves if one.campaign != curve.campaign)
        return replace(self, curves=(*kept, curve))

    def mean(self, name: str, figure: str) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """Questions, and the mean over seeds of a figure, where every seed has it."""
        by_questions: dict[int, list[float]] = {}
        runs = self.of(name)
        for run in runs:
            for point in run.points:
                if figure in point.figures:
                    by_questions.setdefault(point.questions, []).append(point.figures[figure])
        whole = {q: v for q, v in sorted(by_questions.items()) if len(v) == len(runs)}
        means = [fmean(values) for values in whole.values()]
        return np.array(list(whole), dtype=np.int64), np.array(means, dtype=np.float64)

    def to_json(self) -> dict[str, Any]:
        """Plain data; :meth:`from_json` reads it."""
        rows = [
            {
                "strategy": curve.campaign.strategy,
                "seed": curve.campaign.seed,
                "coarse": curve.campaign.coarse,
                "pseudo": curve.campaign.pseudo,
                "points": [
                    {"questions": point.questions, "figures": dict(point.figures)}
                    for point in curve.points
                ],
            }
            for curve in self.curves
        ]
        settings, machine = dict(self.settings), dict(self.machine)
        return {"form": FORM, "settings": settings, "machine": machine, "campaigns": rows}

    @classmethod
    def from_json(cls, obj: object) -> Self:
        """Read what :meth:`to_json` wrote.

        Raises:
            ResultsError: it is not of that form; the message names the field.
        """
        if not isinstance(obj, Mapping) or obj.get("form") != FORM:
            raise ResultsError(f"curves: expected an object of form {FORM}")
        rows = obj.get("campaigns")
        if not isinstance(rows, list):
            raise ResultsError(f"curves.campaigns: expected a list, got {type(rows).__name__}")
        curves = tuple(_curve(row, f"curves.campaigns[{at}]") for at, row in enumerate(rows))
        return cls(curves, obj.get("settings") or {}, obj.get("machine") or {})


def save(curves: Curves, file: Path) -> None:
    """Write as JSON, whole or not at all."""
    part = file.with_name(f"{file.name}.part")
    part.write_text(json.dumps(curves.to_json(), indent=1, allow_nan=False) + "\n", "utf-8")
    part.replace(file)


def read(file: Path) -> Curves:
    """Read what :func:`save` wrote.

    Raises:
        ResultsError: there is no such file, or it holds no curves.
    """
    try:
        return Curves.from_json(json.loads(file.read_text(encoding="utf-8")))
    except (OSError, ValueError, ResultsError) as error:
        raise ResultsError(f"{file}: {error}") from error


def _curve(row: object, where: str) -> Curve:
    try:
        assert isinstance(row, Mapping)  # noqa: S101 - caught below with the rest
        points = tuple(
            Point(int(p["questions"]), {str(k): float(v) for k, v in p["figures"].items()})
            for p in row["points"]
        )
        pseudo = None if row["pseudo"] is None else float(row["pseudo"])
        campaign = Campaign(str(row["strategy"]), int(row["seed"]), row["coarse"], pseudo)
    except (AssertionError, AttributeError, KeyError, TypeError, ValueError) as error:
        raise ResultsError(
            f"{where}: expected strategy, seed, coarse, pseudo and points, each with questions and "
            f"figures: {type(error).__name__} {error}"
        ) from error
    if campaign.coarse not in get_args(Coarse):
        raise ResultsError(f"{where}.coarse: expected use or drop, got {campaign.coarse!r}")
    if not all(math.isfinite(value) for point in points for value in point.figures.values()):
        raise ResultsError(f"{where}: expected finite numbers only")
    return Curve(campaign, points)


def needed(questions: Sequence[float], values: Sequence[float], level: float) -> float | None:
    """How many questions it takes a curve to reach a level, in straight lines between points.

    Example:
        >>> needed([100, 200, 300], [0.5, 0.7, 0.8], 0.75)
        250.0
        >>> needed([100, 200], [0.5, 0.6], 0.7) is None
        True
    """
    before: tuple[float, float] | None = None
    for at, value in zip(questions, values, strict=True):
        if value >= level:
            if before is None:
                return float(at)
            share = (level - before[1]) / (value - before[1])
            return round(float(before[0] + share * (at - before[0])), 6)
        before = (at, value)
    return None


@dataclass(frozen=True)
class Summary:
    """A strategy in a few numbers.

    Attributes:
        name: of the campaigns.
        seeds: how many.
        questions: of each point.
        mean: the figure there, mean over seeds.
        curve: mean over the points.
        gain: of that over random's with the same seeds; None without such.
        lowest: the least lead over random's mean curve at any point; None without such.
        to_reference: questions needed for what random ends with, on the mean curves.
        by_seed: the same for each seed against random with that seed, None where not reached.
        classes: that the first pictures cover, mean over seeds.
    """

    name: str
    seeds: int
    questions: tuple[int, ...]
    mean: tuple[float, ...]
    curve: float
    gain: float | None
    lowest: float | None
    to_reference: float | None
    by_seed: tuple[float | None, ...]
    classes: float


def summarise(curves: Curves, figure: str) -> list[Summary]:
    """All strategies by one figure; those that do not have it are left out."""
    return [
        _summary(curves, name, figure) for name in curves.names if len(curves.mean(name, figure)[0])
    ]


def _summary(curves: Curves, name: str, figure: str) -> Summary:
    runs = curves.of(name)
    questions, mean = curves.mean(name, figure)
    seeds = {run.campaign.seed for run in runs}
    rivals = [run for run in curves.of(REFERENCE) if run.campaign.seed in seeds]
    gain = lowest = to_reference = None
    by_seed: tuple[float | None, ...] = ()
    if len(rivals) == len(runs):
        same = replace(curves, curves=tuple(rivals))
        at, other = same.mean(REFERENCE, figure)
        if np.array_equal(at, questions):
            gain, lowest = float(mean.mean() - other.mean()), float((mean - other).min())
            to_reference = needed(questions.tolist(), mean.tolist(), float(other[-1]))
            by_seed = tuple(
                needed(*_line(run, figure), _line(rival, figure)[1][-1])
                for run, rival in zip(runs, rivals, strict=True)
            )
    return Summary(
        name,
        len(runs),
        tuple(questions.tolist()),
        tuple(mean.tolist()),
        float(mean.mean()),
        gain,
        lowest,
        to_reference,
        by_seed,
        fmean(run.points[0].figures["classes"] for run in runs),
    )


def _line(run: Curve, figure: str) -> tuple[list[float], list[float]]:
    points = [point for point in run.points if figure in point.figures]
    return [point.questions for point in points], [point.figures[figure] for point in points]


def table(curves: Curves, figure: str) -> str:
    """Markdown: a row a strategy, a column a number of questions, then the summary; rates in %."""
    rows = summarise(curves, figure)
    questions = sorted({at for row in rows for at in row.questions})
    head = [
        figure,
        "seeds",
        *map(str, questions),
        "curve mean",
        f"gain over {REFERENCE}",
        "least lead",
        f"questions to {REFERENCE}'s end",
        "classes at the start",
    ]
    lines = [_markdown(head), _markdown(["---", *["---:"] * (len(head) - 1)])]
    for row in rows:
        at = dict(zip(row.questions, row.mean, strict=True))
        cells = [f"{100 * at[q]:.1f}" if q in at else "" for q in questions]
        lines.append(
            _markdown(
                [
                    row.name,
                    str(row.seeds),
                    *cells,
                    f"{100 * row.curve:.1f}",
                    _signed(row.gain),
                    _signed(row.lowest),
                    _reached(row),
                    f"{row.classes:.1f}",
                ]
            )
        )
    return "\n".join(lines) + "\n"


def _signed(share: float | None) -> str:
    return "" if share is None else f"{100 * share:+.1f}"


def _reached(row: Summary) -> str:
    if row.gain is None:
        return ""
    each = ", ".join("not reached" if one is None else f"{one:.0f}" for one in row.by_seed)
    mean = "not reached" if row.to_reference is None else f"{row.to_reference:.0f}"
    return f"{mean} ({each})" if row.seeds > 1 else mean


def _markdown(cells: Iterable[str]) -> str:
    return "| " + " | ".join(cells) + " |"
