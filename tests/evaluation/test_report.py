"""Results go through JSON unharmed, and tables mark the best and those as good."""

import json
import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evaluation.errors import ResultsError
from evaluation.report import (
    Figure,
    Results,
    Row,
    as_good_as_best,
    merge,
    read,
    save,
    table,
    table_by_share,
    text,
)

LEAF = Figure("leaf")
SECONDS = Figure("seconds", "train s", better="lower", percent=False, digits=0)


def runs(method: str, *leaf: float, share: float = 0.5, seconds: float = 10) -> list[Row]:
    return [
        Row(method, share, seed, {"leaf": value, "seconds": seconds})
        for seed, value in enumerate(leaf)
    ]


finite = st.floats(allow_nan=False, allow_infinity=False)
rows = st.builds(
    Row, st.text(), st.floats(0, 1), st.integers(), st.dictionaries(st.text(), finite, max_size=3)
)


@given(
    st.lists(rows, unique_by=lambda row: row.key, max_size=3), st.dictionaries(st.text(), st.text())
)
def test_json_gives_back_what_it_took(several: list[Row], plain: dict[str, str]) -> None:
    results = Results(tuple(several), plain, plain)
    assert Results.from_json(json.loads(json.dumps(results.to_json()))) == results


def test_a_file_gives_back_what_it_took(tmp_path: Path) -> None:
    results = Results(tuple(runs("a", 0.1, 0.2)), {"backbone": "small"}, {"cores": "2"})
    save(results, tmp_path / "r.json")
    assert read(tmp_path / "r.json") == results
    assert [file.name for file in tmp_path.iterdir()] == ["r.json"]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ([], "results: expected an object, got list"),
        ({"form": 2}, "results.form: expected 1, got 2"),
        ({"rows": None}, "results.rows: expected a list"),
        ({"settings": 1}, "results.settings: expected an object"),
        ({"rows": [{"method": 1}]}, r"results.rows\[0\].method: expected a string"),
        ({"rows": [{"method": "a", "seed": 0.5}]}, "seed: expected a whole number"),
        (
            {"rows": [{"method": "a", "seed": 0, "share": 0, "figures": {"leaf": "x"}}]},
            "figures.leaf: expected a number, got str",
        ),
    ],
)
def test_other_json_is_told_what_is_wrong(wrong: object, message: str) -> None:
    whole = {"form": 1, "settings": {}, "machine": {}, "rows": []}
    with pytest.raises(ResultsError, match=message):
        Results.from_json({**whole, **wrong} if isinstance(wrong, dict) else wrong)


def test_a_file_that_is_no_json_is_named(tmp_path: Path) -> None:
    (tmp_path / "r.json").write_text("no")
    with pytest.raises(ResultsError, match=r"r\.json: Expecting value"):
        read(tmp_path / "r.json")


def test_settings_are_plain_data(tmp_path: Path) -> None:
    with pytest.raises(ResultsError, match="plain data"):
        save(Results((), {"path": tmp_path}), tmp_path / "r.json")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_figure_is_a_finite_number(value: float) -> None:
    with pytest.raises(ResultsError, match="a, seed 0, leaf: expected a finite number"):
        runs("a", value)


def test_a_run_is_given_once() -> None:
    with pytest.raises(ResultsError, match="got twice"):
        Results((*runs("a", 0.1), *runs("a", 0.2)))


def test_merging_joins_runs_and_the_later_one_counts() -> None:
    one = Results(tuple(runs("a", 0.1, 0.2)), {"size": 224}, {"cores": "2", "os": "x"})
    two = Results((*runs("b", 0.3), *runs("a", 0.9)), {"size": 224}, {"cores": "4", "os": "x"})
    joined = merge([one, two])
    assert joined.values("a", 0.5, "leaf") == (0.9, 0.2)
    assert joined.values("b", 0.5, "leaf") == (0.3,)
    assert joined.machine == {"cores": "2; 4", "os": "x"}


def test_results_of_other_settings_do_not_merge() -> None:
    one, two = Results((), {"size": 224, "k": 1}), Results((), {"size": 448, "k": 1})
    with pytest.raises(ResultsError, match=r"do not compare: size \(224, 448\)$"):
        merge([one, two])


def test_merging_nothing_is_an_error() -> None:
    with pytest.raises(ResultsError, match="got none"):
        merge([])


def test_within_one_standard_error_of_the_best_is_as_good() -> None:
    # best: mean 0.80, sd 0.02, three seeds: standard error 0.0115
    columns = {"best": (0.78, 0.80, 0.82), "close": (0.789,), "far": (0.788,), "none": ()}
    assert as_good_as_best(columns, "higher") == {"best", "close"}


def test_lower_may_be_better() -> None:
    assert as_good_as_best({"a": (3.0,), "b": (2.0,)}, "lower") == {"b"}


def test_equal_means_are_both_best_with_one_seed_each() -> None:
    assert as_good_as_best({"a": (0.1 + 0.2,), "b": (0.3,)}, "higher") == {"a", "b"}


def test_the_table_shows_mean_and_spread_and_marks_the_best_of_each_share() -> None:
    results = Results(
        (
            *runs("ours", 0.78, 0.80, 0.82, seconds=20),
            *runs("flat", 0.70, 0.70, 0.70, seconds=5),
            *runs("flat", 0.75, share=0.0),
        )
    )
    assert table(results, [LEAF, SECONDS]).splitlines() == [
        "| relabelled | method | seeds | leaf % | train s |",
        "| ---: | --- | ---: | ---: | ---: |",
        "| 0 % | flat | 1 | **75.0** | **10** |",
        "| 50 % | ours | 3 | **80.0 ± 2.0** | 20 ± 0 |",
        "| 50 % | flat | 3 | 70.0 ± 0.0 | **5 ± 0** |",
    ]


def test_a_bare_name_is_a_rate_and_a_missing_figure_a_dash() -> None:
    results = Results((*runs("a", 0.5), Row("b", 0.5, 0, {})))
    lines = table(results, ["leaf"]).splitlines()
    assert lines[2:] == ["| 50 % | a | 1 | **50.0** |", "| 50 % | b | 1 | – |"]  # noqa: RUF001


def test_one_figure_over_all_shares() -> None:
    results = Results(
        (*runs("a", 0.5, share=0.9), *runs("b", 0.6, share=0.9), *runs("a", 0.7, share=0))
    )
    assert table_by_share(results, "leaf").splitlines() == [
        "| leaf % | 0 % relabelled | 90 % relabelled |",
        "| --- | ---: | ---: |",
        "| a | **70.0** | 50.0 |",
        "| b | – | **60.0** |",  # noqa: RUF001
    ]


def test_the_terminal_gets_aligned_columns() -> None:
    results = Results((*runs("ours", 0.8), *runs("flat", 0.7)))
    lines = text(results, [LEAF]).splitlines()
    assert lines == [
        "relabelled  method  seeds  leaf %",
        "      50 %  ours        1   *80.0",
        "      50 %  flat        1    70.0",
    ]


def test_a_share_is_0_to_1() -> None:
    with pytest.raises(ResultsError, match="share must be 0 to 1, got 30"):
        Row("a", 30, 0, {})
