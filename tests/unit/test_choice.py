"""What a report says is to be shipped, and why the rest is not."""

from __future__ import annotations

import pytest

from phibuild.report.choice import choices
from phibuild.report.documents import Gate, Report
from support.report_runs import Run, run

__all__ = ["run"]


@pytest.fixture
def done(run: Run) -> Report:
    run.build_all()
    return run.report()


def said(report: Report) -> dict[str, tuple[str | None, str, dict[str, str]]]:
    return {
        choice.device: (
            choice.ship.id.partition(".")[2] if choice.ship else None,
            choice.why,
            {f"{cell.backend}.{cell.precision}": why for cell, why in choice.others},
        )
        for choice in choices(report)
    }


def test_the_smallest_that_is_good_enough_is_shipped(done: Report) -> None:
    found = said(done)
    assert list(found) == ["ai_pc_intel", "intel_n100"]
    ship, why, others = found["ai_pc_intel"]
    assert ship == "ai_pc_intel.llamacpp.int4"
    assert why == "the only one that was judged and fits the device and keeps its gates"
    assert others["llamacpp.int8"].startswith("size 4.00 MB of at most 3.00 MB")
    assert others["openvino.int4"] == "kl 0.3 of at most 0.2 nats"
    assert others["ort_genai.fp16"] == next(
        c.reason for c in done.cells if c.backend == "ort_genai"
    )


def test_what_is_larger_says_what_it_gains(done: Report) -> None:
    """Without a size gate int8 could be shipped as well."""
    cells = [
        cell.model_copy(update={"gates": [gate for gate in cell.gates if gate.name != "size"]})
        for cell in done.cells
    ]
    ship, why, others = said(done.model_copy(update={"cells": cells}))["ai_pc_intel"]
    assert ship == "ai_pc_intel.llamacpp.int4"
    assert why == "the smallest of 2 that fit the device and keep their gates"
    assert others["llamacpp.int8"] == "2.00 times as large, KL 0.0990 below"


def test_why_nothing_can_be_shipped(run: Run) -> None:
    run.build_all()
    report = run.report()
    limit = Gate(name="kl", limit=0.01, value=0.1, passed=False)
    small = [
        cell.model_copy(
            update={
                "fits_budget": False, "device_memory_bytes": 5 * 10**9,
                "device_budget_bytes": 4 << 30, "device_budget_written": "4 GiB",
                "gates": [limit],
            }
        )
        for cell in report.cells
    ]  # fmt: skip
    why = said(report.model_copy(update={"cells": small}))["intel_n100"][1]
    assert why == (
        "none can be shipped; llamacpp int4 Q4_K_M: needs 5.00 GB of the device's "
        "4 GiB (4.29 GB); "
        "kl 0.1 of at most 0.01 nats"
    )
    run.result("Q4_K_M").measure = None
    unjudged = said(run.report())
    assert unjudged["intel_n100"][1] == "nothing was judged: nobody knows what an artifact has lost"
    run.result("Q4_K_M").status = "failed"
    assert said(run.report())["intel_n100"][1] == "nothing was built: 1 failed"
