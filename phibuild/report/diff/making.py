"""The difference of two runs: cells beside cells, most important first."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import get_args

from phibuild.report.choice import gate_text
from phibuild.report.diff.documents import (
    CellDifference,
    Difference,
    DiffRun,
    FigureChange,
    Kind,
    SpeedNoise,
)
from phibuild.report.diff.figures import compare_cells, speed_noise
from phibuild.report.documents import Report, ReportCell
from phibuild.report.matching import CellName, match_cells, reported

KINDS: tuple[Kind, ...] = get_args(Kind)
"""In the order of their importance."""


@dataclass(frozen=True)
class NamedReport:
    """A report and what its run is called."""

    name: str
    report: Report


def make_difference(a: NamedReport, b: NamedReport) -> Difference:
    """Return what is different in b."""
    notes = []
    one, other = ([reported(cell) for cell in side.report.cells] for side in (a, b))
    renamed = _renamed(a.report, b.report)
    if renamed:
        one = [_as_model(cell, renamed[1]) for cell in one]
        notes.append(f"the model {renamed[0]} is compared with {renamed[1]}")
    # Names by what the first run's cells would be called in the second.
    ids = dict(zip((cell.id for cell in one), a.report.cells, strict=True))
    partners = match_cells(one, other)
    there = {cell.id: cell for cell in b.report.cells}
    pairs = [(ids[own], there[partner]) for own, partner in partners.items()]
    same_machine = a.report.host == b.report.host
    if not same_machine:
        notes.append("the runs are from two machines: speeds are not compared")
    noise = speed_noise(pairs, same_machine=same_machine)
    paired = set(partners.values())
    cells = [
        *(_both(before, after, noise) for before, after in pairs),
        *(_gone(cell) for name, cell in ids.items() if name not in partners),
        *(_new(cell) for cell in b.report.cells if cell.id not in paired),
    ]
    cells.sort(key=_importance)
    firsts = [cell.kinds[0] for cell in cells]
    return Difference(
        a=_run(a),
        b=_run(b),
        notes=notes,
        speed_noise=noise,
        cells=cells,
        totals={kind: firsts.count(kind) for kind in KINDS if kind in firsts},
        conditions=[],
    )


def _run(one: NamedReport) -> DiffRun:
    report = one.report
    return DiffRun(
        name=one.name,
        recipe=report.recipe,
        phibuild_version=report.phibuild_version,
        host=report.host,
        models=[model.name for model in report.models],
    )


def _renamed(a: Report, b: Report) -> tuple[str, str] | None:
    """Return the names of the models where each run has one and they differ: two checkpoints of
    what is the same model to whoever compares them."""
    one, other = ({cell.model for cell in report.cells} for report in (a, b))
    if len(one) == len(other) == 1 and one != other:
        return one.pop(), other.pop()
    return None


def _as_model(cell: CellName, model: str) -> CellName:
    rest = cell.id.removeprefix(cell.model)
    return replace(cell, id=f"{model}{rest}", model=model)


def _importance(cell: CellDifference) -> tuple[int, float, str]:
    """Return what cells are sorted by: the first of their kinds, then how far a figure is away."""
    away = [
        abs(one.relative) if one.relative is not None else float("inf")
        for one in cell.figures
        if one.verdict in ("worse", "better")
    ]
    return KINDS.index(cell.kinds[0]), -max(away, default=0.0), cell.id


def _both(a: ReportCell, b: ReportCell, noise: SpeedNoise) -> CellDifference:
    figures = compare_cells(a, b, noise)
    broken, mended = _gates(a, b), _gates(b, a)
    same = a.artifact_digest is not None and a.artifact_digest == b.artifact_digest
    kinds: set[Kind] = set()
    for one in figures:
        kinds |= _kinds(one)
    if a.size_bytes is not None and b.size_bytes is None:
        kinds.add("failed" if b.status == "failed" else "gone")
    elif a.size_bytes is None and b.size_bytes is not None:
        kinds.add("mended" if a.status == "failed" else "new")
    elif a.status == "skipped" and b.status == "failed":
        kinds.add("failed")
    if a.quality and not b.quality and b.size_bytes is not None:
        kinds.add("unjudged")
    if broken:
        kinds.add("gate")
    if mended:
        kinds.add("mended")
    if not kinds:
        kinds.add("same" if same or a.artifact_digest == b.artifact_digest else "changed")
    return CellDifference(
        id=b.id,
        a=a.id,
        b=b.id,
        kinds=[kind for kind in KINDS if kind in kinds],
        status_a=a.status,
        status_b=b.status,
        variant_a=a.variant,
        variant_b=b.variant,
        judged_a=a.quality is not None,
        judged_b=b.quality is not None,
        same_artifact=same,
        reason=b.reason,
        gates_broken=broken,
        gates_mended=mended,
        figures=figures,
    )


def _kinds(one: FigureChange) -> set[Kind]:
    match one.verdict, one.figure:
        case "worse", "size" | "memory":
            return {"larger"}
        case "better", "size" | "memory":
            return {"smaller"}
        case "worse", "prefill" | "decode":
            return {"slower"}
        case "better", "prefill" | "decode":
            return {"faster"}
        case "worse", _:
            return {"worse"}
        case "better", _:
            return {"better"}
    return set()


def _gates(kept: ReportCell, missed: ReportCell) -> list[str]:
    """Return the gates that a cell misses in one run and not in the other, in words."""
    before = [gate.name for gate in kept.gates if gate.passed is False]
    return [
        gate_text(gate) if gate.name != "fits_budget" else "does not fit the device"
        for gate in missed.gates
        if gate.passed is False and gate.name not in before
    ]


def _gone(cell: ReportCell) -> CellDifference:
    return _alone(cell, "gone", a=cell.id)


def _new(cell: ReportCell) -> CellDifference:
    return _alone(cell, "failed" if cell.status == "failed" else "new", b=cell.id)


def _alone(
    cell: ReportCell, kind: Kind, *, a: str | None = None, b: str | None = None
) -> CellDifference:
    missed: Sequence[str] = _gates(cell.model_copy(update={"gates": []}), cell) if b else ()
    return CellDifference(
        id=cell.id,
        a=a,
        b=b,
        kinds=["gate", kind] if missed else [kind],
        status_a=cell.status if a else None,
        status_b=cell.status if b else None,
        variant_a=cell.variant if a else None,
        variant_b=cell.variant if b else None,
        judged_a=bool(a and cell.quality),
        judged_b=bool(b and cell.quality),
        same_artifact=False,
        reason=cell.reason if b else None,
        gates_broken=list(missed),
        gates_mended=[],
        figures=[],
    )
