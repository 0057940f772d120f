"""What a report says of each matrix: what it loses alone on a grid, and the types that it got."""

from __future__ import annotations

import re
from collections.abc import Iterator

from tabulate import tabulate

from phibuild.backends.mixed import TYPES
from phibuild.planning.mixing import read_losses
from phibuild.planning.plan import Plan
from phibuild.planning.tensor_types import types_yaml
from phibuild.report.documents import MatrixLoss, Report, Sensitivity
from phibuild.store.store import Store
from phibuild.worker.grids import Grid

_LAYER = re.compile(r"model\.layers\.(\d+)\.(?:\w+\.)?(\w+)\.weight")
_ZEROS = {"middle": "symmetric", "code": "with zero points", "bias": "with biases"}


def sensitivities(plan: Plan, store: Store) -> list[Sensitivity]:
    """Return what was measured for the artifacts of a run."""
    found: dict[str, Sensitivity] = {}
    for artifact in plan.artifacts:
        key, calibration = artifact.sensitivity, artifact.variant.sensitivity
        folder = store.reference(key) if key else None
        if key is None or folder is None or calibration is None or calibration.grid is None:
            continue
        found[key] = Sensitivity(
            key=key,
            model=artifact.model,
            grid=calibration.grid.to_json(),
            tokens=calibration.tokens,
            text_sha256=calibration.sha256,
            long=calibration.long,
            losses={
                name: MatrixLoss(kl=loss.kl, kl_error=loss.error)
                for name, loss in read_losses(folder).items()
            },
        )
    return list(found.values())


def sensitivity_lines(report: Report) -> Iterator[str]:
    """Yield the tables of a report's sensitivities, and the types that were chosen by them, as they
    can be written into a recipe."""
    if not report.sensitivities:
        yield "nothing was measured: an int4 with target_size or target_kl needs it"
    for one in report.sensitivities:
        grid = Grid(**one.grid)  # type: ignore[arg-type]
        total = sum(loss.kl for loss in one.losses.values())
        yield (
            f"{one.model}: KL with each matrix alone on {grid.bits} bits in groups of "
            f"{grid.group_size}, {_ZEROS[grid.zero]}{', long rope factors' if one.long else ''}; "
            f"{one.tokens:,} tokens; {total:.4f} in all"
        )
        yield _table(one)
        yield ""
    for cell in report.cells:
        if types := (cell.options or {}).get(TYPES):
            yield f"{cell.id} ({cell.variant}):"
            yield types_yaml(types)
            yield ""


def _table(one: Sensitivity) -> str:
    """Return a row for each layer, and one for what is in none."""
    rows: dict[str, dict[str, str]] = {}
    for name, loss in one.losses.items():
        match = _LAYER.fullmatch(name)
        layer, role = match.groups() if match else (name.removesuffix(".weight"), "")
        rows.setdefault(layer, {})[role] = f"{loss.kl:.5f} ± {loss.kl_error:.5f}"
    roles = sorted({role for row in rows.values() for role in row if role})
    cells = [
        [layer, row[""]] if "" in row else [layer, *(row.get(role, "") for role in roles)]
        for layer, row in rows.items()
    ]
    return tabulate(cells, ("layer", *roles), disable_numparse=True)
