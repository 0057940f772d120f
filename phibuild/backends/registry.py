"""All backends, in the order of reports. Adding one: its folder, conf/backend/<name>.yaml, a line
here."""

from __future__ import annotations

import importlib
from functools import cache

from phibuild.backends.base import BackendSpec

BACKENDS = ("llamacpp", "ort_genai", "openvino", "mlx", "pytorch")


@cache
def backend(name: str) -> BackendSpec:
    """Return the spec of a backend of `BACKENDS`."""
    spec: BackendSpec = importlib.import_module(f"phibuild.backends.{name}.spec").SPEC
    return spec
