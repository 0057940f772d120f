"""The whole of a report on a terminal."""

from __future__ import annotations

from collections.abc import Iterator

from rich.console import RenderableType
from rich.text import Text

from phibuild.report.choice import choices
from phibuild.report.documents import Report
from phibuild.report.table import LEGEND, headline, report_table, summary_lines
from phibuild.report.terminal.matrix import matrix
from phibuild.report.terminal.remarks import remarks
from phibuild.report.terminal.render import page_width, show
from phibuild.report.terminal.shipping import shipping
from phibuild.streams import printable

_LEGEND = "KL: loss against the original in fp32, over the held-out text. * to be shipped."


def show_report(report: Report, *, wide: bool = False, colour: bool = True) -> None:
    """Print a report for people: within the columns of the terminal, at most WIDTH, or all there
    is to say (`wide`)."""
    if wide:
        lines = [report_table(report), "", LEGEND, *summary_lines(report), "", headline(report)]
        print("\n".join(map(printable, "\n".join(lines).splitlines())), flush=True)
    else:
        show(page(report, page_width()), colour=colour)


def page(report: Report, width: int) -> Iterator[RenderableType]:
    """Yield the parts of a report."""
    yield Text("What to ship", "bold")
    yield from shipping(choices(report), width)
    if any(cell.status != "skipped" for cell in report.cells):
        yield ""
        yield from matrix(report.cells, width)
        if any(cell.quality for cell in report.cells):
            yield Text(_LEGEND, "dim")
    said = list(remarks(report, width))
    if said:
        yield ""
        yield from said
    yield ""
    yield Text(printable(headline(report)), "bold", overflow="fold")
    yield Text("phibuild report --wide: all columns and notes", "dim")
