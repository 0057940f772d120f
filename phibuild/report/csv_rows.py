"""A report as CSV: one row a cell, plain numbers in base units (bytes, seconds, nats, shares)."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence

from phibuild.report.documents import Report, ReportCell

_CELL = (
    "id", "model", "device", "backend", "precision", "variant", "format", "status", "reason",
    "size_bytes", "estimated_bytes", "bits_per_weight", "ratio_to_source", "build_seconds",
    "build_own_seconds", "build_shared_seconds", "peak_rss_bytes", "device_memory_bytes",
    "device_budget_bytes", "fits_budget", "best", "artifact", "artifact_digest",
)  # fmt: skip
_QUALITY = (
    "kl_mean", "kl_error", "kl_p99", "top1", "top1_error", "perplexity", "reference_perplexity",
    "perplexity_change", "perplexity_change_error", "tokens", "windows", "stopped",
    "cached_decoding_kl", "native_kl", "runtime_kl",
)  # fmt: skip
_SPEED = ("load_seconds", "prefill_tokens_per_second", "decode_tokens_per_second")
COLUMNS = (
    "recipe", *_CELL, "judged", *_QUALITY, *_SPEED, "judging_peak_rss_bytes", "gates_failed",
    "options",
)  # fmt: skip
"""New ones come at the end; their names and meanings stay, as those in report.json, whose schema
says what each is."""


def report_csv(report: Report) -> str:
    """Return a header and a row for each cell, with line ends of one line feed. What is not known
    is empty; truth is true or false; `gates_failed` are names with spaces between them, `options`
    JSON."""
    rows = (_line([_text(value) for value in _row(report, cell)]) for cell in report.cells)
    return "".join([_line(COLUMNS), *rows])


def _line(values: Sequence[str]) -> str:
    """Return a row. Lone carriage returns are in quotes only where they are in the line's end."""
    text = io.StringIO(newline="")
    csv.writer(text, lineterminator="\r\n").writerow(values)
    return text.getvalue().removesuffix("\r\n") + "\n"


def _row(report: Report, cell: ReportCell) -> list[object]:
    quality, speed = cell.quality, cell.speed
    return [
        report.recipe,
        *(getattr(cell, name) for name in _CELL),
        cell.judged.how if cell.judged else None,
        *(getattr(quality, name) if quality else None for name in _QUALITY),
        *(getattr(speed, name) if speed else None for name in _SPEED),
        speed.peak_rss_bytes if speed else None,
        " ".join(gate.name for gate in cell.gates if gate.passed is False),
        None if cell.options is None else json.dumps(cell.options, sort_keys=True),
    ]


def _text(value: object) -> str:
    match value:
        case None:
            return ""
        case bool():
            return "true" if value else "false"
        case float():
            return repr(value)
    return str(value)
