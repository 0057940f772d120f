"""The litert toolchain's runner: builds models and bundles, reads them back, loads them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from phibuild.worker.protocol import Contents, Report
from phibuild.worker.requests import BuildRequest

if TYPE_CHECKING:
    from phibuild.backends.litert.convert import LiteRtBuilder
    from phibuild.backends.litert.runtime import LiteRtRuntime

REFERENCE = "logits"
"""The graph has the short rope factors; its cache holds no more tokens than they are for."""


def build(request: BuildRequest, report: Report) -> None:
    """Build the variants of the request in one pass over the checkpoint."""
    from phibuild.worker.building import build_all

    def load() -> LiteRtBuilder:
        from phibuild.backends.litert.convert import LiteRtBuilder

        return LiteRtBuilder()

    build_all(request, report, load)


def inspect(folder: Path) -> Contents:
    """Return the types of an artifact's weights and their bytes, from its own files."""
    from phibuild.backends.litert.inspect import inspect as run

    return run(folder)


def prepare() -> None:
    """Import what judging needs."""
    import phibuild.backends.litert.runtime  # noqa: F401


def load(folder: Path, threads: int) -> LiteRtRuntime:
    """Return the artifact in LiteRT, on the CPU."""
    from phibuild.backends.litert.runtime import LiteRtRuntime

    return LiteRtRuntime(folder, threads)
