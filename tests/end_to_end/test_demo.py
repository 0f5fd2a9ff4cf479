"""`hrn demo` as a person starts it: one command, and what it tells is true."""

import contextlib
import re
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import requests

from cli.demo import PLAIN, begin_with
from tests.end_to_end.backend import HRN
from tests.end_to_end.campaign import Campaign
from tests.end_to_end.label_studio import free_port
from tests.end_to_end.shop import Annotator

pytestmark = [pytest.mark.label_studio, pytest.mark.slow]

#: Seconds for Label Studio's boot, the uploads and the first training.
READY = 240

#: Classes of the small folder that it is given, and photos of each.
CLASSES, PHOTOS = ("Apple/Golden-Delicious", "Apple/Granny-Smith", "Banana", "Kiwi", "Lemon"), 8


class Demo:
    """A running `hrn demo` and everything that it prints."""

    def __init__(self, home: Path, data: Path) -> None:
        self.home = home
        self.output = home.parent / "demo.log"
        ports = ("--port", str(free_port()), "--backend-port", str(free_port()))
        with self.output.open("wb") as output:
            self.process = subprocess.Popen(
                [HRN, "--home", str(home), "demo", "--data", str(data), *ports],
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def text(self) -> str:
        """What it has printed so far."""
        return self.output.read_text(encoding="utf-8", errors="replace")

    def wait_until_ready(self) -> None:
        """Return once it says that it is ready."""
        ends = time.monotonic() + READY
        while "Ready after" not in self.text():
            assert self.process.poll() is None, f"hrn demo ended\n{self.text()}"
            assert time.monotonic() < ends, f"not ready in {READY} s\n{self.text()}"
            time.sleep(0.5)

    def told(self, what: str) -> str:
        """What it prints beside a word."""
        found = re.search(rf"^ +{what} +(\S+)$", self.text(), re.MULTILINE)
        assert found is not None, self.text()
        return found[1]

    def stop(self) -> None:
        """Ctrl-C."""
        self.process.send_signal(signal.SIGINT)
        self.process.wait(60)

    def alive(self) -> list[int]:
        """Processes that were started for its folder, by command line or environment."""
        found = []
        for process in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):  # it has ended meanwhile
                told = (process / "cmdline").read_bytes() + (process / "environ").read_bytes()
                if str(self.home).encode() in told:
                    found.append(int(process.name))
        return found


@pytest.fixture(scope="module")
def demo(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Demo]:
    """One demo for this module, of a few real photos."""
    folder = tmp_path_factory.mktemp("demo")
    for name in CLASSES:
        source = shared / "data" / "grocery" / "train" / "Fruit" / name
        target = folder / "photos" / "Fruit" / name
        target.mkdir(parents=True)
        for photo in sorted(source.glob("*.jpg"))[:PHOTOS]:
            (target / photo.name).symlink_to(photo)
    running = Demo(folder / "home", folder / "photos")
    try:
        running.wait_until_ready()
        yield running
    finally:
        if running.process.poll() is None:
            running.stop()


def _sign_in(page: str, user: str, password: str) -> int:
    with requests.Session() as session:
        session.get(page, timeout=30)
        form = {
            "email": user,
            "password": password,
            "csrfmiddlewaretoken": session.cookies["csrftoken"],
        }
        reply = session.post(
            page, data=form, headers={"Referer": page}, timeout=30, allow_redirects=False
        )
        return reply.status_code


def test_it_begins_with_plain_images_that_have_a_pre_label(campaign: Campaign) -> None:
    """On the project of the campaign, where pre-labels are shown."""
    parts, studio = campaign.backend.parts(), campaign.studio
    (key,) = [one.key for one in parts.store.projects() if one.number == campaign.project]
    version = parts.store.current(key)
    assert version is not None
    campaign.backend.until(lambda: parts.board.refreshed(key) == version, 120, "its pre-labels")
    plain = {photo.task for photo in campaign.open[::2]}
    begin_with(parts, key, plain, version)
    shown = {
        task["id"]: row
        for task in studio.client().tasks(campaign.project, unlabelled_only=True)
        for row in task["predictions"]
        if row["model_version"] == version
    }
    first = sorted(shown, key=lambda task: float(shown[task]["score"]))
    labelled = {task for task in plain if shown.get(task, {}).get("result")}
    begun = first[: min(PLAIN, len(labelled))]
    assert begun
    assert set(begun) <= labelled
    task = Annotator(studio).next_task(campaign.project)
    assert task["id"] == begun[0]
    assert [row["result"] for row in task["predictions"]] == [shown[begun[0]]["result"]]


def test_the_password_that_is_told_opens_label_studio_and_another_does_not(demo: Demo) -> None:
    """302 leads on to the projects, 200 shows the form again."""
    address = demo.told("Label Studio").split("/projects")[0]
    page, user = f"{address}/user/login/", demo.told("user")
    assert _sign_in(page, user, demo.told("password")) == 302
    assert _sign_in(page, user, "wrong") == 200


def test_a_version_is_live_and_open_tasks_carry_its_answers(demo: Demo) -> None:
    """What the four hints of the demo rest on."""
    status = subprocess.run(
        [HRN, "--home", str(demo.home), "status"],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    ).stdout
    assert re.search(r"\bv[0-9]+\b", status), status
    assert "failed" not in status, status


def test_ctrl_c_ends_everything_that_it_started(demo: Demo) -> None:
    """Last, since it ends the demo."""
    assert len(demo.alive()) > 4  # itself, Label Studio, Redis, a server and a worker
    demo.stop()
    assert demo.alive() == []
    assert demo.process.returncode == 0, demo.text()
    assert "Traceback" not in demo.text()
