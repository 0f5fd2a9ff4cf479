"""Two workers, reconcilers and servers at once: one training at a time, one version each."""

import itertools
from collections.abc import Iterator

import pytest
import requests

from tests.backend.conftest import asking
from tests.chaos.ledger import Ledger
from tests.chaos.site import Site, running

pytestmark = pytest.mark.slow

ROLES = [
    "redis",
    *(f"{role}-{number}" for role in ("worker", "reconcile", "serve") for number in (1, 2)),
]


@pytest.fixture
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    with running(tmp_path_factory.mktemp("site"), ROLES) as made:
        made.until(lambda: len(made.board.workers()) == 2, 120, "two workers")
        yield made


@pytest.mark.chaos
@pytest.mark.timeout(600)
def test_two_of_everything_train_one_at_a_time(site: Site, ledger: Ledger) -> None:
    number, _, _ = site.project.project.partition(".")
    event = {
        "action": "ANNOTATION_CREATED",
        "project": {"id": int(number), "created_at": site.town.created_at},
    }
    rounds = 12
    for _ in range(rounds):
        site.town.answer(8)
        for at in range(8):
            url = site.urls[at % 2]
            assert requests.post(f"{url}/webhook", json=event, timeout=20).status_code == 201
        site.until(site.learnt, 120, "learning from these")
    site.until(site.learnt, 180, "learning from all of it")
    site.check()
    runs = sorted(site.board.runs(site.key), key=lambda run: float(run["started_at"]))
    for earlier, later in itertools.pairwise(runs):
        assert earlier["ended_at"] <= later["started_at"] + 0.01
    published = [run["version"] for run in runs if run["state"] == "published"]
    assert len(set(published)) == len(published)
    live = site.store.current(site.key)
    body = asking(site.project, ["/data/upload/1/1.png"])
    told = [requests.post(f"{url}/predict", json=body, timeout=60).json() for url in site.urls]
    assert [one["model_version"] for one in told] == [live, live]
    assert told[0]["results"] == told[1]["results"]
    ledger.tell("two workers, two reconcilers, two servers", len(runs), 0.0, "trainings")
