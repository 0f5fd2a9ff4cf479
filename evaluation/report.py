"""Results of experiments: what was measured, kept as a JSON file and shown as tables.

A row is one run, one method at one share of relabelled pictures with one seed. Tables show the
mean over seeds and its spread, with the best of each column marked, and all that are as good.
"""

import json
import logging
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean, stdev
from typing import Any, Literal, Self

from evaluation.errors import ResultsError

log = logging.getLogger(__name__)

FORM = 1
"""Of the JSON file; a reader of another form says so."""

Key = tuple[str, float, int]


@dataclass(frozen=True)
class Row:
    """One run.

    Attributes:
        method: the rival's name.
        share: of each leaf class's training pictures, the share that got its parent's label.
        seed: of relabelling and training.
        figures: by name; rates in [0, 1], times in seconds.

    Raises:
        ResultsError: the share is not 0 to 1, or a figure is no finite number.
    """

    method: str
    share: float
    seed: int
    figures: Mapping[str, float]

    def __post_init__(self) -> None:
        if not 0 <= self.share <= 1:
            raise ResultsError(f"{self.method}: the share must be 0 to 1, got {self.share}")
        for name, value in self.figures.items():
            if not math.isfinite(value):
                raise ResultsError(
                    f"{self.method}, seed {self.seed}, {name}: expected a finite number, got "
                    f"{value}; leave out what could not be measured"
                )

    @property
    def key(self) -> Key:
        """What tells runs apart."""
        return self.method, self.share, self.seed


@dataclass(frozen=True)
class Results:
    """Runs that may be compared: same data, same settings.

    Attributes:
        rows: each method, share and seed at most once.
        settings: what all runs share (data set, backbone, sizes): plain data.
        machine: where they ran (processor, cores, versions): plain text by name.

    Raises:
        ResultsError: a run is given twice.
    """

    rows: tuple[Row, ...]
    settings: Mapping[str, Any] = field(default_factory=dict)
    machine: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        keys = [row.key for row in self.rows]
        twice = {key for key in keys if keys.count(key) > 1}
        if twice:
            raise ResultsError(f"each method, share and seed once, got twice: {sorted(twice)}")

    @property
    def methods(self) -> tuple[str, ...]:
        """Names in order of appearance."""
        return tuple(dict.fromkeys(row.method for row in self.rows))

    @property
    def shares(self) -> tuple[float, ...]:
        """Shares relabelled, ascending."""
        return tuple(sorted({row.share for row in self.rows}))

    def values(self, method: str, share: float, figure: str) -> tuple[float, ...]:
        """A figure of all seeds that have it, by seed."""
        rows = sorted(
            (row for row in self.rows if (row.method, row.share) == (method, share)), key=_seed
        )
        return tuple(row.figures[figure] for row in rows if figure in row.figures)

    def to_json(self) -> dict[str, Any]:
        """Write as plain data; :meth:`from_json` reads it."""
        rows = [
            {"method": r.method, "share": r.share, "seed": r.seed, "figures": dict(r.figures)}
            for r in self.rows
        ]
        settings, machine = dict(self.settings), dict(self.machine)
        return {"form": FORM, "settings": settings, "machine": machine, "rows": rows}

    @classmethod
    def from_json(cls, obj: object) -> Self:
        """Read what :meth:`to_json` wrote.

        Raises:
            ResultsError: it is not of that form; the message names the field.
        """
        found = _mapping(obj, "results")
        if found.get("form") != FORM:
            raise ResultsError(f"results.form: expected {FORM}, got {found.get('form')!r}")
        rows = found.get("rows")
        if not isinstance(rows, list):
            raise ResultsError(f"results.rows: expected a list, got {type(rows).__name__}")
        return cls(
            tuple(_row(row, f"results.rows[{place}]") for place, row in enumerate(rows)),
            _mapping(found.get("settings"), "results.settings"),
            _mapping(found.get("machine"), "results.machine"),
        )


def file_name(method: str, share: float, seed: int) -> str:
    """What a run's probabilities are called."""
    return f"{re.sub(r'[^a-z0-9]+', '-', method)}-{100 * share:g}-{seed}.safetensors"


def save(results: Results, file: Path) -> None:
    """Write results as JSON, whole or not at all.

    Raises:
        ResultsError: a setting is no plain data.
        OSError: the file cannot be written.
    """
    try:
        text = json.dumps(results.to_json(), indent=1, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise ResultsError(f"settings and machine must be plain data: {error}") from error
    part = file.with_name(f"{file.name}.part")
    part.write_text(text + "\n", encoding="utf-8")
    part.replace(file)


def read(file: Path) -> Results:
    """Read what :func:`save` wrote.

    Raises:
        ResultsError: there is no such file, or it holds no results.
    """
    try:
        return Results.from_json(json.loads(file.read_text(encoding="utf-8")))
    except (OSError, ValueError, ResultsError) as error:
        raise ResultsError(f"{file}: {error}") from error


def merge(several: Sequence[Results]) -> Results:
    """Join results of the same settings; a run that is given again replaces the earlier one.

    Where they ran on different machines, the machine's entries list each.

    Raises:
        ResultsError: there are none, or their settings differ: they cannot be compared.
    """
    if not several:
        raise ResultsError("expected results to merge, got none")
    first = several[0].settings
    for other in several[1:]:
        names = first.keys() | other.settings.keys()
        differ = sorted(name for name in names if first.get(name) != other.settings.get(name))
        if differ:
            shown = [f"{n} ({first.get(n)!r}, {other.settings.get(n)!r})" for n in differ]
            raise ResultsError(f"results of different settings do not compare: {', '.join(shown)}")
    rows: dict[Key, Row] = {}
    for row in (row for results in several for row in results.rows):
        if row.key in rows:
            log.info("replaced method=%s share=%g seed=%d", *row.key)
        rows[row.key] = row
    entries = dict.fromkeys(name for results in several for name in results.machine)
    machine = {
        name: _joined(r.machine[name] for r in several if name in r.machine) for name in entries
    }
    return Results(tuple(rows.values()), first, machine)


@dataclass(frozen=True)
class Figure:
    """How a figure is shown.

    Attributes:
        name: its key in a row's figures.
        title: its column's; the name if empty.
        better: which way is better; None marks no best.
        percent: whether it is a rate, shown in percent.
        digits: after the point.
    """

    name: str
    title: str = ""
    better: Literal["higher", "lower"] | None = "higher"
    percent: bool = True
    digits: int = 1

    @property
    def heading(self) -> str:
        """The column's title, with its unit."""
        return f"{self.title or self.name}{' %' if self.percent else ''}"

    def show(self, values: Sequence[float]) -> str:
        """Mean ± standard deviation over seeds; the mean alone of one seed; a dash of none."""
        if not values:
            return "–"  # noqa: RUF001 - a dash for people
        scale = 100 if self.percent else 1
        mean = f"{scale * fmean(values):.{self.digits}f}"
        return f"{mean} ± {scale * stdev(values):.{self.digits}f}" if len(values) > 1 else mean


def as_good_as_best(columns: Mapping[str, Sequence[float]], better: str) -> set[str]:
    """Names whose mean is the best, or within one standard error of the best's mean.

    The standard error is the best one's standard deviation over the square root of its seeds; of
    one seed it is 0, and only equals are as good.

    Args:
        columns: of each name its values over seeds; names without values are passed over.
        better: ``higher`` or ``lower``.

    Example:
        >>> sorted(as_good_as_best({"a": [0.8, 0.82], "b": [0.8], "c": [0.7]}, "higher"))
        ['a', 'b']
    """
    sign = 1 if better == "higher" else -1
    means = {name: sign * fmean(values) for name, values in columns.items() if values}
    if not means:
        return set()
    best = max(means, key=means.__getitem__)
    values = columns[best]
    error = stdev(values) / math.sqrt(len(values)) if len(values) > 1 else 0.0
    # The hair covers the rounding of means that are equal on paper.
    return {name for name, mean in means.items() if mean >= means[best] - error - 1e-12}


def table(results: Results, figures: Sequence[Figure | str]) -> str:
    """Markdown: a row a method and share, a column a figure, best of each share in bold.

    Args:
        results: the runs.
        figures: what to show; a bare name is a rate of which higher is better.
    """
    shown = [_figure(one) for one in figures]
    head = ["relabelled", "method", "seeds", *(one.heading for one in shown)]
    lines = [_markdown(head), _markdown(["---:", "---", "---:", *("---:" for _ in shown)])]
    cells = _cells(results, shown, "**{}**")
    return "\n".join([*lines, *map(_markdown, cells)]) + "\n"


def table_by_share(results: Results, figure: Figure | str) -> str:
    """Markdown: one figure, a row a method, a column a share, best of each share in bold."""
    shown = _figure(figure)
    marked = {share: _marked(results, share, shown) for share in results.shares}
    lines = [
        _markdown([shown.heading, *(f"{100 * share:g} % relabelled" for share in results.shares)]),
        _markdown(["---", *("---:" for _ in results.shares)]),
    ]
    for method in results.methods:
        cells = [
            _mark(
                shown.show(results.values(method, share, shown.name)),
                method in marked[share],
                "**{}**",
            )
            for share in results.shares
        ]
        lines.append(_markdown([method, *cells]))
    return "\n".join(lines) + "\n"


def text(results: Results, figures: Sequence[Figure | str]) -> str:
    """The same rows as :func:`table` for a terminal: aligned, with a star at the best."""
    shown = [_figure(one) for one in figures]
    rows = [
        ["relabelled", "method", "seeds", *(one.heading for one in shown)],
        *_cells(results, shown, "*{}"),
    ]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "  ".join(
            cell.ljust(width) if place == 1 else cell.rjust(width)
            for place, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
    return "\n".join(lines) + "\n"


def _cells(results: Results, figures: Sequence[Figure], mark: str) -> list[list[str]]:
    rows = []
    for share in results.shares:
        marked = {figure.name: _marked(results, share, figure) for figure in figures}
        for method in results.methods:
            seeds = [row.seed for row in results.rows if (row.method, row.share) == (method, share)]
            if not seeds:
                continue
            cells = [
                _mark(
                    figure.show(results.values(method, share, figure.name)),
                    method in marked[figure.name],
                    mark,
                )
                for figure in figures
            ]
            rows.append([f"{100 * share:g} %", method, str(len(seeds)), *cells])
    return rows


def _marked(results: Results, share: float, figure: Figure) -> set[str]:
    if figure.better is None:
        return set()
    columns = {method: results.values(method, share, figure.name) for method in results.methods}
    return as_good_as_best(columns, figure.better)


def _mark(cell: str, marked: bool, mark: str) -> str:  # noqa: FBT001 - reads well at both calls
    return mark.format(cell) if marked else cell


def _markdown(cells: Iterable[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _figure(one: Figure | str) -> Figure:
    return Figure(one) if isinstance(one, str) else one


def _seed(row: Row) -> int:
    return row.seed


def _joined(values: Iterable[str]) -> str:
    return "; ".join(dict.fromkeys(values))


def _mapping(obj: object, where: str) -> Mapping[str, Any]:
    if not isinstance(obj, Mapping):
        raise ResultsError(f"{where}: expected an object, got {type(obj).__name__}")
    return obj


def _row(obj: object, where: str) -> Row:
    found = _mapping(obj, where)
    method, share, seed = found.get("method"), found.get("share"), found.get("seed")
    if not isinstance(method, str):
        raise ResultsError(f"{where}.method: expected a string, got {type(method).__name__}")
    if not isinstance(seed, int) or isinstance(seed, bool):
        raise ResultsError(f"{where}.seed: expected a whole number, got {type(seed).__name__}")
    figures = _mapping(found.get("figures"), f"{where}.figures")
    return Row(
        method,
        _number(share, f"{where}.share"),
        seed,
        {name: _number(value, f"{where}.figures.{name}") for name, value in figures.items()},
    )


def _number(value: object, where: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ResultsError(f"{where}: expected a number, got {type(value).__name__}")
    return float(value)
