"""Rows of figures, kept as a JSON file and shown as tables.

A row is one run: one method under one protocol with one seed. Tables show the mean over seeds and
its spread, with the best of each column in bold, and all that are as good.
"""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from statistics import fmean, stdev
from typing import Any, Literal, Self

import numpy as np
from numpy.typing import NDArray

from evaluation.errors import ResultsError

#: Form of the JSON file; a reader of another form says so.
FORM = 2


@dataclass(frozen=True)
class Row:
    """One run.

    Attributes:
        method: what was compared: a classifier, a strategy.
        protocol: under which conditions, in words.
        seed: of all that was drawn at random.
        figures: by name; rates in [0, 1], times in seconds, others plain numbers.

    Raises:
        ResultsError: a figure is no finite number.
    """

    method: str
    protocol: str
    seed: int
    figures: Mapping[str, float]

    def __post_init__(self) -> None:
        for name, value in self.figures.items():
            if isinstance(value, bool) or not math.isfinite(value):
                raise ResultsError(
                    f"{self.method}, {self.protocol}, seed {self.seed}, {name}: expected a finite "
                    f"number, got {value}; leave out what could not be measured"
                )

    @property
    def key(self) -> tuple[str, str, int]:
        """Method, protocol and seed: they tell runs apart."""
        return self.method, self.protocol, self.seed


@dataclass(frozen=True)
class Results:
    """Runs that may be compared: same data, same settings.

    Attributes:
        rows: each method, protocol and seed at most once.
        settings: what all runs share (data set, backbone, sizes): plain data.
        machine: where they ran (processor, cores, versions): plain text by name.
    """

    rows: tuple[Row, ...] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)
    machine: Mapping[str, str] = field(default_factory=dict)

    @property
    def methods(self) -> tuple[str, ...]:
        """Names in order of appearance."""
        return tuple(dict.fromkeys(row.method for row in self.rows))

    @property
    def protocols(self) -> tuple[str, ...]:
        """Names in order of appearance."""
        return tuple(dict.fromkeys(row.protocol for row in self.rows))

    def having(self, rows: Iterable[Row]) -> Self:
        """Return these and some more; a run that is there already is replaced."""
        known = {row.key: row for row in (*self.rows, *rows)}
        return replace(self, rows=tuple(known.values()))

    def values(self, method: str, protocol: str, figure: str) -> tuple[float, ...]:
        """Return a figure of all seeds that have it, by seed."""
        rows = [row for row in self.rows if (row.method, row.protocol) == (method, protocol)]
        rows.sort(key=lambda row: row.seed)
        return tuple(row.figures[figure] for row in rows if figure in row.figures)

    def line(self, method: str, across: str, up: str) -> NDArray[np.float64]:
        """Return a method's means over seeds, ``(n, 2)``, one point per protocol, by ``across``."""
        points = [
            (fmean(x), fmean(y))
            for protocol in self.protocols
            if (x := self.values(method, protocol, across))
            and (y := self.values(method, protocol, up))
        ]
        return np.array(sorted(points), dtype=np.float64).reshape(-1, 2)

    def save(self, file: Path) -> None:
        """Write as JSON, whole or not at all.

        Raises:
            ResultsError: a setting is no plain data.
            OSError: the file cannot be written.
        """
        try:
            text = json.dumps({"form": FORM, **asdict(self)}, indent=1, allow_nan=False)
        except (TypeError, ValueError) as error:
            raise ResultsError(f"settings and machine must be plain data: {error}") from error
        part = file.with_name(f"{file.name}.part")
        part.write_text(text + "\n", encoding="utf-8")
        part.replace(file)

    @classmethod
    def read(cls, file: Path, settings: Mapping[str, Any]) -> Self:
        """Read what :meth:`save` wrote, nothing if there is no such file.

        Args:
            file: where it is.
            settings: what the runs that are to be added share.

        Raises:
            ResultsError: the file holds no results, or those of other settings.
        """
        plain = json.loads(json.dumps(settings))
        if not file.exists():
            return cls(settings=plain)
        try:
            found = json.loads(file.read_text(encoding="utf-8"))
            _check_form(found["form"])
            rows = tuple(
                Row(str(row["method"]), str(row["protocol"]), int(row["seed"]), row["figures"])
                for row in found["rows"]
            )
            known, machine = dict(found["settings"]), dict(found["machine"])
        except (OSError, ValueError, KeyError, TypeError, AttributeError, ResultsError) as error:
            raise ResultsError(
                f"{file}: expected what an evaluation wrote ({type(error).__name__}: {error}); "
                "choose another --out"
            ) from error
        differ = sorted(
            name for name in known.keys() | plain.keys() if known.get(name) != plain.get(name)
        )
        if differ:
            shown = [f"{name} ({known.get(name)!r}, {plain.get(name)!r})" for name in differ]
            raise ResultsError(
                f"{file} holds runs of other settings, which do not compare: {', '.join(shown)}. "
                "Choose another --out"
            )
        return cls(rows, plain, machine)


@dataclass(frozen=True)
class Figure:
    """Form in which a figure is shown.

    Attributes:
        name: its key in a row's figures.
        title: what the table is called; the name if empty.
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
        """The title, with its unit."""
        return f"{self.title or self.name}{' %' if self.percent else ''}"

    def show(self, values: Sequence[float]) -> str:
        """Write mean ± standard deviation over seeds; of one seed the mean, of none a dash."""
        if not values:
            return "–"  # noqa: RUF001 - a dash for people
        scale = 100 if self.percent else 1
        mean = f"{scale * fmean(values):.{self.digits}f}"
        return f"{mean} ± {scale * stdev(values):.{self.digits}f}" if len(values) > 1 else mean


def as_good_as_best(columns: Mapping[str, Sequence[float]], better: str) -> set[str]:
    """Return the names whose mean is the best, or within one standard error of the best's mean.

    The standard error is the best one's standard deviation over the square root of its seeds; of
    one seed it is 0, and only equals are as good.

    Args:
        columns: each name's values over seeds; names without values are passed over.
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


def table(results: Results, figure: Figure) -> str:
    """Write one figure as Markdown: a row per method, a column per protocol, the best in bold."""
    columns = [
        {method: results.values(method, protocol, figure.name) for method in results.methods}
        for protocol in results.protocols
    ]
    pairs = zip(results.protocols, columns, strict=True)
    kept = [(protocol, column) for protocol, column in pairs if any(column.values())]
    better = figure.better
    bold = [as_good_as_best(column, better) if better else set() for _, column in kept]
    rows = [[figure.heading, *(protocol for protocol, _ in kept)], ["---", *["---:"] * len(kept)]]
    for method in results.methods:
        cells = [
            f"**{text}**" if method in best else text
            for (_, column), best in zip(kept, bold, strict=True)
            for text in [figure.show(column[method])]
        ]
        rows.append([method, *cells])
    return "".join(markdown(row) for row in rows)


def _check_form(form: object) -> None:
    if form != FORM:
        raise ResultsError(f"form {FORM} is read, not {form!r}")


def markdown(cells: Iterable[str]) -> str:
    """Write one line of a Markdown table."""
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |\n"
