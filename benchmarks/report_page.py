"""What report.html costs: time, memory and size of writing it, and how soon a browser shows it, for
1,000 and 10,000 cells (each an artifact of its own, as no run has so many).

    python benchmarks/report_page.py [--json FILE]

Each page is written by a process of its own. Without a Chromium the browser's columns are empty.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tabulate import tabulate

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "tests")]

from support.browser import chromium, started  # noqa: E402

CELLS = (1_000, 10_000)
WRITE = """
import sys
from pathlib import Path
sys.path[:0] = [sys.argv[3]]
from phibuild.report.html.page import report_html
from support.made_reports import CELLS, made_report
import resource, time
report = made_report(int(sys.argv[1]) // CELLS)
before, started = time.process_time(), time.perf_counter()
text = report_html(report)
print(time.process_time() - before, time.perf_counter() - started,
      resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
Path(sys.argv[2]).write_text(text, encoding="utf-8")
"""
PAINT = """() => [
    performance.getEntriesByName('first-contentful-paint')[0].startTime,
    performance.getEntriesByType('navigation')[0].domComplete,
]"""
HEADERS = (
    "cells", "CPU s", "wall s", "peak MB", "page MB", "gzipped MB", "first paint ms", "answers ms",
    "filter ms",
)  # fmt: skip


def written(cells: int, path: Path) -> tuple[float, float, float]:
    """Write a page; return CPU seconds, wall seconds and the process's peak resident MB."""
    words = [sys.executable, "-c", WRITE, str(cells), str(path), str(ROOT / "tests")]
    done = subprocess.run(words, capture_output=True, text=True, check=True, cwd=ROOT)
    cpu, wall, peak = map(float, done.stdout.split())
    scale = 1 if sys.platform == "darwin" else 1024
    return cpu, wall, peak * scale / 1e6


def shown(path: Path) -> tuple[float | None, float | None, float | None]:
    """Return milliseconds to the first paint, until the page answers, and of a filter."""
    if chromium() is None:
        return None, None, None
    with started() as browser:
        page = browser.new_page(viewport={"width": 1440, "height": 900})
        before = time.perf_counter()
        page.goto(path.as_uri())
        page.wait_for_selector("#filters:not([hidden])")
        answers = 1000 * (time.perf_counter() - before)
        paint, _ = page.evaluate(PAINT)
        before = time.perf_counter()
        page.select_option("select[name=precision]", "int8")
        page.inner_text("#matched")
        return paint, answers, 1000 * (time.perf_counter() - before)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--json", metavar="FILE", help="write the figures as JSON too")
    arguments = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        written(20, Path(folder) / "first.html")  # makes the plots' script, if it is not there
        for cells in CELLS:
            path = Path(folder) / f"{cells}.html"
            costs = written(cells, path)
            gzipped = subprocess.run(["gzip", "-c", path], capture_output=True, check=True).stdout
            sizes = os.path.getsize(path) / 1e6, len(gzipped) / 1e6
            rows.append((cells, *costs, *sizes, *shown(path)))
    print(tabulate(rows, HEADERS, floatfmt=".2f", tablefmt="github"))
    if arguments.json:
        found = [dict(zip(HEADERS, row, strict=True)) for row in rows]
        Path(arguments.json).write_text(json.dumps(found, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
