"""The console in a real Chromium: signing in, looking at each page as people of all kinds do."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from shutil import which
from typing import Any, Final

from playwright.sync_api import Browser, ConsoleMessage, Page, sync_playwright

from cli.services import read_environment
from tests.end_to_end.backend import RunningBackend

FLAGS: Final = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]

#: Where scripts/install-axe puts it.
AXE: Final = Path(__file__).parents[2] / ".cache" / "axe-core" / "axe-4.14.1.min.js"

#: Width and height of the windows that each page must suit.
WIDE, NARROW = (1280, 860), (390, 844)

#: What axe calls worth mending before anything else; nothing milder is let pass either.
RULES: Final = "axe.run(document, {resultTypes: ['violations']})"


@dataclass
class ConsoleBrowser:
    """A tab that is signed in, and everything that went wrong in it.

    Attributes:
        tab: the tab.
        url: the backend's address.
        artefacts: folder for screenshots.
        wrong: errors and warnings of the browser's console, dialogs, uncaught exceptions.
    """

    tab: Page
    url: str
    artefacts: Path
    wrong: list[str] = field(default_factory=list)

    def open(self, path: str) -> None:
        """Go to a page below /console."""
        self.tab.goto(f"{self.url}/console{path}")

    def check(self, name: str) -> None:
        """Look at the page that is open: narrow and wide, light and dark; keep the screenshots.

        Raises:
            AssertionError: axe finds a violation, the page is wider than the window, or something
                stood in the browser's console.
        """
        for scheme in ("light", "dark"):
            self.tab.emulate_media(color_scheme=scheme)
            for width, height in (WIDE, NARROW):
                self.tab.set_viewport_size({"width": width, "height": height})
                self.tab.wait_for_timeout(300)
                where = f"{name} at {width} px, {scheme}"
                file = self.artefacts / f"console-{name}-{width}-{scheme}.png"
                self.tab.screenshot(path=file, full_page=True)
                self._fits(where)
                self._accessible(where)
        self.tab.emulate_media(color_scheme="light")
        self.tab.set_viewport_size({"width": WIDE[0], "height": WIDE[1]})
        assert self.wrong == [], name

    def _fits(self, where: str) -> None:
        root = "document.documentElement"
        over = self.tab.evaluate(f"{root}.scrollWidth - {root}.clientWidth")
        assert over <= 0, f"{where}: {over} px wider than the window"

    def _accessible(self, where: str) -> None:
        self.tab.evaluate(AXE.read_text(encoding="utf-8"))
        found: list[dict[str, Any]] = self.tab.evaluate(RULES)["violations"]
        told = [f"{one['impact']} {one['id']}: {one['nodes'][0]['html']}" for one in found]
        assert told == [], where

    def numbers(self, selector: str) -> list[float]:
        """The numbers in an element's text, none if it is not there."""
        if not self.tab.locator(selector).count():
            return []
        return [float(one) for one in re.findall(r"[\d.]+", self.tab.inner_text(selector))]


@contextmanager
def chromium() -> Iterator[Browser]:
    """The browser of this machine."""
    program = which("chromium") or which("chromium-browser") or which("google-chrome")
    assert program, "no Chromium on PATH: scripts/install-chromium brings Debian's"
    assert AXE.exists(), "no axe-core: scripts/install-axe brings it"
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=FLAGS)
        try:
            yield browser
        finally:
            browser.close()


def signed_in(browser: Browser, backend: RunningBackend, artefacts: Path) -> ConsoleBrowser:
    """A tab with a session, begun as a person begins it."""
    tab = browser.new_page(viewport={"width": WIDE[0], "height": WIDE[1]})
    tab.set_default_timeout(30_000)
    console = ConsoleBrowser(tab, backend.url, artefacts)

    def heard(message: ConsoleMessage) -> None:
        if message.type in ("error", "warning"):
            console.wrong.append(f"{message.type}: {message.text}")

    tab.on("console", heard)
    tab.on("pageerror", lambda error: console.wrong.append(str(error)))
    tab.on("dialog", lambda dialog: console.wrong.append(f"dialog: {dialog.message}"))
    console.open("")
    tab.fill("#password", read_environment(backend.home)["HRN_CONSOLE_PASSWORD"])
    tab.click("main button[type=submit]")
    tab.wait_for_url("**/console")
    return console
