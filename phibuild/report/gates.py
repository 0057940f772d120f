"""A cell's measurements against its gates."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from phibuild.schema import Gates, Judging, Precision


def check_gates(
    gates: Gates,
    precision: Precision,
    *,
    quality: Mapping[str, Any] | None,
    size_bytes: int | None,
    fits_budget: bool | None,
    judging: Judging | None = None,
) -> list[dict[str, Any]]:
    """Return [{name, limit, value, passed}] of the gates that the recipe sets. A gate whose value
    was not measured (`evaluation=none`) has value None and passed None: it is not held against
    the cell. Where this machine cannot judge the cell (`judging`), it has value None and has not
    been passed: a promise that nobody can check is not kept."""
    found: list[dict[str, Any]] = []

    def add(name: str, limit: Any, value: Any, passed: bool | None) -> None:
        found.append({"name": name, "limit": limit, "value": value, "passed": passed})

    unmeasured = False if judging is not None and judging.how == "no" else None
    kl, top1 = _for(gates.kl, precision), _for(gates.top1, precision)
    if kl is not None:
        value = quality["kl_mean"] if quality else None
        add("kl", kl, value, unmeasured if value is None else value <= kl)
    if top1 is not None:
        value = quality["top1"] if quality else None
        add("top1", top1, value, unmeasured if value is None else value >= top1)
    if gates.size is not None:
        add(
            "size", gates.size, size_bytes, None if size_bytes is None else size_bytes <= gates.size
        )
    if gates.fits_budget:
        add("fits_budget", True, fits_budget, fits_budget)
    return found


def _for(limit: Any, precision: Precision) -> float | None:
    value = limit.get(precision) if isinstance(limit, Mapping) else limit
    return None if value is None else float(value)
