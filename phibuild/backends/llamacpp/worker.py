"""The llamacpp backend inside its toolchain: build, inspect, load."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from phibuild.worker.protocol import Contents, Report
from phibuild.worker.requests import BuildRequest

if TYPE_CHECKING:
    from phibuild.backends.llamacpp.convert import LlamaCppBuilder
    from phibuild.backends.llamacpp.runtime import LlamaRuntime

REFERENCE = "logits"


def build(request: BuildRequest, report: Report) -> None:
    """Write all items of the request in one pass over the checkpoint."""
    from phibuild.worker.building import build_all

    def load() -> LlamaCppBuilder:
        from phibuild.backends.llamacpp.convert import LlamaCppBuilder

        return LlamaCppBuilder()

    build_all(request, report, load)


def inspect(folder: Path) -> Contents:
    """Return the stored types and bytes of a finished artifact."""
    from phibuild.backends.llamacpp.inspect import inspect as run

    return run(folder)


def prepare() -> None:
    """Import what judging needs."""
    import phibuild.backends.llamacpp.runtime  # noqa: F401


def load(folder: Path, threads: int) -> LlamaRuntime:
    """Return the artifact loaded by llama.cpp."""
    from phibuild.backends.llamacpp.inspect import model_file
    from phibuild.backends.llamacpp.runtime import LlamaRuntime

    return LlamaRuntime(model_file(folder), threads)
