"""report.md, and what `report --markdown` prints: a page for a pull request."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from phibuild.report.choice import Choice, choices, gate_text, label
from phibuild.report.diff.making import NamedReport, make_difference
from phibuild.report.diff.markdown import changes
from phibuild.report.documents import Report, ReportCell
from phibuild.report.markdown_text import (
    Section,
    block,
    code,
    escape,
    fitted,
    fold,
    row,
    table_head,
    visible,
)
from phibuild.report.steps import bound_line
from phibuild.units import format_decimal

COMMENT_LIMIT = 65_536
"""Characters that GitHub and GitLab take at least as a comment: report.md can be one."""
_REASON = 300
_LOGS, _LOG_LINES = 20, 40
"""Failed cells whose logs are shown, and lines of each; logs/ has them all."""
_CELL_HEADERS = (
    "device", "cell", "variant", "size", "bits/w", "KL", "top-1", "decode tok/s", "on the device",
    "fits", "status",
)  # fmt: skip
_CELL_FIGURES = ("size", "bits/w", "KL", "top-1", "decode tok/s", "on the device")
LEGEND = (
    "KL and top-1: against the original in fp32, over the held-out text, with the standard error "
    "over windows. tok/s: on the machine that built. **Bold**: what to ship."
)


def report_page(
    report: Report, before: NamedReport | None = None, *, limit: int = COMMENT_LIMIT
) -> str:
    """Return a report as Markdown, in so many bytes of UTF-8; `before` is the run of the same
    recipe that it is compared with. Rows that do not fit are left out and counted."""
    found = choices(report)
    sections = [
        _head(report),
        _ship(found, report),
        *changes_since(report, before),
        *_wrong(report),
        _cells(report),
        *_skipped(report),
        *_notes(report),
        *_steps(report),
        _provenance(report),
    ]
    return fitted(sections, limit)


def headline(report: Report) -> str:
    """Return what became of the cells, in words."""
    totals = report.totals
    counts = {
        "built": totals.built,
        "there already": totals.cached,
        "failed": totals.failed,
        "skipped": totals.skipped,
        "with a missed gate": totals.gates_failed,
    }
    said = ", ".join(f"{count} {what}" for what, count in counts.items() if count) or "no cells"
    early = ", interrupted" if totals.interrupted else ""
    return f"{said}; {totals.seconds:,.0f} s{early}"


def _head(report: Report) -> Section:
    lines = [f"# {escape(report.recipe)}", "", f"**{escape(headline(report))}**", ""]
    warnings = [(model.name, text) for model in report.models for text in model.warnings]
    lines += [f"> **Warning** {code(name)}: {escape(text)}\n" for name, text in warnings]
    return Section(lines, [])


def _ship(found: Sequence[Choice], report: Report) -> Section:
    several = len(report.models) > 1
    headers = [*(["model"] if several else []), "device", "ship", "size", "KL", "why"]
    rows = []
    for choice in found:
        ship = choice.ship
        rows.append(
            row(
                [
                    *([code(choice.model)] if several else []),
                    code(choice.device),
                    f"**{code(_called(ship))}**" if ship else "nothing",
                    format_decimal(ship.size_bytes) if ship else "",
                    loss(ship) if ship else "",
                    escape(_short(choice.why)),
                ]
            )
        )
    return Section(["## What to ship", "", *table_head(headers, ("size", "KL"))], rows, [""])


def changes_since(report: Report, before: NamedReport | None) -> list[Section]:
    """Return what changed against the run before."""
    if before is None:
        return [Section(["## What changed", "", "There is no run before this one.", ""], [])]
    difference = make_difference(before, NamedReport("this run", report))
    return changes(difference, f"## What changed since {code(before.name)}")


def _wrong(report: Report) -> Iterator[Section]:
    """Yield what failed, with the end of what it said, and the gates that are missed."""
    failed = [cell for cell in report.cells if cell.status == "failed"]
    missed = [
        f"- {code(cell.id)}: {escape(text)}"
        for cell in report.cells
        for text in gate_texts(cell)
    ]  # fmt: skip
    if failed:
        lines = [f"- {code(cell.id)}: {escape(_short(first(cell)))}" for cell in failed]
        yield Section(["## What failed", ""], lines, [""])
    for cell in failed[:_LOGS]:
        more = (cell.reason or "").splitlines()[1:]
        if more:
            rows = block("\n".join(more[-_LOG_LINES:]))
            logged = Section(rows[:1], rows[1:-1], rows[-1:], 2, lambda count: f"{count} more")
            yield fold(f"{cell.id}: the end of its log", logged)
    if missed:
        yield Section(["## Missed gates", ""], missed, [""])


def gate_texts(cell: ReportCell) -> list[str]:
    """Return the gates that a cell misses, in words."""
    return [
        gate_text(gate) if gate.name != "fits_budget" else "it does not fit the device"
        for gate in cell.gates
        if gate.passed is False
    ]


def first(cell: ReportCell) -> str:
    """Return the first line of the reason why a cell was skipped or failed."""
    return ((cell.reason or cell.status).splitlines() or [""])[0]


def _cells(report: Report) -> Section:
    several = len(report.models) > 1
    made = [cell for cell in report.cells if cell.status != "skipped"]
    headers = [*(["model"] if several else []), *_CELL_HEADERS]
    rows = [row([*([code(c.model)] if several else []), *_row(c)]) for c in made]
    table = Section(table_head(headers, _CELL_FIGURES), rows, ["", LEGEND], 3)
    return fold(f"All {len(made)} cells that were to be made", table)


def _row(cell: ReportCell) -> list[str]:
    quality, speed = cell.quality, cell.speed
    name, variant = code(f"{cell.backend} {cell.precision}"), code(cell.variant or "")
    status: str = cell.status
    if any(gate.passed is False for gate in cell.gates):
        status += ", misses " + ", ".join(g.name for g in cell.gates if g.passed is False)
    return [
        code(cell.device),
        f"**{name}**" if cell.best else name,
        f"**{variant}**" if cell.best and variant else variant,
        format_decimal(cell.size_bytes),
        "-" if cell.bits_per_weight is None else f"{cell.bits_per_weight:.2f}",
        loss(cell),
        "-" if quality is None else f"{quality.top1:.3f}",
        "-" if speed is None else f"{speed.decode_tokens_per_second:,.1f}",
        format_decimal(cell.device_memory_bytes),
        {True: "yes", False: "**no**", None: "-"}[cell.fits_budget],
        status,
    ]


def loss(cell: ReportCell) -> str:
    """Return a cell's mean KL with its standard error."""
    if cell.quality is None:
        return "-"
    kl, error = cell.quality.kl_mean, cell.quality.kl_error
    if kl == 0:
        return "0"
    form = ".4f" if kl >= 1e-3 else ".1e"
    return f"{kl:{form}}" + (f" ± {error:{form}}" if error is not None else "")


def _skipped(report: Report) -> Iterator[Section]:
    cells = [cell for cell in report.cells if cell.status == "skipped"]
    if cells:
        rows = [f"- {code(cell.id)}: {escape(_short(first(cell)))}" for cell in cells]
        yield fold(f"{len(cells)} skipped", Section([], rows, [], 4))


def _notes(report: Report) -> Iterator[Section]:
    noted: dict[str, list[str]] = {}
    for model in report.models:
        for text in model.notes:
            noted.setdefault(text, []).append(model.name)
    for cell in report.cells:
        for text in cell.notes:
            noted.setdefault(text, []).append(cell.id)
    rows = [f"- {escape(text)} ({_some(names)})" for text, names in noted.items()]
    if bound := bound_line(report):
        rows.append(f"- {escape(bound)}")
    if rows:
        yield fold("Notes", Section([], rows, [], 5))


def _some(names: Sequence[str]) -> str:
    shown = ", ".join(code(name) for name in names[:3])
    return shown if len(names) <= 3 else f"{shown} and {len(names) - 3} more"


def _steps(report: Report) -> Iterator[Section]:
    steps = [step for step in report.steps if step.cores and step.seconds is not None]
    headers = ["step", "start s", "s", "CPU s", "memory planned", "taken", "place"]
    if not any(step.place for step in steps):
        headers.remove("place")
    rows = [
        row(
            [
                code(step.id),
                f"{step.started_seconds:.1f}",
                f"{step.seconds:.1f}",
                f"{step.cpu_seconds:.1f}",
                format_decimal(step.memory_bytes),
                format_decimal(step.peak_anonymous_bytes),
                *([code(step.place or "")] if "place" in headers else []),
            ]
        )
        for step in steps
    ]
    if rows:
        head = table_head(headers, ("start s", "s", "CPU s", "memory planned", "taken"))
        yield fold(f"{len(steps)} steps", Section(head, rows, [], 6))


def _provenance(report: Report) -> Section:
    host, evaluation = report.host, report.evaluation
    rows = [
        f"- {code(model.name)}: {model.parameters:,} parameters, {format_decimal(model.bytes)}, "
        f"source {code((model.source_digest or 'unknown')[:16])}"
        + (f", commit {code(model.commit)}" if model.commit else "")
        for model in report.models
    ]
    judged = f"{evaluation.windows} windows of {evaluation.window_tokens} tokens at most"
    rows += [
        f"- {code(report.command)}",
        f"- judged by {judged}" if evaluation.enabled else "- nothing was judged",
        f"- phibuild {escape(report.phibuild_version)}, {escape(host.system)}, "
        f"{host.cores or '?'} cores, {format_decimal(host.memory_bytes)} of memory",
        f"- configuration {code(report.configuration_sha256[:16])}",
    ]
    return fold("Where it comes from", Section([], rows, [], 1))


def _called(cell: ReportCell) -> str:
    return f"{cell.backend} {label(cell)}"


def _short(text: str) -> str:
    words = visible(text)
    return words if len(words) <= _REASON else words[:_REASON] + "…"
