"""`hrn simulate` on a folder of drawings: curves, tables and plot, and more campaigns later."""

import json
from pathlib import Path

import pytest

from cli.__main__ import main
from evaluation import curves
from tests.evaluation.stand import draw
from tests.inference.small import NAME, weights_file

pytestmark = pytest.mark.slow


def simulate(home: Path, *words: str) -> int:
    out = ["--out", str(home / "out"), "--seeds", "1", "--jobs", "1"]
    return main(["--home", str(home), "simulate", *out, *words])


def test_a_campaign_is_replayed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    photos = draw(tmp_path / "photos", {"train": 8, "val": 2, "test": 4}, side=180)
    common = ["--data", str(photos), "--backbone", NAME, "--weights", str(weights_file(tmp_path))]
    words = [*common, "--start", "8", "--batch", "5", "--rounds", "2", "--know", "0.8"]
    assert simulate(tmp_path, *words, "--coarse", "use", "drop") == 0
    printed = capsys.readouterr()
    assert "4 of 4" in printed.err
    assert "| mix, coarse dropped | 1 |" in printed.out
    assert "| level 1 | seeds | 8 | 13 | 18 |" in printed.out
    found = curves.read(tmp_path / "out" / "results.json")
    assert found.names == ("random", "random, coarse dropped", "mix", "mix, coarse dropped")
    assert found.settings["know"] == 0.8
    assert found.curves[0].points[-1].figures["leaf"] > 0.5
    assert (tmp_path / "out" / "curves.svg").stat().st_size > 1000
    assert (tmp_path / "out" / "curves.png").stat().st_size > 1000
    assert (tmp_path / "out" / "tables.md").read_text() in printed.out

    more = [*words, "--strategy", "mix", "margin", "--json"]  # what is known is not run again
    assert simulate(tmp_path, *more) == 0
    printed = capsys.readouterr()
    assert "1 of 1: margin" in printed.err
    assert len(json.loads(printed.out)["campaigns"]) == 5

    assert simulate(tmp_path, *common, "--start", "9") == 1
    assert "another batch, know, rounds, start" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--strategy", "mixed"], "no strategy 'mixed': expected one of random, mix"),
        (["--pseudo", "0.4"], "--pseudo must be above 0.5"),
        (["--seeds", "0"], "--seeds must be 1 or more, got 0"),
    ],
)
def test_what_cannot_be_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], message: str
) -> None:
    assert simulate(tmp_path, "--data", str(tmp_path), *words) == 1
    assert message in capsys.readouterr().err
