"""The baselines of a recipe's gates: runs that are there before anything is built."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from phibuild.config.compose import Composition
from phibuild.errors import ConfigError, Problem
from phibuild.planning.baselines import Baseline
from phibuild.planning.matrix import Matrix
from phibuild.report.documents import Report, ReportCell
from phibuild.report.matching import match_cells, planned, reported
from phibuild.report.runs import LATEST, find_report, newest_of, read_report
from phibuild.schema.limits import FigureName
from phibuild.store.documents import Quality
from phibuild.worker.pairing import Window

_REMEDY = "name a folder with a report.json, a report.json, a recipe that was built, or latest"


@dataclass(frozen=True)
class BaselineRun:
    """A run that gates compare with, as it is called; without a report where the recipe has no run
    yet."""

    name: str
    report: Report | None


def load_baselines(composition: Composition, output: Path) -> dict[str, BaselineRun]:
    """Return the runs that the recipes' gates name, by these names. Raises ConfigError, with the
    place in the recipe, for one that is not there or cannot be read."""
    found: dict[str, BaselineRun] = {}
    problems: dict[Problem, None] = {}
    for recipe in composition.recipes:
        name = recipe.config.gates.baseline
        if name is None or name in found:
            continue
        try:
            found[name] = _load(name, output, composition.name)
        except ConfigError as error:
            where = recipe.where(("gates", "baseline"))
            for problem in error.problems:
                place = f" ({problem.where})" if problem.where else ""
                what = f"gates.baseline: {problem.what}{place}"
                problems[Problem(what, where, problem.remedy or _REMEDY)] = None
    if problems:
        raise ConfigError(*problems)
    return found


def _load(name: str, output: Path, recipe: str) -> BaselineRun:
    if name == LATEST:  # of this recipe: the run before the one that is to be
        folder = newest_of(output, recipe)
        if folder is None:
            return BaselineRun(f"{recipe} has no run yet", None)
        return BaselineRun(f"{LATEST} ({folder.name})", read_report(folder))
    return BaselineRun(name, read_report(find_report(output, name)))


def with_baselines(matrix: Matrix, runs: Mapping[str, BaselineRun]) -> Matrix:
    """Return the matrix with what its cells' gates compare with."""
    found: dict[str, Baseline] = {}
    for name, run in runs.items():
        cells = [cell for cell in matrix.cells if cell.gates.baseline == name]
        there = {cell.id: cell for cell in run.report.cells} if run.report else {}
        partners = match_cells(
            [planned(cell) for cell in cells], [reported(cell) for cell in there.values()]
        )
        for cell in cells:
            partner = there.get(partners.get(cell.id, ""))
            found[cell.id] = _baseline(run, partner)
    return replace(matrix, baselines=found)


def _baseline(run: BaselineRun, cell: ReportCell | None) -> Baseline:
    if run.report is None:
        return Baseline(run.name, run.name)
    if cell is None:
        return Baseline(run.name, f"{run.name} has no such cell")
    if cell.size_bytes is None:
        return Baseline(run.name, f"{run.name} has no artifact of it, it was {cell.status} there")
    figures: dict[FigureName, float] = {"size": cell.size_bytes}
    if cell.quality:
        figures |= {"kl": cell.quality.kl_mean, "top1": cell.quality.top1}
    return Baseline(
        run.name,
        None if cell.quality else f"{run.name} did not judge it",
        cell.provenance.key if cell.provenance else None,
        figures,
        windows(cell.quality),
    )


def windows(quality: Quality | None) -> tuple[Window, ...]:
    """Return the windows that an artifact was judged on; none in reports of older versions."""
    return tuple(
        {
            "window": one.window,
            "kl": one.kl,
            "top1": one.top1,
            "reference_nll": one.reference_nll,
        }
        for one in (quality.by_window if quality else ())
    )
