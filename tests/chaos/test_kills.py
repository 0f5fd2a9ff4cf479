"""SIGKILL at any moment: the work is finished later, by whoever is there, from the same labels."""

import os
import random
import signal
import time
from collections.abc import Iterator
from contextlib import suppress

import pytest

from tests.chaos.hurt import LIFE, STEPS
from tests.chaos.ledger import Ledger
from tests.chaos.site import Site, running

pytestmark = pytest.mark.slow

#: Seconds that a wish may take on a busy machine, deaths included.
PATIENCE = 180.0

#: Random kills of a run, and its seed.
KILLS, SEED = 200, 5


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    with running(tmp_path_factory.mktemp("site"), ["redis", "worker", "reconcile"]) as made:
        made.until(made.board.workers, 90, "a worker")
        yield made


def through(site: Site) -> str:
    """When the newest answer was given."""
    return max(str(row["updated_at"]) for task in site.town.tasks for row in task["annotations"])


def killed_at(site: Site, step: str, who: str, ledger: Ledger) -> None:
    """One death at the step, and what must hold afterwards."""
    before = site.check()
    site.town.open(6)
    site.hurt(step, who)
    site.town.answer(8)
    site.until(lambda: site.died, PATIENCE, f"a death at {step}")
    with ledger.recovery(f"kill -9 of a {who} at a named step", step):
        manifest = site.until(site.learnt, PATIENCE, f"learning after {step}")
    assert manifest["labels"]["labels"] == site.town.labels
    assert manifest["trained_through"] == through(site)
    site.until(
        lambda: site.board.refreshed(site.key) == manifest["version"], PATIENCE, "the pre-labels"
    )
    open_tasks = [task for task in site.town.tasks if not task["annotations"]]
    version = manifest["version"]
    for task in open_tasks:
        assert [p["model_version"] for p in task["predictions"]].count(version) == 1
    assert before < site.check() <= before + 2  # one may have been published and not made live


@pytest.mark.parametrize("step", ["writing weights", "before the pointer"])
def test_a_job_killed_at_a_step_is_finished_from_the_same_labels(
    site: Site, step: str, ledger: Ledger
) -> None:
    killed_at(site, step, "job", ledger)


@pytest.mark.chaos
@pytest.mark.parametrize("step", STEPS)
def test_a_worker_killed_at_a_step_is_replaced_and_its_job_finished(
    site: Site, step: str, ledger: Ledger
) -> None:
    killed_at(site, step, "worker", ledger)


def kill_somebody(site: Site, draw: random.Random) -> bool:
    """SIGKILL the running job's process, or its worker too; False if nothing runs."""
    told = site.board.progress(site.key)
    worker = site.child("worker").process
    if told is None or worker is None or worker.poll() is not None:
        return False
    if draw.random() < 0.2:
        worker.kill()
    with suppress(ProcessLookupError):
        os.kill(int(told["worker"].rpartition(":")[2]), signal.SIGKILL)
    return True


@pytest.mark.chaos
@pytest.mark.timeout(900)
def test_random_kills_lose_nothing(site: Site, ledger: Ledger) -> None:
    """At most two deaths a training, which is what is forgiven; for ten minutes at most."""
    draw, kills, longest, rounds = random.Random(SEED), 0, 0.0, 0
    ends = time.monotonic() + 600
    while kills < KILLS and time.monotonic() < ends:
        rounds += 1
        site.town.answer(8)
        last = 0.0
        for _ in range(2):
            site.until(lambda: site.board.progress(site.key) or site.learnt(), PATIENCE, "a job")
            time.sleep(draw.uniform(0, 2.5))
            if kill_somebody(site, draw):
                kills, last = kills + 1, time.monotonic()
                time.sleep(LIFE + 0.5)  # until its death can be known
        site.until(site.learnt, PATIENCE, "learning after random kills")
        longest = max(longest, time.monotonic() - last) if last else longest
        site.check()
    note = f"{rounds} trainings, seed {SEED}"
    ledger.tell("kill -9 at random moments", kills, longest, note)
    assert kills > 0
    assert longest < 120
