"""What the recipes that go through all backends have: the quickstart, and `every_backend`, which
has those too that take long to compile or to judge."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from phibuild.backends.registry import SHIPPED

_RECIPES = Path(__file__).resolve().parents[2] / "recipes"


def _recipe(name: str) -> Mapping[str, Any]:
    found: Mapping[str, Any] = yaml.safe_load((_RECIPES / f"{name}.yaml").read_text("utf-8"))
    return found


def devices_of(backend: str) -> dict[str, tuple[str, ...]]:
    """Return the devices that have a backend in one of the recipes, with its precisions there."""
    found: dict[str, tuple[str, ...]] = {}
    for recipe in ("quickstart", "every_backend"):
        for device, backends in _recipe(recipe)["devices"].items():
            if backend in backends:
                found[device] = (*found.get(device, ()), *backends[backend])
    return found


_QUICKSTART = _recipe("quickstart")
QUICKSTART = tuple(
    name for name in SHIPPED if any(name in device for device in _QUICKSTART["devices"].values())
)
"""The backends that the quickstart has."""
GATES = ",".join(f"{precision}:{limit}" for precision, limit in _QUICKSTART["gates"]["kl"].items())
"""Its limits of KL, as words have them: gates.kl={GATES}."""
