"""SIGKILL at any moment: the work is finished later, by whoever is there, from the same labels."""

import os
import random
import signal
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest

from inference.manifest import Manifest
from tests.chaos.hurt import LIFE, STEPS
from tests.chaos.ledger import Ledger
from tests.chaos.site import SEED, Site, running
from tests.published import TREE, project
from tests.studio.configs import taxonomy_xml
from worker import jobs
from worker.order import Order
from worker.parts import Parts
from worker.queue import RedisError

pytestmark = pytest.mark.slow

#: Seconds that a wish may take on a busy machine, deaths included.
PATIENCE = 180.0

#: Random kills of a run.
KILLS = 200


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
    site.settle()
    before = site.check()
    site.town.open(6)
    site.hurt(step, who)
    site.town.answer(8)
    for _ in range(4):  # the gate may refuse a version, which then never comes to the pointer
        site.until(lambda: site.died or site.learnt(), PATIENCE, f"a death at {step}")
        with suppress(AssertionError):  # what follows a training, if that was all right
            site.until(lambda: site.died, 15, f"a death at {step}")
            break
        site.town.answer(8)
    assert site.died
    with ledger.recovery(f"kill -9 of a {who} at a named step", step):
        manifest = site.until(site.learnt, PATIENCE, f"learning after {step}")
    assert manifest.labels["labels"] == site.town.labels
    assert manifest.trained_through == through(site)
    version = site.store.current(site.key)  # not what was learnt, where the gate refused that

    def each_once() -> bool:
        open_tasks = [task["predictions"] for task in site.town.tasks if not task["annotations"]]
        return all([p["model_version"] for p in rows].count(version) == 1 for rows in open_tasks)

    site.until(each_once, PATIENCE, f"one pre-label of {version} for each open task")
    assert before < site.check() <= before + 5  # some are published and not made live


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


def kill_somebody(site: Site, key: str, draw: random.Random) -> str | None:
    """SIGKILL the process of the project's running job, at times its worker too; the job."""
    told = None
    with suppress(RedisError):  # a busy machine: as if nothing ran
        told = site.board.progress(key)
    if told is None:
        return None
    pid = int(told["worker"].rpartition(":")[2])
    with suppress(ProcessLookupError, FileNotFoundError):
        if draw.random() < 0.1:
            os.kill(parent_of(pid), signal.SIGKILL)
        os.kill(pid, signal.SIGKILL)
        return str(told["job"])
    return None


def parent_of(pid: int) -> int:
    """The worker that forked a job's process."""
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


class Campaign:
    """One project's share of the random kills: trainings, each with two deaths at most.

    More is not forgiven: what kills a training may be the training.
    """

    def __init__(self, site: Site, key: str, seed: int) -> None:
        self.site, self.key, self.draw = site, key, random.Random(seed)
        self.kills = self.rounds = 0
        self.longest = 0.0

    def round(self) -> None:
        """A training, killed twice, until its project has learnt from every answer."""
        site, key, died = self.site, self.key, 0.0
        self.rounds += 1
        site.town.answer(2)
        site.until(lambda: site.board.ask(Order(key, "by hand")), PATIENCE, "a Redis that answers")
        for _ in range(2):
            site.until(lambda: site.board.progress(key) or self.settled(), PATIENCE, "a job")
            time.sleep(self.draw.uniform(0, 1.2))
            if job := kill_somebody(site, key, self.draw):
                self.kills, died = self.kills + 1, time.monotonic()
                self.until_it_is_known(job)
        site.until(self.settled, PATIENCE, "the end of a training with random kills")
        self.longest = max(self.longest, time.monotonic() - died if died else 0.0)

    def until_it_is_known(self, job: str) -> None:
        """Its heart beats no more, its work is queued again; the next one may then be killed."""

        def buried() -> bool:
            told = self.site.board.progress(self.key)
            return told is None or told["job"] != job

        self.site.until(buried, LIFE + PATIENCE, "a death that is noticed")

    def settled(self) -> bool:
        """Nothing runs or waits, and the newest run is one that ended."""
        runs = self.site.board.runs(self.key)
        idle = self.site.board.state(self.key)[0] == "idle" and not self.site.board.progress(
            self.key
        )
        return bool(idle and runs and runs[0]["state"] != "died")


@pytest.fixture(scope="module")
def crowded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """Three projects, three workers."""
    roles = ["redis", *(f"worker-{number}" for number in (1, 2, 3)), "reconcile"]
    with running(tmp_path_factory.mktemp("site"), roles, train_every=1000) as made:
        made.until(lambda: len(made.board.workers()) == 3, 120, "three workers")
        yield made


def undisturbed(site: Site, home: Path) -> Manifest:
    """What a training in a new home, that nothing disturbs, has learnt from."""
    settings = replace(site.settings, home=home, redis_url=f"{site.settings.redis_url}?db=1")
    parts = Parts(settings)
    known = parts.store.register(project(site.town.url, xml=taxonomy_xml(TREE)))
    ended = jobs.train_once(Order(known.key, "undisturbed"), parts, "undisturbed")
    assert ended["state"] == "published"
    return parts.store.manifest(known.key, ended["version"])


@pytest.mark.chaos
@pytest.mark.timeout(1200)
def test_random_kills_lose_nothing(
    crowded: Site, tmp_path_factory: pytest.TempPathFactory, ledger: Ledger
) -> None:
    """200 deaths of jobs and workers; what was learnt is what an undisturbed training learns."""
    site = crowded
    campaigns = [Campaign(site, site.further(number).key, SEED + number) for number in (1, 2, 3)]
    site.town.answer(12)

    def go_on(campaign: Campaign) -> None:
        while sum(one.kills for one in campaigns) < KILLS:
            campaign.round()

    with ThreadPoolExecutor(len(campaigns)) as pool:
        list(pool.map(go_on, campaigns))
    quiet = undisturbed(site, tmp_path_factory.mktemp("quiet"))
    for campaign in campaigns:
        site.board.ask(Order(campaign.key, "the last answers"))
        manifest = site.until(
            lambda key=campaign.key: site.learnt(key),  # type: ignore[misc]
            PATIENCE,
            "learning from every answer",
        )
        for fact in ("labels", "trained_through", "tree"):
            assert getattr(manifest, fact) == getattr(quiet, fact)
        assert site.check(campaign.key) >= 1
        assert site.board.wishes(campaign.key) == []
        assert "failed" not in {run["state"] for run in site.board.runs(campaign.key)}
    kills = sum(one.kills for one in campaigns)
    longest = max(one.longest for one in campaigns)
    rounds = sum(one.rounds for one in campaigns)
    ledger.tell("kill -9 at random moments", kills, longest, f"{rounds} trainings, seed {SEED}")
    assert kills >= KILLS
    assert longest < 120
