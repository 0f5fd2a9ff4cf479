"""The console driven in a real browser, on the real stack, with names that would do harm."""

import random
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from playwright.sync_api import expect

from hierarchy import LabelTree
from studio.label_config_writer import taxonomy_config
from tests.end_to_end.backend import RunningBackend
from tests.end_to_end.campaign import evenly, photos, taxonomy
from tests.end_to_end.console import ConsoleBrowser, chromium, signed_in
from tests.end_to_end.label_studio import RunningLabelStudio
from worker.queue import Board

pytestmark = [pytest.mark.slow, pytest.mark.label_studio, pytest.mark.browser]

NASTY = "<script>alert(1)</script>"

#: Photos answered before the first training; too few for the policy's own to begin by number.
PHOTOS = 40

#: Classes that they are of.
CLASSES = 5


@dataclass(frozen=True)
class Nasty:
    """A project whose title, one of whose labels and one of whose files are markup.

    Attributes:
        number: in Label Studio.
        key: in our store.
        board: its wishes and runs.
    """

    number: int
    key: str
    board: Board

    def path(self, page: str) -> str:
        """Of one of its pages."""
        return f"/projects/{self.key}/{page}"


@pytest.fixture(scope="module")
def project(
    label_studio: RunningLabelStudio,
    backend: RunningBackend,
    shared: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Nasty:
    known = [
        photo for photo in photos(shared / "data" / "grocery" / "train") if len(photo.path) > 2
    ]
    classes = sorted({photo.path for photo in known})[:CLASSES]
    some = [photo for photo in known if photo.path in classes]
    chosen = evenly(some, PHOTOS, random.Random(0))
    paths = sorted({photo.path for photo in chosen} | {(NASTY, f"{NASTY} leaf")})
    number = label_studio.create_project(NASTY, taxonomy_config(LabelTree.from_paths(paths)))
    folder = tmp_path_factory.mktemp("photos")
    names = [folder / f"{NASTY.replace('/', '')}-{at:03d}.jpg" for at in range(PHOTOS)]
    for name, photo in zip(names, chosen, strict=True):
        name.symlink_to(photo.file)
    tasks = label_studio.upload(number, names)
    backend.hrn("connect", "--project", str(number))
    client = label_studio.client()
    for task, photo in zip(tasks[1:], chosen[1:], strict=True):
        client.create_annotation(task, taxonomy(photo.path))
    client.create_annotation(tasks[0], taxonomy(paths[0] if NASTY in paths[0] else (NASTY,)))
    rows = backend.json("status")["projects"]
    key = next(row["key"] for row in rows if row["project"] == number)
    board = backend.parts().board

    def learnt() -> bool:
        return any(run["state"] == "published" for run in board.runs(key)) and not board.wishes(key)

    backend.until(learnt, 180, "a first version")
    return Nasty(number, key, board)


@pytest.fixture(scope="module")
def console(backend: RunningBackend, project: Nasty, artefacts: Path) -> Iterator[ConsoleBrowser]:
    """Chromium, signed in."""
    with chromium() as browser:
        yield signed_in(browser, backend, artefacts)


def test_the_projects_page_tells_how_each_stands(console: ConsoleBrowser, project: Nasty) -> None:
    console.open("")
    card = console.tab.locator(f"article[aria-labelledby='p-{project.key}']")
    expect(card.get_by_role("heading")).to_have_text(NASTY)
    # A training that began before the last answer was given has learnt from fewer than all.
    expect(card).to_contain_text(re.compile(r"Learning from [1-9]\d labels"))
    console.tab.get_by_role("button", name="Check everything").click()
    server = console.tab.locator("section[aria-labelledby='server']")
    expect(server).to_contain_text("All is well", timeout=60_000)
    console.check("projects")


def test_the_page_is_used_by_keyboard(console: ConsoleBrowser) -> None:
    console.open("")
    console.tab.keyboard.press("Tab")
    focus = "document.activeElement.textContent"
    assert console.tab.evaluate(focus) == "Skip to the content"
    console.tab.keyboard.press("Enter")
    assert console.tab.evaluate("document.activeElement.id") == "main"
    landmarks = [console.tab.get_by_role(role).count() for role in ("banner", "main")]
    assert landmarks == [1, 1]


def test_a_training_is_started_and_watched_to_its_end(
    console: ConsoleBrowser, project: Nasty
) -> None:
    tab, before = console.tab, len(project.board.runs(project.key))
    console.open(project.path("training"))
    tab.get_by_label("As the server is set up").check()
    tab.get_by_label("Even if no label is new").check()
    tab.get_by_label("Note").fill(NASTY)
    tab.get_by_role("button", name="Start training").click()
    asked = tab.locator("[data-part=asked]")
    expect(asked).to_contain_text(re.compile("The training (is in the queue|runs)"))
    seen: set[tuple[str, str]] = set()
    curve, looked_at, ends = 0, False, time.monotonic() + 180
    while time.monotonic() < ends and len(project.board.runs(project.key)) == before:
        stage = tab.locator("[data-text=stage]")
        if stage.count():
            with_percent = tab.locator("[data-text=percent_text]")
            seen.add((stage.inner_text(timeout=2000), with_percent.inner_text(timeout=2000)))
            curve = max(curve, tab.locator("#loss .uplot:visible").count())
            if curve and not looked_at:
                tab.screenshot(path=console.artefacts / "console-training-live.png", full_page=True)
                looked_at = True
        tab.wait_for_timeout(200)
    assert "Fitting the head" in {stage for stage, _ in seen}, seen  # the others are too short
    assert len(seen) >= 3, seen
    assert curve == 1
    past = tab.locator("section[aria-labelledby='past']")
    expect(past).to_contain_text(f"asked in the console: {NASTY}")  # without a reload
    expect(tab.locator("[data-text=stage]")).to_have_count(0)
    expect(asked).to_contain_text("The training has ended, ")  # nor does it say that it waits
    console.check("training")


def test_a_training_is_cancelled_within_seconds(console: ConsoleBrowser, project: Nasty) -> None:
    tab, board, key = console.tab, project.board, project.key
    console.open(project.path("training"))
    tab.get_by_label("Fine-tune the backbone").check()
    tab.get_by_role("button", name="Start training").click()
    expect(tab.locator("[data-text=stage]")).to_contain_text("Fine-tuning", timeout=120_000)
    tab.screenshot(path=console.artefacts / "console-training-tuning.png", full_page=True)
    runs, clicked = len(board.runs(key)), time.time()
    tab.get_by_role("button", name="Cancel training").click()
    past = tab.locator("section[aria-labelledby='past'] tbody tr").first
    expect(past).to_contain_text("cancelled", timeout=30_000)
    asked = tab.locator("[data-part=asked]")
    expect(asked).to_contain_text("The training has ended, cancelled: asked to stop.")
    took = board.runs(key)[0]["ended_at"] - clicked
    print(f"cancelled after {took:.1f} s")
    assert len(board.runs(key)) == runs + 1
    assert took < 15  # 5 s are promised, on a machine that does nothing else
    expect(tab.get_by_role("button", name="Cancel training")).to_have_count(0)
    assert console.wrong == []


def test_who_signs_out_is_out(
    console: ConsoleBrowser, project: Nasty, backend: RunningBackend
) -> None:
    browser = console.tab.context.browser
    assert browser is not None
    other = signed_in(browser, backend, console.artefacts)  # a browser profile of its own
    other.open(project.path("training"))
    second = other.tab
    second.get_by_role("button", name="Sign out").click()
    expect(second.get_by_role("heading", name="Sign in")).to_be_visible()
    second.go_back()
    expect(second.get_by_role("heading", name="Sign in")).to_be_visible()
    second.close()
