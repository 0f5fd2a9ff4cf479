"""`hrn evaluate` on a folder of drawings: tables, figures and plot, and more runs beside them."""

import json
from pathlib import Path

import pytest

from cli.__main__ import main
from tests.evaluation.stand import draw
from tests.inference.small import NAME, weights_file

pytestmark = pytest.mark.slow


def evaluate(home: Path, *words: str) -> int:
    out = ["--out", str(home / "out"), "--seeds", "1", "--jobs", "1"]
    return main(["--home", str(home), "evaluate", *words, *out])


def test_methods_are_compared(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = draw(tmp_path / "images", {"train": 8, "val": 3, "test": 4}, side=180)
    common = ["--data", str(folder), "--backbone", NAME, "--weights", str(weights_file(tmp_path))]
    words = [*common, "--relabel", "0", "0.5", "--low-res", "--blur", "3"]
    assert evaluate(tmp_path, *words, "--method", "hrn", "flat") == 0
    printed = capsys.readouterr()
    assert "| leaf % | 0 %, low resolution | 50 %, low resolution |" in printed.out
    assert "4 of 4: flat, 50 %, low resolution, seed 0: leaf" in printed.err
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert {(row["method"], row["protocol"]) for row in results["rows"]} == {
        (method, f"{share} %, low resolution") for method in ("hrn", "flat") for share in (0, 50)
    }
    assert results["rows"][0]["figures"]["leaf"] > 0.5
    assert "test blur3 leaf" in results["rows"][0]["figures"]
    assert (tmp_path / "out" / "leaf.svg").stat().st_size > 1000
    assert (tmp_path / "out" / "results.md").read_text() in printed.out + "\n"

    again = [*words, "--method", "hrn", "marginal", "--per-leaf", "2", "--leaves", "2", "--depth"]
    assert evaluate(tmp_path, *again, "--json") == 0
    rows = json.loads(capsys.readouterr().out)["rows"]
    assert len(rows) == 8
    assert rows[-1]["protocol"] == "50 %, low resolution, 2 per leaf, 2 leaves"
    assert 0 <= rows[-1]["kept at 95 %"] <= 1

    assert evaluate(tmp_path, *words, "--method", "marginal", "hrn") == 0  # what is known is kept
    assert "2 of 2: marginal" in capsys.readouterr().err

    assert evaluate(tmp_path, *common, "--method", "flat") == 1  # other tests
    assert "of other settings, which do not compare: tests" in capsys.readouterr().err


def test_a_wrong_method_is_told_the_right_ones(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert evaluate(tmp_path, "--data", str(tmp_path), "--method", "hrm") == 1
    assert "no method hrm: expected some of hrn; " in capsys.readouterr().err
