"""What the quickstart has: its backends, its gates."""

from __future__ import annotations

from pathlib import Path

import yaml

from phibuild.backends.registry import SHIPPED

_RECIPE = Path(__file__).resolve().parents[2] / "recipes" / "quickstart.yaml"
_WHOLE = yaml.safe_load(_RECIPE.read_text("utf-8"))
QUICKSTART = tuple(
    name for name in SHIPPED if any(name in device for device in _WHOLE["devices"].values())
)
GATES = ",".join(f"{precision}:{limit}" for precision, limit in _WHOLE["gates"]["kl"].items())
"""Its limits of KL, as words have them: gates.kl={GATES}."""
