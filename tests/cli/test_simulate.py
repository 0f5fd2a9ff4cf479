"""`hrn simulate` on a folder of drawings: curves, tables and plot, and more campaigns later."""

import json
from pathlib import Path

import pytest

from cli.__main__ import main
from tests.evaluation.stand import draw
from tests.inference.small import NAME, weights_file

pytestmark = pytest.mark.slow


def simulate(home: Path, *words: str) -> int:
    out = ["--out", str(home / "out"), "--seeds", "1", "--jobs", "1"]
    return main(["--home", str(home), "simulate", *out, *words])


def test_a_campaign_is_replayed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = draw(tmp_path / "images", {"train": 8, "val": 2, "test": 4}, side=180)
    common = ["--data", str(folder), "--backbone", NAME, "--weights", str(weights_file(tmp_path))]
    words = [*common, "--start", "8", "--batch", "5", "--rounds", "2", "--know", "0.8"]
    assert simulate(tmp_path, *words, "--coarse", "use", "drop") == 0
    printed = capsys.readouterr()
    assert "4 of 4: mix, coarse dropped, seed 0: leaf" in printed.err
    assert "| level 1 % | 8 | 13 | 18 |" in printed.out
    assert "| leaf | curve mean | over random |" in printed.out
    found = json.loads((tmp_path / "out" / "results.json").read_text())
    assert list(dict.fromkeys(row["method"] for row in found["rows"])) == [
        *("random", "random, coarse dropped", "mix", "mix, coarse dropped")
    ]
    assert found["settings"]["know"] == 0.8
    assert found["rows"][2]["figures"]["leaf"] > 0.5
    for ending in ("svg", "png"):
        assert (tmp_path / "out" / f"curves.{ending}").stat().st_size > 1000
    assert (tmp_path / "out" / "tables.md").read_text().strip() in printed.out

    more = [*words, "--strategy", "mix", "margin", "--json"]  # what is known is not run again
    assert simulate(tmp_path, *more) == 0
    printed = capsys.readouterr()
    assert "1 of 1: margin" in printed.err
    assert len(json.loads(printed.out)["rows"]) == 15

    assert simulate(tmp_path, *common, "--start", "9") == 1
    assert "do not compare: batch (5, 100), know (0.8, 1.0)" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--strategy", "mixed"], "no strategy 'mixed': expected one of random, mix"),
        (["--seeds", "0"], "--seeds must be 1 or more, got 0"),
    ],
)
def test_what_cannot_be_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], message: str
) -> None:
    assert simulate(tmp_path, "--data", str(tmp_path), *words) == 1
    assert message in capsys.readouterr().err
