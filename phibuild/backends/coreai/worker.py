"""The coreai toolchain's runner: builds models, reads them back, loads them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from phibuild.worker.protocol import Contents, Report
from phibuild.worker.requests import BuildRequest

if TYPE_CHECKING:
    from phibuild.backends.coreai.convert import ModelBuilder
    from phibuild.backends.coreai.runtime import CoreAiRuntime

REFERENCE = "logits"
"""The model has the short rope factors, and is made for no more tokens than they are for."""


def build(request: BuildRequest, report: Report) -> None:
    """Build the variants of the request in one pass over the checkpoint."""
    from phibuild.worker.building import build_all

    def load() -> ModelBuilder:
        from phibuild.backends.coreai.convert import ModelBuilder

        return ModelBuilder()

    build_all(request, report, load)


def inspect(folder: Path) -> Contents:
    """Return the types of an artifact's weights and their bytes, from its own files."""
    from phibuild.backends.coreai.inspect import inspect as run

    return run(folder)


def prepare() -> None:
    """Import what judging needs."""
    import phibuild.backends.coreai.runtime  # noqa: F401


def load(folder: Path, threads: int) -> CoreAiRuntime:
    """Return the artifact in Core AI's runtime, on the CPU."""
    from phibuild.backends.coreai.runtime import CoreAiRuntime

    return CoreAiRuntime(folder)
