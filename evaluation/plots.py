"""Figures of results, as SVG or PNG by the file's ending: readable in grey, named where they end.

Nothing here opens a window or keeps a figure: each function draws one and writes it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure as Canvas
from numpy.typing import NDArray

from evaluation.errors import ResultsError
from evaluation.report import Figure, Results

FORMATS = (".svg", ".png")

#: Lines differ by brightness, dash and marker as well as by hue (Okabe and Ito's colours).
STYLES = (
    ("#000000", "-", "o"),
    ("#0072B2", "--", "s"),
    ("#D55E00", "-.", "^"),
    ("#009E73", ":", "D"),
    ("#CC79A7", "-", "v"),
    ("#56B4E9", "--", "P"),
    ("#B8860B", "-.", "X"),
    ("#666666", ":", "*"),
)

#: Of a label's height, the least distance between two.
SPACING = 1.25

FONT_SIZE = 9.0
"""Points."""


@dataclass(frozen=True, eq=False)
class Evidence:
    """What one level's answers were worth.

    Attributes:
        confidence: ``(n,)`` stated probabilities.
        right: ``(n,)`` bool, whether each came true.
    """

    confidence: NDArray[np.float64]
    right: NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class Curve:
    """Answers given as fewer and fewer pictures are answered, or answered less deeply.

    Attributes:
        coverage: ``(n,)`` share answered, in [0, 1].
        risk: ``(n,)`` share of wrong ones among those answered, in [0, 1].
        depth: ``(n,)`` mean number of levels answered, among those answered.
    """

    coverage: NDArray[np.float64]
    risk: NDArray[np.float64]
    depth: NDArray[np.float64]


def plot_by_share(results: Results, figure: Figure, file: Path, *, title: str = "") -> None:
    """Draw a figure over the share of relabelled pictures, a line a method, a band of one sd.

    Args:
        results: the runs; methods without this figure are left out.
        figure: what to draw.
        file: ``.svg`` or ``.png``.
        title: above the figure; none if empty.

    Raises:
        ResultsError: no run has the figure, or the file's ending is another.
    """
    lines = {method: _line(results, method, figure) for method in results.methods}
    lines = {method: line for method, line in lines.items() if len(line)}
    if not lines:
        raise ResultsError(f"no run has the figure {figure.name!r}: nothing to draw")
    canvas, (axes,) = _canvas(1, width=6.4, height=4.2)
    for line, style in zip(lines.values(), cycle(STYLES), strict=False):
        share, mean, spread = line.T
        _draw(axes, share, mean, style)
        axes.fill_between(share, mean - spread, mean + spread, color=style[0], alpha=0.12, lw=0)
    axes.set_xlabel("pictures relabelled to the parent, %")
    axes.set_ylabel(figure.heading)
    axes.set_xticks([100 * share for share in results.shares])
    ends = {method: (line[-1, 0], line[-1, 1]) for method, line in lines.items()}
    _style(axes)
    _name_ends(axes, ends)
    _write(canvas, file, title)


def plot_reliability(
    levels: Mapping[str, Evidence], file: Path, *, bins: int = 15, title: str = ""
) -> None:
    """Draw accuracy over confidence, a panel a level, with the share of pictures in each bin.

    Bins are of equal width, as in the expected calibration error, which each panel states.

    Raises:
        ResultsError: there is no level, or one has no answers, or the file's ending is another.
    """
    if not levels or not all(len(one.confidence) for one in levels.values()):
        raise ResultsError("expected answers on each level to draw, got none")
    canvas, panels = _canvas(len(levels), width=3.2 * len(levels) + 0.4, height=3.5)
    for axes, (name, one) in zip(panels, levels.items(), strict=True):
        confidence, accuracy, share = _binned(one, bins)
        axes.bar(
            (np.arange(bins) + 0.5) / bins, share, width=1 / bins, color="#DDDDDD", edgecolor="w"
        )
        axes.plot([0, 1], [0, 1], color="#999999", lw=1, ls="--")
        filled = share > 0
        axes.plot(confidence[filled], accuracy[filled], color="k", marker="o", ms=4, lw=1.4)
        error = float(np.sum(share * np.abs(np.nan_to_num(confidence - accuracy))))
        axes.set_title(f"{name}, ECE {100 * error:.1f} %", fontsize=FONT_SIZE)
        axes.set(xlim=(0, 1), ylim=(0, 1), xlabel="confidence", aspect="equal")
        _style(axes, grid=False)
    panels[0].set_ylabel("accuracy; share of pictures (bars)")
    panels[0].text(0.2, 0.23, "ideal", color="#777777", ha="center", rotation=45, fontsize=8)
    _write(canvas, file, title)


def plot_risk_coverage(curves: Mapping[str, Curve], file: Path, *, title: str = "") -> None:
    """Draw how often answers are wrong, and how deep they are, over the share answered.

    Raises:
        ResultsError: there is no curve, or the file's ending is another.
    """
    if not curves or not all(len(curve.coverage) for curve in curves.values()):
        raise ResultsError("expected curves to draw, got none")
    canvas, (risks, depths) = _canvas(2, width=9.2, height=3.8)
    for axes, label in ((risks, "wrong among answered, %"), (depths, "levels answered, mean")):
        axes.set_xlabel("pictures answered, %")
        axes.set_ylabel(label)
    risk_ends, depth_ends = {}, {}
    for (name, curve), style in zip(curves.items(), cycle(STYLES), strict=False):
        order = np.argsort(curve.coverage, kind="stable")
        coverage = 100 * curve.coverage[order]
        risk, depth = 100 * curve.risk[order], curve.depth[order]
        _draw(risks, coverage, risk, style, every=max(1, len(order) // 8))
        _draw(depths, coverage, depth, style, every=max(1, len(order) // 8))
        risk_ends[name] = (coverage[-1], risk[-1])
        depth_ends[name] = (coverage[-1], depth[-1])
    risks.set_ylim(bottom=0)
    _style(risks)
    _style(depths)
    _name_ends(risks, risk_ends)
    _name_ends(depths, depth_ends)
    _write(canvas, file, title)


def plot_lines(
    lines: Mapping[str, tuple[NDArray[Any], NDArray[np.float64]]],
    file: Path,
    *,
    across: str,
    up: str,
    title: str = "",
) -> None:
    """Draw named lines, such as learning curves.

    Args:
        lines: of each name ascending x and their y.
        file: ``.svg`` or ``.png``.
        across: what x is.
        up: what y is.
        title: above the figure; none if empty.

    Raises:
        ResultsError: there is no line, or the file's ending is another.
    """
    if not lines:
        raise ResultsError("expected lines to draw, got none")
    canvas, (axes,) = _canvas(1, width=7.2, height=4.2)
    for (x, y), style in zip(lines.values(), cycle(STYLES), strict=False):
        _draw(axes, x, y, style)
    axes.set_xlabel(across)
    axes.set_ylabel(up)
    _style(axes)
    _name_ends(axes, {name: (float(x[-1]), float(y[-1])) for name, (x, y) in lines.items()})
    _write(canvas, file, title)


def _line(results: Results, method: str, figure: Figure) -> NDArray[np.float64]:
    """Of a method's shares: percent relabelled, mean and sd as shown, (shares, 3)."""
    scale = 100 if figure.percent else 1
    points = []
    for share in results.shares:
        values = [scale * value for value in results.values(method, share, figure.name)]
        if values:
            spread = stdev(values) if len(values) > 1 else 0.0
            points.append((100 * share, fmean(values), spread))
    return np.array(points, dtype=np.float64)


def _binned(
    one: Evidence, bins: int
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Mean confidence, accuracy (nan where empty) and share of pictures of each bin, (bins,)."""
    which = np.clip((one.confidence * bins).astype(np.int64), 0, bins - 1)
    count = np.bincount(which, minlength=bins).astype(np.float64)
    some = np.where(count > 0, count, np.nan)
    confidence = np.bincount(which, weights=one.confidence, minlength=bins) / some
    accuracy = np.bincount(which, weights=one.right.astype(np.float64), minlength=bins) / some
    return confidence, accuracy, count / len(which)


def _canvas(panels: int, *, width: float, height: float) -> tuple[Canvas, Sequence[Axes]]:
    """A figure of this size in inches, and its panels side by side."""
    canvas = Canvas(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(canvas)
    return canvas, list(canvas.subplots(1, panels, squeeze=False)[0])


def _draw(
    axes: Axes,
    x: NDArray[np.float64],
    y: NDArray[np.float64],
    style: tuple[str, str, str],
    *,
    every: int = 1,
) -> None:
    colour, dash, marker = style
    axes.plot(x, y, color=colour, ls=dash, marker=marker, markevery=every, ms=4.5, lw=1.6)


def _style(axes: Axes, *, grid: bool = True) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    if grid:
        axes.grid(axis="y", color="#E5E5E5", lw=0.8)
        axes.set_axisbelow(True)


def _name_ends(axes: Axes, ends: Mapping[str, tuple[float, float]]) -> None:
    """Write each line's name right of its last point, moved apart where they would overlap."""
    low, high = axes.get_ylim()
    left, right = axes.get_xlim()
    axes.set_xlim(left, right)
    axes.set_ylim(low, high)
    inches = axes.get_window_extent().height / axes.figure.dpi
    step = SPACING * FONT_SIZE / 72 / inches * (high - low)
    names = sorted(ends, key=lambda name: ends[name][1])
    heights = _apart([ends[name][1] for name in names], step)
    colours = dict(zip(ends, cycle(style[0] for style in STYLES), strict=False))
    for name, height in zip(names, heights, strict=True):
        axes.annotate(
            name,
            xy=ends[name],
            xytext=(right + 0.02 * (right - left), height),
            textcoords="data",
            annotation_clip=False,
            va="center",
            color=colours[name],
            fontsize=FONT_SIZE,
            arrowprops={
                "arrowstyle": "-",
                "color": colours[name],
                "lw": 0.6,
                "relpos": (0, 0.5),
            },
        )


def _apart(heights: Sequence[float], step: float) -> list[float]:
    """Move ascending heights at least a step apart, as little as it takes, keeping the middle."""
    blocks: list[tuple[float, int]] = []  # mean height, labels in it
    for height in heights:
        mean, count = height, 1
        while blocks and mean - blocks[-1][0] < step * (count + blocks[-1][1]) / 2:
            other, size = blocks.pop()
            mean, count = (mean * count + other * size) / (count + size), count + size
        blocks.append((mean, count))
    return [
        mean + step * (place - (count - 1) / 2) for mean, count in blocks for place in range(count)
    ]


def _write(canvas: Canvas, file: Path, title: str) -> None:
    if title:
        canvas.suptitle(title, fontsize=FONT_SIZE + 1)
    suffix = file.suffix.lower()
    if suffix not in FORMATS:
        raise ResultsError(f"a figure's file must end in {' or '.join(FORMATS)}, got {file.name}")
    # Neither date nor random ids: the same results give the same file.
    metadata = {"Date": None} if suffix == ".svg" else {"Software": None}
    with mpl.rc_context({"svg.hashsalt": "hrn"}):
        canvas.savefig(file, dpi=160, metadata=metadata)
