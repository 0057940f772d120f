"""The PyTorch backend inside its toolchain: what the core and the judge call.

Modules are imported where they are needed: a build needs PyTorch alone, and importing Transformers
takes seconds and memory.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from phibuild.worker.protocol import Contents, Report
from phibuild.worker.requests import (
    ActivationsRequest,
    BuildRequest,
    QuantizeRequest,
    ReferenceRequest,
    SensitivityRequest,
    SourceRequest,
)

if TYPE_CHECKING:
    from phibuild.backends.pytorch.convert import PytorchBuilder
    from phibuild.backends.pytorch.runtime import TransformersRuntime

REFERENCE = "logits"
# PyTorch's OpenMP threads spin for milliseconds after every operation while they wait for the next
# one, on cores that other work needs. This bridges tens of microseconds; read when it is loaded.
os.environ.setdefault("GOMP_SPINCOUNT", "10000")
# MKL's products of matrices are the same for any number of threads; it has no say elsewhere. Read
# at its first call.
os.environ.setdefault("MKL_CBWR", "AUTO,STRICT")


def build(request: BuildRequest, report: Report) -> None:
    """Write the artifacts of the request in one pass over the checkpoint."""
    from phibuild.worker.building import build_all

    def load() -> PytorchBuilder:
        from phibuild.backends.pytorch.convert import PytorchBuilder

        return PytorchBuilder()

    build_all(request, report, load)


def inspect(folder: Path) -> Contents:
    """Return the stored types and bytes of a finished artifact."""
    from phibuild.backends.pytorch.inspect import inspect as run

    return run(folder)


def prepare() -> None:
    """Import what `load` needs, so that timing `load` times the artifact alone."""
    import phibuild.backends.pytorch.quantized_rows
    import phibuild.backends.pytorch.runtime  # noqa: F401


def load(folder: Path, threads: int) -> TransformersRuntime:
    """Return the artifact's runtime."""
    from phibuild.backends.pytorch.runtime import load as run

    return run(folder, threads)


def source(request: SourceRequest, report: Report) -> None:
    """Prove the source and write the facts of its tokenizer."""
    with report.loading():
        from phibuild.backends.pytorch.source import source as run

    run(request, report)


def reference(request: ReferenceRequest, report: Report) -> None:
    """Write the fp32 original's logits."""
    with report.loading():
        from phibuild.backends.pytorch.reference import reference as run

    run(request, report)


def activations(request: ActivationsRequest, report: Report) -> None:
    """Write the sums of squared inputs of the fp32 original's linear layers."""
    with report.loading():
        from phibuild.backends.pytorch.activations import activations as run

    run(request, report)


def quantize(request: QuantizeRequest, report: Report) -> None:
    """Write the original's weights on grids, by GPTQ."""
    with report.loading():
        from phibuild.backends.pytorch.gptq.run import quantize as run

    run(request, report)


def sensitivity(request: SensitivityRequest, report: Report) -> None:
    """Write what each of the original's matrices loses on a grid."""
    with report.loading():
        from phibuild.backends.pytorch.sensitivity import sensitivity as run

    run(request, report)
