"""The qnn toolchain's runner: builds graphs and context binaries, reads them back, loads graphs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from phibuild.worker.protocol import Contents, Report
from phibuild.worker.requests import BuildRequest

if TYPE_CHECKING:
    from phibuild.backends.qnn.convert import QnnBuilder
    from phibuild.backends.qnn.runtime import QnnRuntime

REFERENCE = "logits"
"""The graphs have the short rope factors, and are made for no more tokens than they are for."""


def build(request: BuildRequest, report: Report) -> None:
    """Build the variants of the request in one pass over the checkpoint."""
    from phibuild.worker.building import build_all

    def load() -> QnnBuilder:
        from phibuild.backends.qnn.convert import QnnBuilder

        return QnnBuilder()

    build_all(request, report, load)


def inspect(folder: Path) -> Contents:
    """Return the types of an artifact's weights and their bytes, from its own files."""
    from phibuild.backends.qnn.inspect import inspect as run

    return run(folder)


def prepare() -> None:
    """Import what judging needs."""
    import phibuild.backends.qnn.runtime  # noqa: F401


def load(folder: Path, threads: int) -> QnnRuntime:
    """Return the artifact's graphs in ONNX Runtime, on the CPU."""
    from phibuild.backends.qnn.runtime import QnnRuntime

    return QnnRuntime(folder, threads)
