"""The executorch toolchain's runner: builds programs, reads them back, loads them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from phibuild.worker.protocol import Contents, Report
from phibuild.worker.requests import BuildRequest

if TYPE_CHECKING:
    from phibuild.backends.executorch.convert import ProgramBuilder
    from phibuild.backends.executorch.runtime import ExecuTorchRuntime

REFERENCE = "logits"
"""The program has the short rope factors; its cache holds no more tokens than they are for."""


def build(request: BuildRequest, report: Report) -> None:
    """Build the variants of the request in one pass over the checkpoint."""
    from phibuild.worker.building import build_all

    def load() -> ProgramBuilder:
        from phibuild.backends.executorch.convert import ProgramBuilder

        return ProgramBuilder()

    build_all(request, report, load)


def inspect(folder: Path) -> Contents:
    """Return the types of an artifact's weights and their bytes, from its own files."""
    from phibuild.backends.executorch.inspect import inspect as run

    return run(folder)


def prepare() -> None:
    """Import what judging needs."""
    import phibuild.backends.executorch.runtime  # noqa: F401


def load(folder: Path, threads: int) -> ExecuTorchRuntime:
    """Return the artifact in ExecuTorch's runtime, on the CPU."""
    from phibuild.backends.executorch.runtime import ExecuTorchRuntime

    return ExecuTorchRuntime(folder, threads)
