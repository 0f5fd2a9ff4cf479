"""The console's pages about versions in a real browser; going back changes what annotators see."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import FilePayload, expect

from tests.end_to_end.backend import RunningBackend
from tests.end_to_end.campaign import photos
from tests.end_to_end.console import ConsoleBrowser, chromium, signed_in
from tests.end_to_end.label_studio import RunningLabelStudio
from tests.end_to_end.test_console_in_browser import NASTY, Nasty, project

__all__ = ["project"]

pytestmark = [pytest.mark.slow, pytest.mark.label_studio, pytest.mark.browser]


@pytest.fixture(scope="module")
def open_task(label_studio: RunningLabelStudio, project: Nasty, shared: Path) -> int:
    """A task that nobody has answered."""
    photo = photos(shared / "data" / "grocery" / "test")[0]
    return label_studio.upload(project.number, [photo.file])[0]


@pytest.fixture(scope="module")
def console(
    backend: RunningBackend, project: Nasty, open_task: int, artefacts: Path
) -> Iterator[ConsoleBrowser]:
    """Chromium, signed in; the project has two versions, of which the newer is live."""
    words = ("--project", str(project.number))
    backend.hrn("train", *words, "--force", "--wait", status=None)
    backend.hrn("promote", *words, "v2")
    with chromium() as browser:
        yield signed_in(browser, backend, artefacts)


def next_task_shows(studio: RunningLabelStudio, number: int) -> set[str]:
    """Versions of the pre-labels that the annotator's next task carries."""
    with studio.session() as session:
        reply = session.get(f"{studio.url}/api/projects/{number}/next", timeout=30)
    reply.raise_for_status()
    return {str(row["model_version"]) for row in reply.json()["predictions"]}


def test_versions_are_compared_and_noted(console: ConsoleBrowser, project: Nasty) -> None:
    tab = console.tab
    console.open(project.path("versions"))
    card = tab.locator("section#v2")
    card.get_by_label("Note").fill(f"with flash {NASTY}")
    card.get_by_role("button", name="Keep note").click()
    expect(tab.locator("section#v2").get_by_label("Note")).to_have_value(f"with flash {NASTY}")
    console.check("versions")
    tab.get_by_role("button", name="Compare").click()
    expect(tab.get_by_role("heading", level=1)).to_have_text("v1 and v2")
    console.check("compare")


def test_a_version_is_downloaded(console: ConsoleBrowser, project: Nasty) -> None:
    console.open(project.path("versions"))
    with console.tab.expect_download() as found:
        console.tab.locator("section#v1").get_by_role("link", name="Download").click()
    assert Path(found.value.path()).stat().st_size > 10_000


def test_the_tree_is_walked_and_searched(console: ConsoleBrowser, project: Nasty) -> None:
    tab = console.tab
    console.open(project.path("tree"))
    console.check("tree")
    tab.get_by_role("link", name=NASTY, exact=True).click()
    labels = tab.get_by_role("region", name="Labels", exact=True).last
    expect(labels).to_contain_text(f"{NASTY} leaf")
    tab.get_by_role("link", name="All labels").click()
    tab.get_by_role("link", name="See where labels are missing").click()
    expect(tab.get_by_label("Order")).to_have_value("labels")
    console.check("tree-missing")


def test_trust_is_previewed_and_kept(
    console: ConsoleBrowser, project: Nasty, backend: RunningBackend
) -> None:
    tab = console.tab
    console.open(project.path("trust"))
    expect(tab.locator("#chart-coverage .uplot")).to_be_visible()
    console.check("trust")
    tab.get_by_label("Target accuracy").fill("70")
    tab.get_by_role("button", name="Preview").click()
    expect(tab.get_by_role("heading", name="What would change")).to_be_visible()
    console.check("trust-preview")
    tab.get_by_role("button", name="Keep these settings").click()
    expect(tab.get_by_role("status").filter(has_text="Kept")).to_be_visible()
    kept = backend.parts().store.project(project.key)
    assert kept is not None
    assert kept.target_accuracy == 0.7


def test_a_task_and_a_picture_are_looked_at(
    console: ConsoleBrowser, project: Nasty, open_task: int, shared: Path
) -> None:
    tab = console.tab
    console.open(project.path("look"))
    tab.get_by_label("Number in Label Studio").fill(str(open_task))
    tab.get_by_role("button", name="Look").first.click()
    expect(tab.get_by_role("heading", name="Where it looked")).to_be_visible(timeout=60_000)
    console.check("look")
    photo = photos(shared / "data" / "grocery" / "test")[5]
    file = FilePayload(name=f"{NASTY}.jpg", mimeType="image/jpeg", buffer=photo.file.read_bytes())
    tab.set_input_files("#picture", files=file)
    tab.get_by_role("button", name="Look").last.click()
    expect(tab.locator("section.answer")).to_contain_text("alert(1)")
    assert console.wrong == []


def test_rolling_back_changes_what_the_next_task_shows(
    console: ConsoleBrowser,
    project: Nasty,
    label_studio: RunningLabelStudio,
    backend: RunningBackend,
) -> None:
    def shows(version: str) -> bool:
        return next_task_shows(label_studio, project.number) == {version}

    backend.until(lambda: shows("v2"), 90, "the next task with the live version's pre-label")
    console.open(project.path("versions"))
    console.tab.get_by_role("button", name="Roll back to v1").click()
    expect(console.tab.get_by_role("status").filter(has_text="v1 is live again")).to_be_visible()
    backend.until(lambda: shows("v1"), 60, "the next task with the earlier version's pre-label")
    console.check("rolled-back")


def test_a_project_is_disconnected_and_forgotten(
    console: ConsoleBrowser,
    project: Nasty,
    label_studio: RunningLabelStudio,
    backend: RunningBackend,
) -> None:
    """Last, since it ends the project here."""
    tab, client = console.tab, label_studio.client()
    assert client.known_backends(project.number)
    console.open(project.path("connection"))
    tab.get_by_text("Disconnect …").click()
    console.check("connection")
    tab.get_by_role("button", name=f"Disconnect {NASTY}").click()
    told = tab.get_by_role("status").filter(has_text="is disconnected")
    expect(told).to_contain_text("Its webhook is removed")
    assert client.known_backends(project.number) == []
    tab.get_by_role("link", name="Forget …").click()
    expect(tab.get_by_role("heading", level=1)).to_have_text(f"Forget {NASTY}?")
    console.check("forget")
    tab.get_by_role("button", name=f"Forget {NASTY}").click()
    told = tab.get_by_role("status").filter(has_text="is forgotten")
    expect(told).to_contain_text("Its labels are in Label Studio")
    assert backend.parts().store.project(project.key) is None
