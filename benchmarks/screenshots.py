"""Take the pictures of docs/images from a run's page, with Chromium and Poppler's pdftoppm:

phibuild build recipe=quickstart
python benchmarks/screenshots.py outputs/quickstart/latest/report.html docs/images
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "tests")]

from support.browser import Scheme, started, visit  # noqa: E402

SHOTS: tuple[tuple[str, Scheme, int, str | None], ...] = (
    ("report", "light", 1440, None),
    ("report-dark", "dark", 1440, "#tradeoff"),
    ("report-phone", "light", 390, None),
    ("report-phone-dark", "dark", 390, "#matrix"),
)
"""Name, colours, width, and the part of the page (None: its top)."""
PAPER = "report-print"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("page", type=Path)
    parser.add_argument("folder", type=Path)
    arguments = parser.parse_args()
    arguments.folder.mkdir(parents=True, exist_ok=True)
    with started() as browser:
        for name, scheme, width, part in SHOTS:
            with visit(browser, arguments.page, scheme=scheme, width=width) as one:
                one.draw_all()
                if part:
                    one.page.locator(part).evaluate("one => one.scrollIntoView()")
                one.page.wait_for_timeout(300)
                one.page.screenshot(path=arguments.folder / f"{name}.png")
        with visit(browser, arguments.page) as one:
            one.page.wait_for_function("typeof vegaEmbed === 'function'")
            with tempfile.NamedTemporaryFile(suffix=".pdf") as pdf:
                one.page.pdf(path=pdf.name, prefer_css_page_size=True)
                words = ["pdftoppm", "-png", "-r", "75", "-f", "1", "-singlefile", pdf.name]
                subprocess.run([*words, arguments.folder / PAPER], check=True)


if __name__ == "__main__":
    main()
