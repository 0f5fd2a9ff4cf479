"""A storm of annotation events: none refused, one training runs and one waits, all is learnt."""

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
import requests

from tests.chaos.ledger import Ledger
from tests.chaos.site import Site, running

pytestmark = [pytest.mark.slow, pytest.mark.alone]


@pytest.fixture
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    roles = ["redis", "worker", "reconcile", "serve"]
    with running(tmp_path_factory.mktemp("site"), roles) as made:
        made.town.answer(12)
        made.until(made.learnt, 180, "the first version")
        yield made


@pytest.mark.parametrize("events", [1_000, pytest.param(10_000, marks=pytest.mark.chaos)])
def test_a_storm_is_taken_whole_and_learnt_from(site: Site, events: int, ledger: Ledger) -> None:
    """200 events a second, each of them an answer that is there to be read."""
    number, _, epoch = site.project.project.partition(".")
    created = site.town.created_at
    body = {
        "action": "ANNOTATION_CREATED",
        "project": {"id": int(number), "created_at": created},
    }
    assert epoch
    session = requests.Session()
    session.mount("http://", requests.adapters.HTTPAdapter(pool_maxsize=32))
    began, most = time.monotonic(), 0

    def send(at: int) -> tuple[int, float]:
        time.sleep(max(0.0, began + at / 200 - time.monotonic()))
        sent = time.monotonic()
        status = session.post(f"{site.urls[0]}/webhook", json=body, timeout=30).status_code
        return status, time.monotonic() - sent

    with ThreadPoolExecutor(32) as pool:
        answers = []
        for at, answer in enumerate(pool.map(send, range(events))):
            answers.append(answer)
            if at % 100 == 0:
                site.town.answer(4)
                most = max(most, len(site.board.wishes(site.key)))
    taken = time.monotonic() - began
    assert {status for status, _ in answers} == {201}
    assert 1 <= most <= 2
    seconds = sorted(spent for _, spent in answers)
    settling = time.monotonic()
    site.until(site.learnt, 180, "learning from all of it")
    ledger.tell(
        "storm of events",
        events,
        time.monotonic() - settling,
        f"{events} in {taken:.0f} s, 99 % within {1000 * seconds[int(0.99 * events)]:.0f} ms",
    )
