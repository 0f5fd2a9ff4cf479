"""Pictures, jobs and numbers that are poison: contained, named, and others go on."""

import time
from collections.abc import Iterator

import pytest
import requests

from tests.backend.conftest import asking
from tests.chaos.ledger import Ledger
from tests.chaos.site import Site, running
from tests.studio.failing_decoder import FAILURES
from tests.studio.servers import Reply
from worker.order import Order

pytestmark = [pytest.mark.slow, pytest.mark.chaos]

PATIENCE = 180.0
ROLES = ["redis", "worker-1", "worker-2", "reconcile", "serve-ill"]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """Two projects, two workers, and a version of each that is live."""
    with running(tmp_path_factory.mktemp("site"), ROLES) as made:
        other = made.further(2)
        made.town.answer(16)
        for key in (made.key, other.key):
            made.until(lambda key=key: made.learnt(key), PATIENCE, "the first versions")  # type: ignore[misc]
        yield made


@pytest.fixture(autouse=True)
def settled(site: Site) -> None:
    """No training of an earlier test runs or waits, and none of its faults is left."""
    site.settle(site.key, other_of(site))


def other_of(site: Site) -> str:
    """Key of the second project."""
    return site.further(2).key


@pytest.mark.parametrize(
    ("ill", "reason"),
    [("crash", "crashed the reader (SIGSEGV)"), ("hang", "takes longer than the 20 s")],
)
def test_a_picture_that_crashes_or_hangs_its_decoder_costs_itself_only(
    site: Site, ill: str, reason: str, ledger: Ledger
) -> None:
    first = len(site.town.tasks) + 1
    site.town.odd[first] = Reply(FAILURES[ill] + str(first).encode(), 200)
    site.town.answer(8)
    with ledger.recovery("poison: an image for its decoder", ill):
        manifest = site.until(site.learnt, PATIENCE, "learning from the others")
    ((told, count),) = [row for row in manifest.labels["skipped"].items() if reason in row[0]]
    assert count == 1, told
    assert manifest.labels["pictures"] == site.town.labels - len(site.town.odd)
    refs = [f"/data/upload/1/{number}.png" for number in (1, first, 2)]
    process = site.child("serve-ill").process
    reply = requests.post(f"{site.urls[0]}/predict", json=asking(site.project, refs), timeout=60)
    assert [bool(one["result"]) for one in reply.json()["results"]] == [True, False, True]
    assert site.child("serve-ill").process is process
    assert all(run["state"] != "died" for run in site.board.runs(site.key))


def test_a_training_that_always_fails_is_not_tried_for_ever_and_others_go_on(
    site: Site, ledger: Ledger
) -> None:
    """An error that nobody expected: told to people, no loop, and the other project learns."""
    other = other_of(site)
    (site.home / "fails").write_text(other, encoding="utf-8")
    before = len(site.board.runs(other))
    live = site.store.current(other)
    site.town.answer(8)
    site.until(site.learnt, PATIENCE, "the other project")
    run = site.until(lambda: site.board.runs(other)[: -before or None], PATIENCE, "a failure")[0]
    assert run["state"] == "failed"
    assert "unexpected RuntimeError" in run["why"]
    time.sleep(10)
    tried = len(site.board.runs(other)) - before
    assert tried <= 2  # one may have waited behind the first
    assert site.store.current(other) == live
    (site.home / "fails").unlink()
    site.board.ask(Order(other, "by hand"))
    with ledger.recovery("poison: a training that always fails", f"{tried} times in 10 s"):
        site.until(lambda: site.learnt(other), PATIENCE, "learning once it can")


def test_a_loss_that_is_no_number_is_no_version(site: Site, ledger: Ledger) -> None:
    other = other_of(site)
    (site.home / "nan").write_text(other, encoding="utf-8")
    versions, live = site.store.versions(other), site.store.current(other)
    before = len(site.board.runs(other))
    site.town.answer(8)
    site.until(site.learnt, PATIENCE, "the other project")
    run = site.until(lambda: site.board.runs(other)[: -before or None], PATIENCE, "a failure")[0]
    assert run["state"] == "failed"
    assert "the loss became nan" in run["why"]
    assert site.store.versions(other) == versions
    assert site.store.current(other) == live
    (site.home / "nan").unlink()
    site.board.ask(Order(other, "by hand"))
    with ledger.recovery("poison: a loss that is no number"):
        site.until(lambda: site.learnt(other), PATIENCE, "learning once it can")
    site.check(other)
