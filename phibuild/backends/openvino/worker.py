"""The openvino toolchain's runner: builds IRs, reads them back, loads them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from phibuild.backends.openvino import telemetry  # noqa: F401, off before openvino is imported
from phibuild.worker.protocol import Contents, Report
from phibuild.worker.requests import BuildRequest

if TYPE_CHECKING:
    from phibuild.backends.openvino.convert import OpenVinoBuilder
    from phibuild.backends.openvino.runtime import OpenVinoRuntime

REFERENCE = "logits"
"""The graph chooses between short and long rope factors as the original does."""


def build(request: BuildRequest, report: Report) -> None:
    """Build the variants of the request in one pass over the checkpoint."""
    from phibuild.worker.building import build_all

    def load() -> OpenVinoBuilder:
        from phibuild.backends.openvino.convert import OpenVinoBuilder

        return OpenVinoBuilder()

    build_all(request, report, load)


def inspect(folder: Path) -> Contents:
    """Return the types of an artifact's weights and their bytes, from its own files."""
    from phibuild.backends.openvino.inspect import inspect as run

    return run(folder)


def prepare() -> None:
    """Import what judging needs."""
    import phibuild.backends.openvino.runtime  # noqa: F401


def load(folder: Path, threads: int) -> OpenVinoRuntime:
    """Return the artifact on the CPU plugin, in f32, as it is judged."""
    from phibuild.backends.openvino.runtime import OpenVinoRuntime

    return OpenVinoRuntime(folder, threads)
