"""Results go through their file unharmed, and tables mark the best and those as good."""

import math
import tempfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evaluation.errors import ResultsError
from evaluation.results import Figure, Results, Row, as_good_as_best, table

LEAF = Figure("leaf")
SECONDS = Figure("seconds", "train s", better="lower", percent=False, digits=0)


def runs(method: str, *leaf: float, protocol: str = "50 %", seconds: float = 10) -> list[Row]:
    return [
        Row(method, protocol, seed, {"leaf": value, "seconds": seconds})
        for seed, value in enumerate(leaf)
    ]


finite = st.floats(allow_nan=False, allow_infinity=False)
names = st.text(st.characters(codec="utf-8"))
rows = st.builds(Row, names, names, st.integers(), st.dictionaries(names, finite, max_size=3))


@given(st.lists(rows, unique_by=lambda row: row.key, max_size=3), st.dictionaries(names, names))
def test_a_file_gives_back_what_it_took(several: list[Row], plain: dict[str, str]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        results = Results(tuple(several), plain, plain)
        results.save(Path(folder) / "r.json")
        assert Results.read(Path(folder) / "r.json", plain) == results
        assert [file.name for file in Path(folder).iterdir()] == ["r.json"]


def test_without_a_file_there_are_no_rows_yet(tmp_path: Path) -> None:
    assert Results.read(tmp_path / "r.json", {"size": (1, 2)}) == Results((), {"size": [1, 2]})


@pytest.mark.parametrize(
    "text",
    [
        "no",
        "[]",
        '{"form": 1, "rows": [], "settings": {}, "machine": {}}',
        '{"form": 2, "rows": [{"method": "a"}], "settings": {}, "machine": {}}',
        '{"form": 2, "rows": 3, "settings": {}, "machine": {}}',
    ],
)
def test_a_file_of_something_else_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "r.json").write_text(text)
    with pytest.raises(ResultsError, match=r"r\.json: expected what an evaluation wrote"):
        Results.read(tmp_path / "r.json", {})


def test_runs_of_other_settings_do_not_join(tmp_path: Path) -> None:
    Results((), {"size": 224, "k": 1}).save(tmp_path / "r.json")
    with pytest.raises(ResultsError, match=r"do not compare: size \(224, 448\)\. Choose"):
        Results.read(tmp_path / "r.json", {"size": 448, "k": 1})


def test_settings_are_plain_data(tmp_path: Path) -> None:
    with pytest.raises(ResultsError, match="plain data"):
        Results((), {"path": tmp_path}).save(tmp_path / "r.json")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_figure_is_a_finite_number(value: float) -> None:
    with pytest.raises(ResultsError, match="a, 50 %, seed 0, leaf: expected a finite number"):
        runs("a", value)


def test_a_run_that_is_done_again_replaces_the_earlier_one() -> None:
    results = Results(tuple(runs("a", 0.1, 0.2))).having([*runs("b", 0.3), *runs("a", 0.9)])
    assert results.values("a", "50 %", "leaf") == (0.9, 0.2)
    assert results.values("b", "50 %", "leaf") == (0.3,)
    assert results.methods == ("a", "b")


def test_a_line_has_the_means_of_each_protocol_in_order() -> None:
    results = Results(
        (
            Row("a", "late", 0, {"x": 2.0, "y": 0.5}),
            Row("a", "early", 0, {"x": 1.0, "y": 0.2}),
            Row("a", "early", 1, {"x": 1.0, "y": 0.4}),
            Row("b", "early", 0, {"x": 1.0}),
        )
    )
    assert results.line("a", "x", "y").tolist() == [[1.0, pytest.approx(0.3)], [2.0, 0.5]]
    assert results.line("b", "x", "y").shape == (0, 2)


def test_within_one_standard_error_of_the_best_is_as_good() -> None:
    # best: mean 0.80, sd 0.02, three seeds: standard error 0.0115
    columns = {"best": (0.78, 0.80, 0.82), "close": (0.789,), "far": (0.788,), "none": ()}
    assert as_good_as_best(columns, "higher") == {"best", "close"}


def test_lower_may_be_better_and_equal_means_are_both_best() -> None:
    assert as_good_as_best({"a": (3.0,), "b": (2.0,)}, "lower") == {"b"}
    assert as_good_as_best({"a": (0.1 + 0.2,), "b": (0.3,)}, "higher") == {"a", "b"}


def test_a_table_shows_mean_and_spread_and_marks_the_best_of_each_protocol() -> None:
    results = Results(
        (
            *runs("ours", 0.78, 0.80, 0.82, seconds=20),
            *runs("flat", 0.70, 0.70, 0.70, seconds=5),
            *runs("flat", 0.75, protocol="0 %"),
            Row("flat", "empty", 0, {}),
        )
    )
    assert table(results, LEAF).splitlines() == [
        "| leaf % | 50 % | 0 % |",
        "| --- | ---: | ---: |",
        "| ours | **80.0 ± 2.0** | – |",  # noqa: RUF001
        "| flat | 70.0 ± 0.0 | **75.0** |",
    ]
    assert "| flat | **5 ± 0** | **10** |" in table(results, SECONDS)
    assert "**" not in table(results, Figure("leaf", better=None))
