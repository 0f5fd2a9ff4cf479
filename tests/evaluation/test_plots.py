"""Lines are drawn with their names, and the same lines give the same file."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from evaluation.errors import ResultsError
from evaluation.plots import plot_lines

LINES = {
    "ours": np.array([[0.0, 80.0], [50.0, 78.0]]),
    "flat": np.array([[0.0, 80.0], [50.0, 70.0]]),
    "nothing": np.empty((0, 2)),
}


@pytest.mark.parametrize("ending", ["svg", "png"])
def test_the_same_lines_give_the_same_file(tmp_path: Path, ending: str) -> None:
    for name in ("a", "b"):
        plot_lines(LINES, tmp_path / f"{name}.{ending}", across="relabelled, %", up="leaf %")
    first, again = ((tmp_path / f"{name}.{ending}").read_bytes() for name in ("a", "b"))
    assert first == again


def test_lines_axes_and_names_are_drawn_and_empty_lines_left_out(tmp_path: Path) -> None:
    plot_lines(LINES, tmp_path / "a.svg", across="relabelled, %", up="leaf %")
    text = (tmp_path / "a.svg").read_text()
    for word in ("ours", "flat", "relabelled, %", "leaf %"):
        assert f"<!-- {word} -->" in text
    assert "nothing" not in text
    plot_lines(LINES, tmp_path / "a.png", across="", up="")
    with Image.open(tmp_path / "a.png") as image:
        assert min(image.size) > 400


def test_nothing_to_draw_and_other_endings_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ResultsError, match="expected lines to draw"):
        plot_lines({"a": np.empty((0, 2))}, tmp_path / "a.svg", across="", up="")
    with pytest.raises(ResultsError, match=r"must end in \.svg or \.png, got a\.gif"):
        plot_lines(LINES, tmp_path / "a.gif", across="", up="")
