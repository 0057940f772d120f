"""A cell's figures against those of the baseline that its gates name."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from phibuild.planning.baselines import Baseline
from phibuild.report.baselines import windows
from phibuild.report.documents import Gate, GateBaseline
from phibuild.schema import Cell, Judging
from phibuild.schema.limits import FIGURES, FigureName
from phibuild.store.documents import Quality
from phibuild.worker.pairing import common_windows
from phibuild.worker.stopping import LEAST_WINDOWS, NEGLIGIBLE


def check_baseline(
    cell: Cell,
    baseline: Baseline | None,
    *,
    quality: Quality | None,
    size_bytes: int | None,
    judging: Judging | None = None,
) -> list[Gate]:
    """Return the gates of a cell that compare it with a baseline. Where both were judged on the
    same windows, `LEAST_WINDOWS` at least, they are compared on these, else by what each lost on
    its own. What the baseline has not is not held against the cell; what this machine cannot judge
    is, as by other gates."""
    if baseline is None:
        return []
    name = cell.variant.name if cell.variant else None
    found = []
    for figure, comparison in cell.gates.comparisons(cell.precision, name).items():
        sides = _sides(figure, quality, size_bytes, baseline)
        limit = None if sides.baseline is None else comparison.limit(sides.baseline)
        if limit is not None and figure == "kl":
            limit = max(limit, NEGLIGIBLE)
        passed: bool | None = None
        if limit is not None and sides.value is not None:
            passed = (limit - sides.value) * FIGURES[figure].sign >= 0
        elif limit is not None and figure != "size" and judging is not None and judging.how == "no":
            passed = False
        of = GateBaseline(
            run=baseline.run,
            value=sides.baseline,
            factor=comparison.factor,
            margin=comparison.margin,
            windows=sides.windows,
            problem=baseline.problem if sides.baseline is None else None,
        )
        found.append(Gate(name=figure, limit=limit, value=sides.value, passed=passed, baseline=of))
    return found


def baseline_notes(gates: Sequence[Gate]) -> list[str]:
    """Return what is to be said of gates that had nothing to compare with."""
    problems = [gate.baseline.problem for gate in gates if gate.baseline]
    return [f"a gate compares with nothing: {text}" for text in dict.fromkeys(problems) if text]


@dataclass(frozen=True)
class _Sides:
    """A figure of a cell and of its baseline, and by how many common windows it is (None: by what
    either has by itself)."""

    value: float | None
    baseline: float | None
    windows: int | None = None


def _sides(
    figure: FigureName, quality: Quality | None, size_bytes: int | None, baseline: Baseline
) -> _Sides:
    base = baseline.figures.get(figure)
    if figure == "size":
        return _Sides(size_bytes, base)
    if quality is None:
        return _Sides(None, base)
    own = {window["window"]: window for window in windows(quality)}
    other = {window["window"]: window for window in baseline.windows}
    common = common_windows(
        {number: window["reference_nll"] for number, window in own.items()},
        {number: window["reference_nll"] for number, window in other.items()},
    )
    if len(common) < LEAST_WINDOWS:
        return _Sides(quality.kl_mean if figure == "kl" else quality.top1, base)
    return _Sides(
        statistics.fmean(own[number][figure] for number in common),
        statistics.fmean(other[number][figure] for number in common),
        len(common),
    )
