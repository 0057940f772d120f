"""A report as a table, for the terminal and for Markdown."""

from __future__ import annotations

from tabulate import tabulate

from phibuild.report.documents import Report, ReportCell
from phibuild.report.notes import note_lines
from phibuild.report.steps import bound_line
from phibuild.store.documents import Quality
from phibuild.units import format_decimal

LEGEND = (
    "KL and top-1: against the original in fp32, over the held-out text. tok/s: on this machine. "
    "* the smallest of those judged that fits its device and keeps its gates."
)
_HEADERS = (
    "device", "backend", "precision", "variant", "size", "ratio", "bits/w", "KL", "KL 99%", "top-1",
    "ppl (original)", "prefill t/s", "decode t/s", "device memory", "fits", "status",
)  # fmt: skip


def report_table(report: Report, style: str = "simple") -> str:
    """Return the table of all cells that were built or judged, and what it is about."""
    several = len(report.models) > 1
    headers = (*(("model",) if several else ()), *_HEADERS)
    rows = [
        [*([cell.model] if several else []), *_row(cell)]
        for cell in report.cells
        if cell.status != "skipped"
    ]
    align = ["left" if name in _LEFT else "right" for name in headers]
    return tabulate(rows, headers, tablefmt=style, colalign=align if rows else None,
                    disable_numparse=True)  # fmt: skip


_LEFT = ("model", "device", "backend", "precision", "variant", "fits", "status")


def _row(cell: ReportCell) -> list[str]:
    quality, speed = cell.quality, cell.speed
    status: str = cell.status
    failed = [gate.name for gate in cell.gates if gate.passed is False]
    if failed:
        status += f", gate failed: {', '.join(failed)}"
    return [
        cell.device,
        cell.backend,
        cell.precision,
        (_label(cell) or cell.variant or "") + (" *" if cell.best else ""),
        format_decimal(cell.size_bytes),
        _number(cell.ratio_to_source, "{:.2f}"),
        _number(cell.bits_per_weight, "{:.2f}"),
        *_quality_columns(quality),
        _rate(speed.prefill_tokens_per_second) if speed else "-",
        _rate(speed.decode_tokens_per_second) if speed else "-",
        format_decimal(cell.device_memory_bytes),
        {True: "yes", False: "NO", None: "-"}[cell.fits_budget],
        status,
    ]


def _label(cell: ReportCell) -> str:
    """Return what tells a cell from the other variants of its precision; "" if it is alone."""
    place = f"{cell.model}.{cell.device}.{cell.backend}.{cell.precision}"
    return cell.id.removeprefix(place).removeprefix(".")


def _quality_columns(quality: Quality | None) -> list[str]:
    if quality is None:
        return ["-"] * 4
    return [
        loss(quality),
        _small(quality.kl_p99),
        f"{quality.top1:.3f}",
        f"{quality.perplexity:.2f} ({quality.reference_perplexity:.2f})",
    ]


def loss(quality: Quality) -> str:
    """Return the mean KL with its standard error, in nats: "0.0527 ± 0.0031"."""
    return _with_error(quality.kl_mean, quality.kl_error) if quality.kl_mean else "<1e-9"


def _number(value: float | None, form: str) -> str:
    return "-" if value is None else form.format(value)


def _rate(value: float) -> str:
    """Return tokens per second; two digits where there are few, as with a large model."""
    if value >= 10:
        return f"{value:,.0f}"
    return f"{value:.1f}" if value >= 1 else f"{value:.2f}"


def _with_error(value: float, error: float | None) -> str:
    """Return a figure and its standard error, to the same place."""
    if error is None:
        return _small(value)
    return f"{_small(value)} ± {f'{error:.4f}' if value >= 1e-3 else f'{error:.1e}'}"


def _small(value: float) -> str:
    if value == 0:
        return "0"
    return f"{value:.4f}" if value >= 1e-3 else f"{value:.1e}"


def _windows_line(report: Report) -> list[str]:
    """Return how many windows cells were judged by, where it was not all of them."""
    found = [cell.quality for cell in report.cells if cell.quality and cell.quality.windows]
    why = {
        "gates": "every gate was decided at 4 standard errors",
        "precision": "the error of the KL was below 5 % of it",
        "all": "there were no more",
    }
    numbers = [quality.windows or 0 for quality in found]
    if all(quality.stopped in (None, "all") for quality in found):
        return []
    reasons = [
        f"{text} ({count} cells)"
        for stopped, text in why.items()
        if (count := sum(quality.stopped == stopped for quality in found))
    ]
    most = report.evaluation.windows
    return [
        f"note    judged by {min(numbers)} to {max(numbers)} of at most {most} windows, until "
        f"{', '.join(reasons)}"
    ]


def summary_lines(report: Report) -> list[str]:
    """Return what is to be said below the table: an original that is none, skips, failures, gates,
    the runtime's own gaps."""
    lines = [f"WARNING {model.name}: {text}" for model in report.models for text in model.warnings]
    for cell in report.cells:
        if cell.status == "skipped":
            lines.append(f"skipped {cell.id}: {cell.reason}")
        elif cell.status == "failed":
            first, *rest = (cell.reason or "").splitlines() or [""]
            lines += [f"FAILED  {cell.id}: {first}", *(f"        {line}" for line in rest)]
        for gate in cell.gates:
            if gate.passed is False:
                value = "not judged" if gate.value is None else _gate_value(gate.value)
                limit = _gate_value(gate.limit)
                lines.append(f"GATE    {cell.id}: {gate.name} {value}, limit {limit}")
    gaps = [
        (cell.backend, cell.quality.runtime_kl)
        for cell in report.cells
        if cell.quality and cell.quality.runtime_kl is not None
    ]
    for name in dict.fromkeys(name for name, _ in gaps):
        low = min(gap for other, gap in gaps if other == name)
        high = max(gap for other, gap in gaps if other == name)
        lines.append(
            f"note    {name}: its runtime always uses the long rope factors. KL above judges the "
            f"weights against the original with the same factors; against the ordinary original "
            f"it is {low:.3g} to {high:.3g}."
        )
    lines += [f"note    {model.name}: {text}" for model in report.models for text in model.notes]
    lines += note_lines((cell.id, cell.backend, cell.notes) for cell in report.cells)
    lines += _windows_line(report)
    bound = bound_line(report)
    if bound:
        lines.append(f"note    {bound}")
    return lines


def _gate_value(value: float | None) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def headline(report: Report) -> str:
    """Return one line: what was built, what was there, what failed, how long it took."""
    totals = report.totals
    counts = {
        "built": totals.built,
        "cached": totals.cached,
        "skipped": totals.skipped,
        "failed": totals.failed,
    }
    said = ", ".join(f"{count} {status}" for status, count in counts.items() if count)
    gates = f", {totals.gates_failed} with a failed gate" if totals.gates_failed else ""
    early = " (interrupted)" if totals.interrupted else ""
    nothing = "" if totals.steps else ", nothing to do"
    return f"{report.recipe}: {said}{gates}{nothing} in {totals.seconds:.1f} s{early}"
