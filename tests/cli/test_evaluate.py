"""`hrn evaluate` on a folder of drawings: table, figures and plot, and more runs beside them."""

import json
from pathlib import Path

import pytest

from cli.__main__ import main
from evaluation import report
from tests.evaluation.stand import draw
from tests.inference.small import NAME, weights_file

pytestmark = pytest.mark.slow


def evaluate(home: Path, *words: str) -> int:
    out = ["--out", str(home / "out"), "--seeds", "1", "--jobs", "1"]
    return main(["--home", str(home), "evaluate", *words, *out])


def test_methods_are_compared(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    photos = draw(tmp_path / "photos", {"train": 8, "val": 3, "test": 4}, side=180)
    common = ["--data", str(photos), "--backbone", NAME, "--weights", str(weights_file(tmp_path))]
    words = [*common, "--relabel", "0", "0.5", "--low-res", "--blur", "3"]
    assert evaluate(tmp_path, *words, "--method", "hrn-fast", "flat") == 0
    printed = capsys.readouterr()
    assert "hrn-fast" in printed.out
    assert "4 of 4" in printed.err
    results = report.read(tmp_path / "out" / "results.json")
    assert {row.key for row in results.rows} == {
        (method, share, 0) for method in ("hrn-fast", "flat") for share in (0.0, 0.5)
    }
    assert results.rows[0].figures["leaf"] > 0.5
    assert "test blur3 leaf" in results.rows[0].figures
    assert results.settings["low_res"] is True
    assert (tmp_path / "out" / "leaf.svg").stat().st_size > 1000
    assert len(list((tmp_path / "out" / "probabilities").iterdir())) == 4

    assert evaluate(tmp_path, *words, "--method", "marginal", "--json") == 0
    assert len(json.loads(capsys.readouterr().out)["rows"]) == 6

    again = [*words, "--method", "marginal", "hrn", "--depth"]
    assert evaluate(tmp_path, *again) == 0  # what is known is not run again
    assert "2 of 2" in capsys.readouterr().err
    depth = json.loads((tmp_path / "out" / "depth.json").read_text())
    assert {row["target"] for row in depth["50"]} == {0.9, 0.95, 0.99}

    assert evaluate(tmp_path, *words, "--grow", "1") == 0
    (outcome,) = json.loads((tmp_path / "out" / "growth.json").read_text())["outcomes"]
    assert len(outcome["withheld"]) == 1

    assert evaluate(tmp_path, *common, "--method", "flat") == 1  # not the same protocol
    assert "settings do not compare" in capsys.readouterr().err


def test_a_wrong_method_is_told_the_right_ones(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert evaluate(tmp_path, "--data", str(tmp_path), "--method", "hrm") == 1
    assert "no method hrm: expected some of hrn, " in capsys.readouterr().err
