"""The ort_genai backend inside its toolchain."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from phibuild.worker.protocol import Contents, Report
from phibuild.worker.requests import BuildRequest

if TYPE_CHECKING:
    from phibuild.backends.ort_genai.convert import OrtGenaiBuilder
    from phibuild.backends.ort_genai.runtime import OrtGenaiRuntime

REFERENCE = "logits"
"""The graph chooses between short and long rope factors as the original does."""


def build(request: BuildRequest, report: Report) -> None:
    """Make every item of the request, one after the other."""
    from phibuild.worker.building import build_all

    def load() -> OrtGenaiBuilder:
        os.environ["TQDM_DISABLE"] = "1"  # before the vendor's packages are imported
        from phibuild.backends.ort_genai.convert import OrtGenaiBuilder

        return OrtGenaiBuilder()

    report.stage("importing the model builder")
    build_all(request, report, load)


def inspect(folder: Path) -> Contents:
    """Return the stored types and bytes of a finished artifact."""
    from phibuild.backends.ort_genai.inspect import inspect as run

    return run(folder)


def prepare() -> None:
    """Import what judging needs."""
    import phibuild.backends.ort_genai.runtime  # noqa: F401


def load(folder: Path, threads: int) -> OrtGenaiRuntime:
    """Load an artifact on the CPU."""
    from phibuild.backends.ort_genai.runtime import OrtGenaiRuntime

    return OrtGenaiRuntime(folder, threads)
