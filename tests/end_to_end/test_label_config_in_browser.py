"""Label configs that we write, in the real editor: all on one screen, one key deepens an answer."""

import re
from collections.abc import Iterator
from pathlib import Path
from shutil import which
from typing import Any

import pytest
from PIL import Image
from playwright.sync_api import Locator, Page, expect, sync_playwright

from cli.samples import ANIMALS
from hierarchy import LabelTree
from studio.annotations import Label, read_task
from studio.label_config import LabelConfig, parse_label_config
from studio.label_config_writer import (
    MAX_SHOWN,
    choices_config,
    choose_form,
    label_config,
    most_shown,
    path_separator,
    taxonomy_config,
)
from studio.predictions import prediction
from tests.end_to_end.label_studio import RunningLabelStudio
from tests.end_to_end.test_loop_in_browser import FLAGS

pytestmark = [pytest.mark.slow, pytest.mark.label_studio, pytest.mark.browser]

#: Ragged, one name under two parents, names with marks in them.
TREE = LabelTree.from_paths(
    [
        *(("Fruit", "Apple", kind) for kind in ("Granny-Smith", "Pink-Lady", "Royal-Gala")),
        ("Fruit", "Pear", "Anjou"),
        ("Fruit", "Banana"),
        ("Packages", "Juice", "Apple"),
        ("Packages", "Milk / Cream"),
        ("Vegetables", "Tomato, red"),
        ("Vegetables", "<b>Leek</b>"),
    ]
)

COARSE = ("Fruit", "Apple")
DEEPER = ("Fruit", "Apple", "Pink-Lady")

#: Windows, in pixels.
WINDOWS = [(1280, 800), (1024, 700)]

#: Sides of the photos, in pixels.
SHAPES = {"tall": (900, 1800), "wide": (1800, 800)}


class Project:
    """A project with a tall and a wide photo, each with a coarse pre-label."""

    def __init__(
        self,
        studio: RunningLabelStudio,
        xml: str,
        photos: list[Path],
        path: tuple[str, ...] = COARSE,
    ) -> None:
        self.studio = studio
        self.config: LabelConfig = parse_label_config(xml)
        self.number = studio.create_project("Label config", xml)
        tasks = studio.upload(self.number, photos)
        self.tasks = dict(zip(SHAPES, tasks, strict=True))
        client = studio.client()
        row = prediction(self.config, path, score=0.4, version="v1")
        client.import_predictions(self.number, [{"task": task, **row} for task in tasks])
        client.update_project(self.number, {"model_version": "v1"})

    def open(self, page: Page, shape: str, window: tuple[int, int]) -> None:
        page.set_viewport_size({"width": window[0], "height": window[1]})
        page.goto(f"{self.studio.url}/projects/{self.number}/data?task={self.tasks[shape]}")
        expect(page.get_by_role("button", name="Submit")).to_be_visible()

    def only_label(self, shape: str) -> Label:
        task = self.studio.client().task(self.tasks[shape])
        (label,) = read_task(task, self.config).labels
        return label


@pytest.fixture(scope="module")
def photos(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """A tall and a wide photo, cut from a square one."""
    source = shared / "data/grocery/train/Fruit/Apple/Golden-Delicious/Golden-Delicious_001.jpg"
    folder = tmp_path_factory.mktemp("photos")
    files = []
    with Image.open(source) as photo:
        for shape, (width, height) in SHAPES.items():
            longest = max(width, height)
            left, top = (longest - width) // 2, (longest - height) // 2
            cut = photo.resize((longest, longest)).crop((left, top, left + width, top + height))
            files.append(folder / f"{shape}.jpg")
            cut.save(files[-1])
    return files


@pytest.fixture(scope="module")
def taxonomy(label_studio: RunningLabelStudio, photos: list[Path]) -> Project:
    return Project(label_studio, taxonomy_config(TREE), photos)


@pytest.fixture(scope="module")
def cascade(label_studio: RunningLabelStudio, photos: list[Path]) -> Project:
    return Project(label_studio, choices_config(TREE), photos)


@pytest.fixture(scope="module")
def page(label_studio: RunningLabelStudio) -> Iterator[Page]:
    """Chromium, signed in to Label Studio."""
    program = which("chromium") or which("chromium-browser") or which("google-chrome")
    assert program, "no Chromium on PATH: scripts/install-chromium brings Debian's"
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=FLAGS)
        tab = browser.new_page()
        tab.set_default_timeout(30_000)
        tab.goto(f"{label_studio.url}/user/login/")
        tab.fill("input[name=email]", label_studio.user)
        tab.fill("input[name=password]", label_studio.password)
        tab.click("button[type=submit]")
        tab.wait_for_url(re.compile(r"/(projects)?/?(\?.*)?$"))
        yield tab
        browser.close()


#: Whether all of a part is in the window and above the bar with the Submit button; of a picture,
#: that it is loaded, whole and large enough to judge.
SEEN = """
(selector) => {
  const part = document.querySelector(selector);
  const submit = [...document.querySelectorAll("button")].find((b) => b.innerText == "Submit");
  if (!part || !submit) return false;
  const box = part.getBoundingClientRect(), bar = submit.getBoundingClientRect();
  const inside = box.width > 0 && box.left >= 0 && box.right <= innerWidth
    && box.top >= 0 && box.bottom <= bar.top && bar.bottom <= innerHeight;
  if (part.tagName != "IMG") return inside;
  const stretched = (box.width / box.height) / (part.naturalWidth / part.naturalHeight);
  return inside && Math.abs(stretched - 1) < 0.02 && box.width >= 200;
}
"""

PICTURE = ".hrn-image img"


def wait_until_seen(page: Page, *parts: str) -> None:
    """Return once all of each part (a selector) is on the screen; raise if it never is."""
    for part in parts:
        page.wait_for_function(SEEN, arg=part, timeout=15_000)


def box(page: Page, name: str) -> Locator:
    """The visible box of a choice."""
    return page.locator(f'.hrn-labels input[name="{name}"]:visible')


def submit(page: Page, how: Any) -> None:
    with page.expect_response(
        lambda reply: "/annotations" in reply.url and reply.request.method == "POST"
    ) as reply:
        how()
    assert reply.value.ok


@pytest.mark.parametrize("window", WINDOWS, ids=str)
@pytest.mark.parametrize("shape", SHAPES)
def test_picture_and_taxonomy_are_on_the_screen_together(
    page: Page, taxonomy: Project, shape: str, window: tuple[int, int], artefacts: Path
) -> None:
    taxonomy.open(page, shape, window)
    chip = page.locator(".ant-select-selection-item-content")
    expect(chip).to_have_text(path_separator(TREE.names).join(COARSE))
    wait_until_seen(page, PICTURE, ".hrn-labels .ant-select-selection-item-content")
    page.wait_for_timeout(500)  # the picture's fade-in
    page.screenshot(path=artefacts / f"taxonomy-{shape}-{window[0]}.png")


@pytest.mark.parametrize("window", WINDOWS, ids=str)
@pytest.mark.parametrize("shape", SHAPES)
def test_picture_and_cascade_are_on_the_screen_together(
    page: Page, cascade: Project, shape: str, window: tuple[int, int], artefacts: Path
) -> None:
    cascade.open(page, shape, window)
    expect(box(page, "Apple")).to_be_checked()
    wait_until_seen(page, PICTURE, ".hrn-labels")
    page.wait_for_timeout(500)
    page.screenshot(path=artefacts / f"cascade-{shape}-{window[0]}.png")


def test_one_key_deepens_a_coarse_pre_label(page: Page, cascade: Project) -> None:
    cascade.open(page, "tall", WINDOWS[0])
    expect(box(page, "Apple")).to_be_checked()
    hint = page.locator(".hrn-labels label:visible", has_text="Pink-Lady").locator("sup")
    page.keyboard.press(hint.inner_text().strip("[]"))
    expect(box(page, "Pink-Lady")).to_be_checked()
    submit(page, lambda: page.keyboard.press("Control+Enter"))
    label = cascade.only_label("tall")
    assert label.target is not None
    assert cascade.config.tree.path(label.target) == DEEPER
    assert label.origin == "prediction-changed"
    assert label.note == ""


#: As many lines at once as `auto` takes for a cascade.
FULL = LabelTree.from_paths(
    [
        *((f"Top {number}",) for number in range(7)),
        *(("Top 6", f"Middle {number}") for number in range(7)),
        *(("Top 6", "Middle 6", f"Leaf {number}") for number in range(MAX_SHOWN - 14)),
    ]
)


@pytest.mark.parametrize(
    ("tree", "path"),
    [
        (LabelTree.from_paths(list(ANIMALS)), ("Mammal", "Cat family", "Lion")),
        (FULL, ("Top 6", "Middle 6", "Leaf 0")),
    ],
    ids=["demo", "full"],
)
def test_what_auto_chooses_fits_the_screen(
    page: Page,
    label_studio: RunningLabelStudio,
    photos: list[Path],
    artefacts: Path,
    tree: LabelTree,
    path: tuple[str, ...],
) -> None:
    """The demo's 44 labels, and the most lines that are thought to have room."""
    chosen = choose_form(tree)
    assert chosen.form == "choices"
    project = Project(label_studio, label_config(tree, chosen.form), photos, path)
    project.open(page, "tall", WINDOWS[0])
    expect(box(page, path[-1])).to_be_checked()
    wait_until_seen(page, PICTURE, ".hrn-labels")
    page.wait_for_timeout(500)
    page.screenshot(path=artefacts / f"auto-{most_shown(tree)}-lines.png")
    other = tree.names[tree.children[tree.index(path[:-1])][-1]]
    hint = page.locator(".hrn-labels label:visible", has_text=other).locator("sup")
    page.keyboard.press(hint.inner_text().strip("[]"))
    submit(page, lambda: page.keyboard.press("Control+Enter"))
    label = project.only_label("tall")
    assert label.target is not None
    assert project.config.tree.path(label.target) == (*path[:-1], other)


def test_another_top_leaves_nothing_of_the_levels_it_hides(page: Page, cascade: Project) -> None:
    cascade.open(page, "wide", WINDOWS[0])
    expect(box(page, "Apple")).to_be_checked()
    box(page, "Vegetables").check()
    expect(box(page, "Apple")).to_have_count(0)
    box(page, "Tomato, red").check()
    submit(page, page.get_by_role("button", name="Submit").click)
    label = cascade.only_label("wide")
    assert label.target is not None
    assert cascade.config.tree.path(label.target) == ("Vegetables", "Tomato, red")
    assert label.note == ""


def test_a_name_with_the_usual_separator_is_stored_whole(page: Page, taxonomy: Project) -> None:
    taxonomy.open(page, "wide", WINDOWS[0])
    page.locator(".ant-select-selection-item-remove").click()
    page.locator(".ant-select").first.click()
    page.get_by_placeholder("Search").fill("Cream")
    row = page.locator(".ant-select-tree-treenode", has_text="Milk / Cream").last
    row.locator(".ant-select-tree-checkbox").click()
    page.keyboard.press("Escape")
    submit(page, page.get_by_role("button", name="Submit").click)
    label = taxonomy.only_label("wide")
    assert label.target is not None
    assert taxonomy.config.tree.path(label.target) == ("Packages", "Milk / Cream")
    assert label.note == ""
