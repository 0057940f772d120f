"""Reports whose cells are made up: any number of them, of any name, judged on any windows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from phibuild.report.documents import (
    CellSpeed,
    Host,
    Provenance,
    Report,
    ReportCell,
    ReportExecutor,
    ReportModel,
    Totals,
)
from phibuild.schema import Evaluation
from phibuild.store.documents import Quality, WindowQuality

HOST = Host(system="Linux x86_64", python="3.11.9", cores=2, memory_bytes=8 << 30)
LOSSES = (0.08, 0.12, 0.09, 0.11, 0.10, 0.13, 0.07, 0.10)


def some_quality(losses: Sequence[float] = LOSSES, *, text: float = 0.0, **changes: Any) -> Quality:
    """Return what judging found on windows of these KL, on a text whose windows are unlike those of
    another `text`."""
    count = len(losses)
    mean = sum(losses) / count
    variance = sum((kl - mean) ** 2 for kl in losses) / max(1, count - 1)
    figures: dict[str, Any] = {
        "kl_mean": mean,
        "kl_error": (variance / count) ** 0.5,
        "kl_p99": 9 * mean,
        "top1": 0.9,
        "top1_error": 0.004,
        "perplexity": 8.5,
        "reference_perplexity": 8.0,
        "tokens": 256 * count,
        "windows": count,
        "cached_decoding_kl": 0.0,
        "by_window": [
            WindowQuality(
                window=n, kl=kl, top1=0.9, nll=2.0 + n / 10 + kl, reference_nll=2.0 + n / 10 + text
            )
            for n, kl in enumerate(losses)
        ],
        **changes,
    }
    return Quality(**figures)


def some_cell(name: str = "phi.pi.llamacpp.int4", **changes: Any) -> ReportCell:
    """Return a cell that was built and judged, of an id of four parts or five; its artifact is told
    from others by its digest."""
    model, device, backend, precision = name.split(".")[:4]
    figures: dict[str, Any] = {
        "id": name,
        "model": model,
        "device": device,
        "backend": backend,
        "precision": precision,
        "variant": "Q4_0",
        "options": {"type": "Q4_0"},
        "format": "GGUF",
        "status": "built",
        "reason": None,
        "size_bytes": 2_000_000,
        "estimated_bytes": 2_000_000,
        "bits_per_weight": 4.5,
        "ratio_to_source": 0.3,
        "build_seconds": 1.5,
        "peak_rss_bytes": 1 << 20,
        "quality": some_quality(),
        "speed": CellSpeed(
            load_seconds=0.1,
            prefill_tokens_per_second=1000.0,
            decode_tokens_per_second=100.0,
            peak_rss_bytes=5,
        ),
        "device_memory_bytes": 120_000_000,
        "device_budget_bytes": 6_000_000_000,
        "fits_budget": True,
        "gates": [],
        "tokenizer": None,
        "best": False,
        "artifact": f"artifacts/{name}",
        "artifact_digest": "d",
        "provenance": Provenance(
            key="k", source_digest="s", activations=None, phibuild_version="0.1.0",
            builder_digest="b", toolchain_digest="t",
        ),
        **changes,
    }  # fmt: skip
    return ReportCell(**figures)


def lost(name: str, status: str, reason: str, **changes: Any) -> ReportCell:
    """Return a cell that has no artifact."""
    nothing = dict.fromkeys(
        ("size_bytes", "bits_per_weight", "ratio_to_source", "build_seconds", "peak_rss_bytes",
         "quality", "speed", "artifact", "artifact_digest", "provenance")
    )  # fmt: skip
    return some_cell(name, status=status, reason=reason, **{**nothing, **changes})


def timed(cell: ReportCell, *, prefill: float = 1000.0, decode: float = 100.0) -> ReportCell:
    """Return a cell with other speeds."""
    assert cell.speed
    speed = cell.speed.model_copy(
        update={"prefill_tokens_per_second": prefill, "decode_tokens_per_second": decode}
    )
    return cell.model_copy(update={"speed": speed})


def some_report(*cells: ReportCell, recipe: str = "mine", **changes: Any) -> Report:
    """Return a report of these cells."""
    models = [
        ReportModel(name=name, reference=name, source_digest="s", parameters=1000, bytes=2000)
        for name in dict.fromkeys(cell.model for cell in cells) or ["phi"]
    ]
    statuses = [cell.status for cell in cells]
    figures: dict[str, Any] = {
        "phibuild_version": "0.1.0",
        "recipe": recipe,
        "configuration": "recipe: mine\n",
        "configuration_sha256": "0" * 64,
        "command": "phibuild recipe=mine",
        "host": HOST,
        "model": models[0],
        "models": models,
        "evaluation": Evaluation(),
        "cells": list(cells),
        "executor": ReportExecutor(cores=2, memory_bytes=8 << 30, bounded_by_seconds={}),
        "totals": Totals(
            built=statuses.count("built"),
            cached=statuses.count("cached"),
            skipped=statuses.count("skipped"),
            failed=statuses.count("failed"),
            gates_failed=sum(any(g.passed is False for g in cell.gates) for cell in cells),
            size_bytes=0,
            steps=1,
            seconds=12.3,
            interrupted=False,
        ),
        **changes,
    }
    return Report(**figures)
