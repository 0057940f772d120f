"""Reports of runs that nobody ran: as many cells as wanted, with all that a report can say."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator, Mapping

from phibuild.backends.registry import SHIPPED
from phibuild.report.choice import smallest
from phibuild.report.documents import (
    CellSpeed,
    Gate,
    Host,
    MatrixLoss,
    Provenance,
    Report,
    ReportCell,
    ReportExecutor,
    ReportModel,
    ReportStep,
    Sensitivity,
    Totals,
)
from phibuild.schema import PRECISIONS, Evaluation, Judging, Precision
from phibuild.store.documents import PositionLoss, Quality, WindowQuality

SOURCE = 7_600_000_000
_BITS: Mapping[Precision, float] = {"int4": 4.8, "int8": 8.5, "fp16": 16.0, "fp32": 32.0}
_LOSS: Mapping[Precision, float] = {"int4": 0.04, "int8": 0.002, "fp16": 1e-5, "fp32": 0.0}
_VARIANTS: Mapping[Precision, str] = {
    "int4": "Q4_K_M", "int8": "Q8_0", "fp16": "F16", "fp32": "F32",
}  # fmt: skip


def digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


CELLS = len(SHIPPED) * len(PRECISIONS)
"""Of a device."""


def made_report(devices: int, *, model: str = "phi-4-mini", faults: bool = True) -> Report:
    """Return a report of so many devices: every backend at every precision, each an
    artifact of its own. With `faults` some cells failed, were skipped, do not fit or miss a gate.
    The same each time."""
    chance = random.Random(7)
    cells = [
        _cell(f"device_{number:03}", backend, precision, model, chance, faults)
        for number in range(devices)
        for backend in SHIPPED
        for precision in PRECISIONS
    ]
    return report_of(cells, model)


def report_of(cells: list[ReportCell], model: str) -> Report:
    """Return a report of cells, the best of each place marked."""
    groups: dict[tuple[str, str], list[ReportCell]] = {}
    for cell in cells:
        groups.setdefault((cell.model, cell.device), []).append(cell)
    best = {found.id for group in groups.values() if (found := smallest(group))}
    cells = [cell.model_copy(update={"best": cell.id in best}) for cell in cells]
    one = ReportModel(
        name=model, reference=f"microsoft/{model}", commit="c" * 40, source_digest=digest(model),
        parameters=3_800_000_000, bytes=SOURCE, reference_perplexity=7.31,
    )  # fmt: skip
    statuses = [cell.status for cell in cells]
    return Report(
        phibuild_version="0.1.0", recipe="made", configuration="devices: {}\n",
        configuration_sha256=digest("made"), command="phibuild build recipe=made",
        host=Host(system="Linux x86_64", python="3.11", cores=8, memory_bytes=64 << 30),
        model=one, models=[one], evaluation=Evaluation(), cells=cells,
        sensitivities=[_sensitivity(model)], steps=list(_steps()),
        executor=ReportExecutor(cores=8, memory_bytes=48 << 30,
                                bounded_by_seconds={"cores": 300.0, "work": 500.0}),
        totals=Totals(
            built=statuses.count("built"), cached=0, skipped=statuses.count("skipped"),
            failed=statuses.count("failed"),
            gates_failed=sum(any(g.passed is False for g in cell.gates) for cell in cells),
            size_bytes=sum(cell.size_bytes or 0 for cell in cells), steps=12, seconds=812.0,
            interrupted=False,
        ),
    )  # fmt: skip


def _cell(
    device: str, backend: str, precision: Precision, model: str, chance: random.Random,
    faults: bool,
) -> ReportCell:  # fmt: skip
    name = f"{model}.{device}.{backend}.{precision}"
    fate = chance.random() if faults else 1.0
    if fate < 0.04:
        return _not_made(name, device, backend, precision, model, fate < 0.02)
    size = int(SOURCE * _BITS[precision] / 16 * chance.uniform(0.95, 1.4))
    kl = _LOSS[precision] * chance.uniform(0.5, 2.5)
    needs, budget = size + 900_000_000, 9_000_000_000
    limit = {"int4": 0.08, "int8": 0.01, "fp16": 0.001, "fp32": 1e-6}[precision]
    return ReportCell(
        id=name, model=model, device=device, backend=backend, precision=precision,
        variant=_VARIANTS[precision], options={"type": _VARIANTS[precision], "group_size": 32},
        format="GGUF", status="built", reason=None, size_bytes=size,
        estimated_bytes=int(size * chance.uniform(0.99, 1.01)), bits_per_weight=_BITS[precision],
        ratio_to_source=size / SOURCE, build_seconds=chance.uniform(1, 90), peak_rss_bytes=2 << 30,
        judged=Judging(), quality=_quality(kl, chance), speed=CellSpeed(
            load_seconds=0.5, prefill_tokens_per_second=chance.uniform(50, 900),
            decode_tokens_per_second=chance.uniform(2, 40), peak_rss_bytes=3 << 30),
        device_memory_bytes=needs, device_budget_bytes=budget, fits_budget=needs <= budget,
        gates=[Gate(name="kl", limit=limit, value=kl, passed=kl <= limit)],
        notes=["right up to 4,096 tokens: its runtime has no sliding window"], tokenizer=None,
        best=False, artifact=f"artifacts/{device}/{model}-{backend}-{precision}",
        artifact_digest=digest(name), provenance=Provenance(
            key=digest(f"key {name}"), source_digest=digest(model), activations=None,
            phibuild_version="0.1.0", builder_digest=digest(f"builder {backend}"),
            toolchain_digest=digest(f"toolchain {backend}")),
    )  # fmt: skip


def _not_made(
    name: str, device: str, backend: str, precision: Precision, model: str, failed: bool
) -> ReportCell:
    reason = (
        "the runner was killed by SIGKILL (out of memory?)\nlast stage: quantize"
        if failed
        else f"{device} has no accelerator for {backend}"
    )
    return ReportCell(
        id=name, model=model, device=device, backend=backend, precision=precision,
        variant=_VARIANTS[precision] if failed else None, options={} if failed else None,
        format="GGUF", status="failed" if failed else "skipped", reason=reason, size_bytes=None,
        estimated_bytes=None, bits_per_weight=None, ratio_to_source=None, build_seconds=None,
        peak_rss_bytes=None, quality=None, speed=None, device_memory_bytes=None,
        device_budget_bytes=9_000_000_000, fits_budget=None, gates=[], tokenizer=None, best=False,
        artifact=None, artifact_digest=None, provenance=None,
    )  # fmt: skip


def _quality(kl: float, chance: random.Random) -> Quality:
    return Quality(
        kl_mean=kl, kl_error=kl / 12, kl_p99=9 * kl, top1=1 - min(kl * 3, 0.5), top1_error=0.004,
        perplexity=7.31 * (1 + kl), reference_perplexity=7.31, perplexity_change=kl,
        perplexity_change_error=kl / 10, tokens=5120, windows=20, stopped="all",
        cached_decoding_kl=1e-7,
        by_window=[
            WindowQuality(window=n, kl=kl * chance.uniform(0.6, 1.4), top1=0.9, nll=2.0,
                          reference_nll=1.99)
            for n in range(20)
        ],
        by_position=[
            PositionLoss(start=32 * n, end=32 * n + 32, kl=kl * chance.uniform(0.7, 1.3))
            for n in range(8)
        ],
    )  # fmt: skip


def _sensitivity(model: str) -> Sensitivity:
    chance = random.Random(3)
    roles = ("self_attn.qkv_proj", "self_attn.o_proj", "mlp.gate_up_proj", "mlp.down_proj")
    losses = {
        f"model.layers.{layer}.{role}.weight": MatrixLoss(
            kl=chance.uniform(2e-4, 2e-3), kl_error=1e-4
        )
        for layer in range(32)
        for role in roles
    }
    return Sensitivity(
        key=digest("sensitivity"), model=model, grid={"bits": 4, "group_size": 32, "zero": "code"},
        tokens=8192, text_sha256=digest("text"), long=False,
        losses={**losses, "lm_head.weight": MatrixLoss(kl=0.004, kl_error=2e-4)},
    )  # fmt: skip


def _steps() -> Iterator[ReportStep]:
    for number, backend in enumerate(SHIPPED):
        for kind, offset, long in (("build", 0.0, 60.0), ("measure", 70.0, 25.0)):
            yield ReportStep(
                id=f"{kind}.phi-4-mini.{backend}", cores=2, memory_bytes=3 << 30,
                started_seconds=offset + 30.0 * number, seconds=long, waited_seconds={"cores": 3.0},
                beside=[], attempts=1, cpu_seconds=long * 1.7, peak_anonymous_bytes=2 << 30,
            )  # fmt: skip
