"""Lines of results, as SVG or PNG by the file's ending: readable in grey, named in a legend."""

from collections.abc import Mapping
from itertools import cycle
from pathlib import Path

import matplotlib as mpl
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray

from evaluation.errors import ResultsError

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


def plot_lines(
    lines: Mapping[str, NDArray[np.float64]], file: Path, *, across: str, up: str
) -> None:
    """Draw named lines, such as learning curves; the same lines give the same file.

    Args:
        lines: each name's points ``(n, 2)``, x ascending.
        file: ``.svg`` or ``.png``.
        across: what x is.
        up: what y is.

    Raises:
        ResultsError: there is no line, or the file's ending is another.
    """
    suffix = file.suffix.lower()
    if suffix not in (".svg", ".png"):
        raise ResultsError(f"a figure's file must end in .svg or .png, got {file.name}")
    drawn = {name: points for name, points in lines.items() if len(points)}
    if not drawn:
        raise ResultsError("expected lines to draw, got none")
    canvas = Figure(figsize=(7.2, 4.2), layout="constrained")
    FigureCanvasAgg(canvas)
    axes = canvas.subplots()
    for (name, points), (colour, dash, marker) in zip(drawn.items(), cycle(STYLES), strict=False):
        x, y = points.T
        axes.plot(x, y, label=name, color=colour, ls=dash, marker=marker, ms=4.5, lw=1.6)
    axes.set(xlabel=across, ylabel=up)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color="#E5E5E5", lw=0.8)
    axes.legend(frameon=False, fontsize=9, loc="center left", bbox_to_anchor=(1, 0.5))
    # Neither date nor random ids: the same results give the same file.
    metadata = {"Date": None} if suffix == ".svg" else {"Software": None}
    with mpl.rc_context({"svg.hashsalt": "hrn"}):
        canvas.savefig(file, dpi=160, metadata=metadata)
