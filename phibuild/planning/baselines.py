"""What the gates of cells compare with: the figures that the same cells have in another run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from phibuild.schema import Cell
from phibuild.schema.limits import FigureName
from phibuild.worker.pairing import Window
from phibuild.worker.stopping import Compared


@dataclass(frozen=True)
class Baseline:
    """A cell of the run that is called `run`: its `figures`, the `windows` that it was judged on,
    the key of its artifact. `problem`: why there is no such cell, or why it has no figures."""

    run: str
    problem: str | None = None
    key: str | None = None
    figures: Mapping[FigureName, float] = field(default_factory=dict)
    windows: tuple[Window, ...] = ()


def judged_comparisons(
    cells: Sequence[Cell], baselines: Mapping[str, Baseline], key: str
) -> tuple[Compared, ...]:
    """Return what judging the artifact of this key has to decide for its cells. One that is the
    baseline's own artifact is not worse than itself: nothing has to be found out."""
    found: list[Compared] = []
    for cell in cells:
        baseline = baselines.get(cell.id)
        if baseline is None or baseline.key == key:
            continue
        name = cell.variant.name if cell.variant else None
        comparisons = cell.gates.comparisons(cell.precision, name)
        for figure in ("kl", "top1"):
            compared, value = comparisons.get(figure), baseline.figures.get(figure)
            if compared is None or value is None:
                continue
            one: Compared = {
                "figure": figure,
                "factor": compared.factor,
                "margin": compared.margin,
                "limit": compared.limit(value),
                "windows": list(baseline.windows),
            }
            if one not in found:
                found.append(one)
    return tuple(found)
