"""The mlx runner: builds, inspects and loads MLX artifacts. Runs inside the mlx toolchain."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from phibuild.worker.protocol import Contents, Report
from phibuild.worker.requests import BuildRequest

if TYPE_CHECKING:
    from phibuild.backends.mlx.convert import MlxBuilder
    from phibuild.backends.mlx.runtime import MlxRuntime

# The runtime has threads of its own, each of which calls numpy's BLAS; more threads in there would
# spin for one another. OpenBLAS looks when numpy is imported, which nothing has done so far.
os.environ["OPENBLAS_NUM_THREADS"] = "1"

# mlx-lm 0.32 takes the long rope factors at every position (models/rope_utils.py).
REFERENCE = "logits_long"


def build(request: BuildRequest, report: Report) -> None:
    """Write every artifact of the request in one pass over the checkpoint, and report each."""
    from phibuild.worker.building import build_all

    def load() -> MlxBuilder:
        from phibuild.backends.mlx.convert import MlxBuilder

        if any(item["variant"]["options"].get("mode", "affine") != "affine" for item in items):
            import phibuild.backends.mlx.microscaling  # noqa: F401, imports MLX
        return MlxBuilder()

    items = request["items"]

    build_all(request, report, load)


def inspect(folder: Path) -> Contents:
    """Return the stored types and bytes of a finished artifact."""
    from phibuild.backends.mlx.inspect import inspect as run

    return run(folder)


def prepare() -> None:
    """Import what judging needs."""
    import phibuild.backends.mlx.runtime  # noqa: F401


def load(folder: Path, threads: int) -> MlxRuntime:
    """Return the artifact to be judged by `threads` threads. MLX's own CPU kernels have one."""
    from phibuild.backends.mlx.runtime import MlxRuntime

    return MlxRuntime(folder, threads)
