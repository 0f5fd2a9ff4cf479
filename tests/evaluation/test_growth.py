"""Late leaves are learnt by a grown head, which forgets nothing."""

import pytest

from evaluation.errors import ExperimentError
from evaluation.growth import grow
from evaluation.results import Row
from tests.evaluation.stand import features

pytestmark = pytest.mark.usefixtures("quick")


@pytest.fixture
def rows() -> dict[str, Row]:
    return {row.method: row for row in grow(features(200, noise=0.5), leaves=1, seed=0)}


def test_a_grown_head_answers_old_leaves_as_before_and_learns_the_new_one(
    rows: dict[str, Row],
) -> None:
    before, grown = rows["before"].figures, rows["grown"].figures
    assert grown["old"] == grown["old among old"] == before["old"] == before["old among old"]
    assert grown["new"] == before["new"] == 0  # it waits to be learnt
    learnt = rows["grown, new rows learnt"].figures
    assert learnt["old among old"] == before["old"]  # no image changes sides among old leaves
    assert learnt["new"] > 0.6  # chance is 0.2
    assert learnt["old"] > before["old"] - 0.1
    assert rows["trained anew"].figures["all"] > 0.8
    assert {row.protocol for row in rows.values()} == {"1 leaves late"}


@pytest.mark.parametrize("leaves", [0, 4])
def test_a_number_that_cannot_be_is_refused(leaves: int) -> None:
    with pytest.raises(ExperimentError, match=f"expected 1 to 3, so that two stay, got {leaves}"):
        grow(features(), leaves=leaves, seed=0)
