"""Figures hold what was measured, and are written the same each time."""

import re
from pathlib import Path

import numpy as np
import pytest
from defusedxml.ElementTree import parse
from PIL import Image

from evaluation.errors import ResultsError
from evaluation.plots import (
    Curve,
    Evidence,
    plot_by_share,
    plot_lines,
    plot_reliability,
    plot_risk_coverage,
)
from evaluation.report import Figure, Results, Row
from hierarchy.metrics import expected_calibration_error

RESULTS = Results(
    tuple(
        Row(method, share, seed, {"leaf": best - share * 0.1 + seed * 0.01})
        for method, best in (("ours", 0.8), ("flat", 0.8), ("chang", 0.7))
        for share in (0.0, 0.5, 0.9)
        for seed in (0, 1)
    )
)
SVG = "{http://www.w3.org/2000/svg}"


def evidence(n: int = 400) -> Evidence:
    rng = np.random.default_rng(0)
    confidence = rng.random(n)
    return Evidence(confidence, rng.random(n) < confidence**2)


def words(file: Path) -> str:
    """The text that matplotlib leaves as comments beside its glyphs."""
    return " / ".join(re.findall(r"<!-- (.*?) -->", file.read_text(encoding="utf-8")))


def test_each_method_is_named_and_each_share_has_a_tick(tmp_path: Path) -> None:
    plot_by_share(RESULTS, Figure("leaf"), tmp_path / "a.svg", title="Leaves")
    found = words(tmp_path / "a.svg")
    for word in ("ours", "flat", "chang", "leaf %", "Leaves", "50", "90"):
        assert word in found


def heights(file: Path, *names: str) -> list[float]:
    """Of each name where its first label stands, in points from the top."""
    text = file.read_text(encoding="utf-8")
    found = []
    for name in names:
        place = re.search(rf"<!-- {name} -->\s*<g[^>]*translate\(\S+ (\S+)\)", text)
        assert place is not None, name
        found.append(float(place[1]))
    return found


def test_names_of_lines_that_end_together_do_not_overlap(tmp_path: Path) -> None:
    plot_by_share(RESULTS, Figure("leaf"), tmp_path / "a.svg")
    ours, flat = heights(tmp_path / "a.svg", "ours", "flat")
    assert abs(ours - flat) >= 9  # points: as high as a letter


def test_the_same_results_give_the_same_file(tmp_path: Path) -> None:
    for name in ("a.svg", "b.svg", "a.png", "b.png"):
        plot_by_share(RESULTS, Figure("leaf"), tmp_path / name)
    for ending in ("svg", "png"):
        assert (tmp_path / f"a.{ending}").read_bytes() == (tmp_path / f"b.{ending}").read_bytes()


def test_lines_can_be_told_apart_in_grey(tmp_path: Path) -> None:
    plot_by_share(RESULTS, Figure("leaf"), tmp_path / "a.svg")
    styles = [one.get("style", "") for one in parse(tmp_path / "a.svg").iter(f"{SVG}path")]
    lines = {
        re.sub("#[0-9a-f]{6}", "", style)
        for style in styles
        if "stroke-width: 1.6" in style and "fill: none" in style
    }
    assert len(lines) == 3


def test_a_figure_that_nobody_measured_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ResultsError, match="no run has the figure 'top'"):
        plot_by_share(RESULTS, Figure("top"), tmp_path / "a.svg")


def test_another_ending_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ResultsError, match=r"must end in \.svg or \.png, got a\.pdf"):
        plot_by_share(RESULTS, Figure("leaf"), tmp_path / "a.pdf")


def test_reliability_states_each_levels_calibration_error(tmp_path: Path) -> None:
    one = evidence()
    plot_reliability({"top": one, "leaf": evidence(50)}, tmp_path / "a.svg")
    error = expected_calibration_error(one.confidence, one.right)
    assert error is not None
    assert f"top, ECE {100 * error:.1f} %" in words(tmp_path / "a.svg")


def test_reliability_needs_answers(tmp_path: Path) -> None:
    with pytest.raises(ResultsError, match="got none"):
        plot_reliability({"top": evidence(0)}, tmp_path / "a.svg")


def test_risk_and_depth_stand_side_by_side(tmp_path: Path) -> None:
    share = np.linspace(0.1, 1, 50)
    curves = {
        "price": Curve(share, share / 10, 3 - share),
        "leaf": Curve(share, share / 4, share * 0 + 3),
    }
    plot_risk_coverage(curves, tmp_path / "a.svg")
    found = words(tmp_path / "a.svg")
    assert found.count("price") == found.count("leaf") == 2
    plot_risk_coverage(curves, tmp_path / "a.png")
    with Image.open(tmp_path / "a.png") as image:
        assert image.width > image.height > 300


def test_curves_are_named_where_all_pictures_are_answered(tmp_path: Path) -> None:
    share = np.array([1.0, 0.2, 0.6])
    rises, falls = Curve(share, share / 2, share), Curve(share, 0.5 - share / 2, share)
    plot_risk_coverage({"rises": rises, "falls": falls}, tmp_path / "a.svg")
    upper, lower = heights(tmp_path / "a.svg", "rises", "falls")
    assert upper < lower


def test_risk_coverage_needs_curves(tmp_path: Path) -> None:
    with pytest.raises(ResultsError, match="got none"):
        plot_risk_coverage({}, tmp_path / "a.svg")


def test_lines_are_named_and_axes_say_what_they_are(tmp_path: Path) -> None:
    lines = {"mix": (np.array([10, 20]), np.array([40.0, 60.0]))}
    plot_lines(lines, tmp_path / "lines.svg", across="asked", up="right, %")
    written = words(tmp_path / "lines.svg")
    assert all(name in written for name in ("mix", "asked", "right, %"))
    with pytest.raises(ResultsError, match="expected lines to draw, got none"):
        plot_lines({}, tmp_path / "lines.svg", across="asked", up="right")
