"""A real browser for the report's page: Chromium without a window; what it asks for is recorded."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from playwright.sync_api import Browser, BrowserContext, Page, sync_playwright

_NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
Scheme = Literal["light", "dark"]


def chromium() -> str | None:
    """Return the path of a Chromium, None if there is none here."""
    return next((path for name in _NAMES if (path := shutil.which(name))), None)


@contextmanager
def started() -> Iterator[Browser]:
    """Give a running browser."""
    with sync_playwright() as playwright:
        # As root, as in many a container, Chromium's sandbox does not start.
        browser = playwright.chromium.launch(executable_path=chromium(), args=["--no-sandbox"])
        yield browser
        browser.close()


@dataclass
class Visit:
    """A page that was opened, and what went on in it: what it asked for besides itself, errors of
    its scripts, dialogs (which only a script that should not have run would open)."""

    page: Page
    requests: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    dialogs: list[str] = field(default_factory=list)

    def ready(self) -> None:
        """Wait until the page answers."""
        self.page.wait_for_selector("#filters:not([hidden])")

    def draw_all(self) -> int:
        """Scroll through the page until every plot that is shown is drawn; return how many."""
        self.page.evaluate("""async () => {
            for (const plot of document.querySelectorAll('.plot:not([hidden])')) {
                plot.scrollIntoView({behavior: 'instant'});
                while (!plot.querySelector('.canvas svg')) {
                    await new Promise((go) => setTimeout(go, 20));
                }
            }
            scrollTo({top: 0, behavior: 'instant'});
        }""")
        return self.page.locator(".plot:not([hidden]) .canvas svg").count()

    def check(self) -> None:
        """Fail if anything went on that should not."""
        assert (self.requests, self.errors, self.dialogs) == ([], [], [])


@contextmanager
def visit(
    browser: Browser, path: Path, *, scheme: Scheme = "light", width: int = 1440,
    fragment: str = "", scripts: bool = True,
) -> Iterator[Visit]:  # fmt: skip
    """Open a file in the browser; afterwards check that it asked for nothing and failed nowhere."""
    context: BrowserContext = browser.new_context(
        viewport={"width": width, "height": 900},
        color_scheme=scheme,
        java_script_enabled=scripts,
        reduced_motion="reduce",
    )
    context.set_default_timeout(120_000)
    found = Visit(context.new_page())
    address = path.resolve().as_uri()
    _listen(found, lambda url: url.split("#")[0] == address or url == "data:,")
    found.page.goto(address + fragment)
    if scripts:
        found.ready()
    try:
        yield found
        found.check()
    finally:
        context.close()


def _listen(found: Visit, own: Callable[[str], bool]) -> None:
    page = found.page

    def asked(url: str) -> None:
        if not own(url):
            found.requests.append(url)

    page.on("request", lambda request: asked(request.url))
    page.on("pageerror", lambda error: found.errors.append(str(error)))
    page.on(
        "console",
        lambda said: found.errors.append(said.text) if said.type == "error" else None,
    )

    def dialog(opened: object) -> None:
        found.dialogs.append(str(opened))
        opened.dismiss()  # type: ignore[attr-defined]

    page.on("dialog", dialog)
