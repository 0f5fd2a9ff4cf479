"""The annotator in a real browser: sees a pre-label, accepts it, deepens it, answers coarser."""

import re
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from shutil import which
from typing import Any

import pytest
from playwright.sync_api import Page, expect, sync_playwright

from studio.annotations import TaskLabels
from tests.end_to_end.campaign import Campaign, NodePath
from worker.training import read_labels

pytestmark = [pytest.mark.slow, pytest.mark.label_studio, pytest.mark.browser]

FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


@pytest.fixture(scope="module")
def page(campaign: Campaign) -> Iterator[Page]:
    """Chromium, signed in to Label Studio."""
    program = which("chromium") or which("chromium-browser") or which("google-chrome")
    assert program, "no Chromium on PATH: scripts/install-chromium brings Debian's"
    studio = campaign.studio
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=FLAGS)
        tab = browser.new_page(viewport={"width": 1280, "height": 800})
        tab.set_default_timeout(30_000)
        tab.goto(f"{studio.url}/user/login/")
        tab.fill("input[name=email]", studio.user)
        tab.fill("input[name=password]", studio.password)
        tab.click("button[type=submit]")
        tab.wait_for_url(re.compile(r"/(projects)?/?(\?.*)?$"))
        yield tab
        browser.close()


@pytest.fixture(scope="module")
def shown(campaign: Campaign) -> dict[int, NodePath]:
    """Open tasks whose pre-label names something, shallowest first."""
    version = campaign.status()["version"]

    def stored() -> dict[int, NodePath] | None:
        tasks = list(campaign.studio.client().tasks(campaign.project, unlabelled_only=True))
        rows = {
            task["id"]: [r for r in task["predictions"] if r["model_version"] == version]
            for task in tasks
        }
        if not all(rows.values()):
            return None
        named = {
            t: r[0]["result"][0]["value"]["taxonomy"][0] for t, r in rows.items() if r[0]["result"]
        }
        return {
            task: tuple(named[task]) for task in sorted(named, key=lambda task: len(named[task]))
        }

    return campaign.backend.until(stored, 120, "pre-labels of open tasks")


def open_task(page: Page, campaign: Campaign, task: int) -> None:
    page.goto(f"{campaign.studio.url}/projects/{campaign.project}/data?task={task}")
    expect(page.get_by_role("button", name="Submit")).to_be_visible()
    expect(page.locator(".ant-select-selection-item-content").first).to_be_visible()
    page.wait_for_timeout(1000)  # the editor may draw a task a second time


def expect_ticked(page: Page, name: str) -> None:
    """One chip stands there, whose path ends in that name.

    It is waited for: the editor draws a task more than once before it rests.
    """
    chips = page.locator(".ant-select-selection-item-content")
    expect(chips).to_have_text([re.compile(rf"(^|/ ){re.escape(name)}$")])


def row(page: Page, name: str) -> Any:
    """The line of the tree that bears a name."""
    title = page.locator(f'.ant-select-tree-node-content-wrapper[title="{name}"]')
    return page.locator(".ant-select-tree-treenode").filter(has=title).first


def tick(page: Page, path: NodePath) -> None:
    """Find a node as annotators do, by typing its name, and tick it.

    A click in the moment in which the search redraws the list is lost, as a person would see.
    """
    page.get_by_placeholder("Search").fill(path[-1])
    box = row(page, path[-1]).locator(".ant-select-tree-checkbox")
    for _ in range(3):
        box.click()
        with suppress(AssertionError):
            expect(box).to_have_class(re.compile("checkbox-checked"), timeout=2000)
            return
    raise AssertionError(f"{path[-1]} cannot be ticked")


def untick_all(page: Page) -> None:
    while page.locator(".ant-select-selection-item-remove").count():
        page.locator(".ant-select-selection-item-remove").first.click()


def submit(page: Page) -> None:
    page.keyboard.press("Escape")
    with page.expect_response(
        lambda reply: "/annotations" in reply.url and reply.request.method == "POST"
    ) as reply:
        page.get_by_role("button", name="Submit").click()
    assert reply.value.ok


def next_training_set(campaign: Campaign) -> dict[int, TaskLabels]:
    """What the next training would learn from, by task."""
    parts = campaign.backend.parts()
    project = parts.store.project(campaign.status()["key"])
    assert project is not None
    _, _, snapshot = read_labels(project, parts)
    return {task.task_id: task for task in snapshot.tasks}


def only_label(campaign: Campaign, task: int) -> tuple[NodePath, str | None]:
    """The path that the next training learns for a task, and where the answer came from."""
    (label,) = next_training_set(campaign)[task].labels
    assert label.target is not None
    return campaign.tree.paths[label.target], label.origin


def test_a_coarse_pre_label_is_seen_and_accepted(
    page: Page, campaign: Campaign, shown: dict[int, NodePath], artefacts: Path
) -> None:
    leaves = {campaign.tree.paths[leaf] for leaf in campaign.tree.leaves}
    task, path = next((t, p) for t, p in shown.items() if p not in leaves)
    open_task(page, campaign, task)
    expect_ticked(page, path[-1])
    page.wait_for_timeout(500)  # the picture's fade-in
    page.screenshot(path=artefacts / "pre-label.png")
    submit(page)
    assert only_label(campaign, task) == (path, "prediction")
    del shown[task]


def test_a_pre_label_is_changed_to_a_deeper_node(
    page: Page, campaign: Campaign, shown: dict[int, NodePath], artefacts: Path
) -> None:
    truth = {photo.task: photo.path for photo in campaign.open}
    task, path = next((t, p) for t, p in shown.items() if len(p) < len(truth[t]))
    open_task(page, campaign, task)
    expect_ticked(page, path[-1])
    page.locator(".ant-select").first.click()
    tick(page, truth[task])
    page.screenshot(path=artefacts / "deeper.png")
    submit(page)  # the coarse one may stay ticked beside it: the descendant is what is meant
    assert only_label(campaign, task) == (truth[task], "prediction-changed")
    del shown[task]


def test_a_pre_label_is_answered_coarser(
    page: Page, campaign: Campaign, shown: dict[int, NodePath], artefacts: Path
) -> None:
    task, path = next((t, p) for t, p in reversed(shown.items()) if len(p) > 1)
    open_task(page, campaign, task)
    expect_ticked(page, path[-1])
    untick_all(page)
    page.locator(".ant-select").first.click()
    tick(page, path[:1])
    page.screenshot(path=artefacts / "coarser.png")
    submit(page)
    # Label Studio forgets where an answer began once every tick was taken away.
    assert only_label(campaign, task) == (path[:1], "manual")
    del shown[task]


def test_the_answers_arrive_in_the_next_version(campaign: Campaign) -> None:
    learnt = len(next_training_set(campaign))
    assert learnt == len(campaign.given) + 3
    campaign.backend.until(
        lambda: campaign.learnt(learnt), 120, "a version with the browser's answers"
    )
