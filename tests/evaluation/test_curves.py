"""Means, gains and the questions needed, worked out on paper."""

import json
from pathlib import Path
from typing import Any

import pytest

from evaluation.curves import (
    Campaign,
    Curve,
    Curves,
    Point,
    needed,
    read,
    save,
    summarise,
    table,
)
from evaluation.errors import ResultsError


def curve(name: str, seed: int, *leaf: float, classes: float = 4) -> Curve:
    points = (
        Point(10 * (at + 1), {"leaf": one, "classes": classes}) for at, one in enumerate(leaf)
    )
    return Curve(Campaign(name, seed), tuple(points))


WHOLE = Curves(
    (
        curve("random", 0, 0.2, 0.4, 0.6),
        curve("random", 1, 0.4, 0.6, 0.8),
        curve("mix", 0, 0.4, 0.6, 0.8, classes=8),
        curve("mix", 1, 0.4, 0.8, 0.8, classes=6),
    )
)


def test_a_summary_says_what_a_strategy_saves() -> None:
    random, mix = summarise(WHOLE, "leaf")
    assert (random.gain, random.lowest, random.to_reference) == (0.0, 0.0, 30.0)
    assert mix.mean == pytest.approx((0.4, 0.7, 0.8))
    assert mix.curve == pytest.approx(1.9 / 3)
    assert mix.gain == pytest.approx(0.4 / 3)
    assert mix.lowest == pytest.approx(0.1)
    assert mix.to_reference == pytest.approx(20)  # random ends with 0.7 on average
    assert mix.by_seed == pytest.approx((20, 20))
    assert mix.classes == 7


def test_without_random_of_the_same_seeds_there_is_no_gain() -> None:
    (alone,) = summarise(Curves((curve("mix", 0, 0.5),)), "leaf")
    assert (alone.gain, alone.to_reference, alone.by_seed) == (None, None, ())
    other = Curves((curve("random", 1, 0.5), curve("mix", 0, 0.5)))
    assert summarise(other, "leaf")[1].gain is None


def test_random_of_more_seeds_is_compared_by_the_same_ones() -> None:
    whole = WHOLE.having(curve("few", 1, 0.5, 0.7, 0.9))
    assert summarise(whole, "leaf")[2].gain == pytest.approx(0.1)


def test_only_points_that_every_seed_reached_count() -> None:
    whole = Curves((curve("mix", 0, 0.1, 0.2), curve("mix", 1, 0.3)))
    assert summarise(whole, "leaf")[0].questions == (10,)


@pytest.mark.parametrize(
    ("level", "questions"), [(0.1, 10.0), (0.2, 10.0), (0.3, 15.0), (0.6, 30.0), (0.7, None)]
)
def test_questions_needed(level: float, questions: float | None) -> None:
    assert needed([10, 20, 30], [0.2, 0.4, 0.6], level) == questions


def test_a_table_has_a_row_a_strategy() -> None:
    lines = table(WHOLE, "leaf").splitlines()
    assert len(lines) == 4
    assert lines[3] == (
        "| mix | 2 | 40.0 | 70.0 | 80.0 | 63.3 | +13.3 | +10.0 | 20 (20, 20) | 7.0 |"
    )
    assert "not reached" in table(WHOLE.having(curve("bad", 0, 0, 0, 0)), "leaf")


def test_a_campaign_run_again_takes_the_place_of_the_first() -> None:
    again = WHOLE.having(curve("mix", 1, 0.9))
    assert len(again.curves) == 4
    assert again.of("mix")[1].points[0].figures["leaf"] == 0.9


def test_names_tell_how_answers_were_used() -> None:
    assert Campaign("mix", 0).name == "mix"
    assert Campaign("mix", 0, "drop", 0.9).name == "mix, coarse dropped, pseudo 0.9"


def broken(**change: Any) -> dict[str, Any]:
    plain = WHOLE.to_json()
    plain["campaigns"][0] |= change
    return plain


@pytest.mark.parametrize(
    ("obj", "message"),
    [
        ([], "expected an object of form 1"),
        ({"form": 2}, "expected an object of form 1"),
        ({"form": 1, "campaigns": None}, "curves.campaigns: expected a list, got NoneType"),
        ({"form": 1, "campaigns": [1]}, r"curves.campaigns\[0\]: expected strategy"),
        (broken(points=[{}]), r"curves.campaigns\[0\]: expected .* KeyError 'questions'"),
        (broken(coarse="maybe"), r"curves.campaigns\[0\].coarse: expected use or drop"),
        (broken(points=[{"questions": 1, "figures": {"leaf": float("inf")}}]), "finite numbers"),
    ],
)
def test_a_file_of_another_form_is_refused(tmp_path: Path, obj: object, message: str) -> None:
    file = tmp_path / "results.json"
    file.write_text(json.dumps(obj), encoding="utf-8")
    with pytest.raises(ResultsError, match=message):
        read(file)


def test_a_round_trip(tmp_path: Path) -> None:
    save(WHOLE, tmp_path / "results.json")
    assert read(tmp_path / "results.json") == WHOLE
    with pytest.raises(ResultsError, match=r"none\.json"):
        read(tmp_path / "none.json")
