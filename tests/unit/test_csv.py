"""CSV of a report, as Python's own reader has it."""

from __future__ import annotations

import csv
import io
import json

from hypothesis import given
from hypothesis import strategies as st

from phibuild.report.csv_rows import COLUMNS, report_csv
from phibuild.report.documents import Gate
from support.report_cells import lost, some_cell, some_report


def rows(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text, newline=""), strict=True))


def test_figures_are_plain_numbers_in_base_units() -> None:
    missed = Gate(name="kl", limit=0.05, value=0.1, passed=False)
    cell = some_cell(gates=[missed, missed.model_copy(update={"name": "size"})])
    skipped = lost("phi.mac.mlx.int8", "skipped", "no Metal, no\nGPU")
    first, second = rows(report_csv(some_report(cell, skipped)))
    assert tuple(first) == COLUMNS
    assert len(set(COLUMNS)) == len(COLUMNS)
    assert first["id"] == "phi.pi.llamacpp.int4"
    assert (first["size_bytes"], first["fits_budget"], first["best"]) == (
        "2000000",
        "true",
        "false",
    )
    assert cell.quality
    assert float(first["kl_mean"]) == cell.quality.kl_mean
    assert float(first["decode_tokens_per_second"]) == 100
    assert first["gates_failed"] == "kl size"
    assert json.loads(first["options"]) == {"type": "Q4_0"}
    assert (second["status"], second["reason"]) == ("skipped", "no Metal, no\nGPU")
    assert second["kl_mean"] == second["size_bytes"] == second["artifact"] == ""


@given(st.text(max_size=30), st.text(max_size=30))
def test_any_text_comes_back(reason: str, variant: str) -> None:
    cell = lost("phi.pi.llamacpp.int4", "failed", reason, variant=variant)
    (found,) = rows(report_csv(some_report(cell)))
    assert (found["reason"], found["variant"]) == (reason, variant)


def test_columns_stay() -> None:
    """Programs take them by name and by place: new ones come at the end."""
    assert COLUMNS[:11] == (
        "recipe", "id", "model", "device", "backend", "precision", "variant", "format", "status",
        "reason", "size_bytes",
    )  # fmt: skip
    assert COLUMNS[24:27] == ("judged", "kl_mean", "kl_error")
    assert COLUMNS[-2:] == ("gates_failed", "options")
