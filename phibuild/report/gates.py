"""A cell's measurements against its gates."""

from __future__ import annotations

from phibuild.report.documents import Gate
from phibuild.schema import Gates, Judging, Precision
from phibuild.store.documents import Quality


def check_gates(
    gates: Gates,
    precision: Precision,
    variant: str | None = None,
    *,
    quality: Quality | None,
    size_bytes: int | None,
    fits_budget: bool | None,
    judging: Judging | None = None,
) -> list[Gate]:
    """Return the gates that the recipe sets, those of the precision's variant before those of the
    precision. One whose value was not measured (`evaluation=none`)
    has value None and passed None: it is not held against the cell. Where this machine cannot judge
    the cell (`judging`), it is not passed: a promise that nobody can check is not kept."""
    unmeasured = False if judging is not None and judging.how == "no" else None
    found = []
    kl, top1 = gates.quality_limits(precision, variant).values()
    if kl is not None:
        value = quality.kl_mean if quality else None
        passed = unmeasured if value is None else value <= kl
        found.append(Gate(name="kl", limit=kl, value=value, passed=passed))
    if top1 is not None:
        value = quality.top1 if quality else None
        passed = unmeasured if value is None else value >= top1
        found.append(Gate(name="top1", limit=top1, value=value, passed=passed))
    if (size := gates.size_limit) is not None:
        passed = None if size_bytes is None else size_bytes <= size
        found.append(Gate(name="size", limit=size, value=size_bytes, passed=passed))
    if gates.fits_budget:
        found.append(Gate(name="fits_budget", limit=True, value=fits_budget, passed=fits_budget))
    return found
