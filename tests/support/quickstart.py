"""The backends that the quickstart has."""

from __future__ import annotations

from pathlib import Path

import yaml

from phibuild.backends.registry import SHIPPED

_RECIPE = Path(__file__).resolve().parents[2] / "recipes" / "quickstart.yaml"
_DEVICES = yaml.safe_load(_RECIPE.read_text("utf-8"))["devices"].values()
QUICKSTART = tuple(name for name in SHIPPED if any(name in device for device in _DEVICES))
