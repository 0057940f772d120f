"""The ort_genai backend inside its toolchain."""

from __future__ import annotations

import gc
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from phibuild.worker.protocol import Report

if TYPE_CHECKING:
    from phibuild.backends.ort_genai.runtime import OrtGenaiRuntime
    from phibuild.worker.architecture import Architecture
    from phibuild.worker.tokenizer_check import Facts

REFERENCE = "logits"
"""The graph chooses between short and long rope factors as the original does."""


def build(request: dict[str, Any], report: Report) -> None:
    """Make every item of the request; one that fails does not stop the others."""
    os.environ["TQDM_DISABLE"] = "1"  # before the vendor's packages are imported
    report.stage("importing the model builder")
    import torch

    from phibuild.backends.ort_genai import convert
    from phibuild.worker.architecture import Architecture
    from phibuild.worker.tokenizer_check import read_facts

    torch.set_num_threads(1)  # slabs run side by side, not the tensors in them
    source = Path(request["source"]).resolve()
    arch = Architecture.from_json(request["architecture"])
    checkpoint = convert.map_checkpoint(source, arch)
    facts = read_facts(Path(request["facts"]))
    for item in request["items"]:
        try:
            _build_one(convert, source, arch, checkpoint, facts, request["threads"], item, report)
        except Exception as error:  # whatever the vendor raises, the other items are built
            report.failed(item["item"], error)
        gc.collect()  # a graph's nodes and values refer to each other


def _build_one(
    convert: Any,
    source: Path,
    arch: Architecture,
    checkpoint: Any,
    facts: Facts,
    threads: int,
    item: dict[str, Any],
    report: Report,
) -> None:
    from phibuild.backends.ort_genai.tokenizer import adapt, check

    key, output, variant = item["item"], Path(item["output"]), item["variant"]
    report.stage("tracing", item=key)
    written, shown = 0, 0

    def progress(weights: int) -> None:
        nonlocal written, shown
        written += weights
        percent = min(99, 100 * written // arch.parameters)
        if percent > shown:
            shown = percent
            report.stage("quantizing and writing", percent / 100, item=key)

    streaming = convert.Streaming(threads, progress)
    convert.build(
        source, arch, checkpoint, variant["precision"], variant["options"], output, streaming
    )
    report.stage("checking the tokenizer", item=key)
    adapt(output, facts)
    report.item(key, {**inspect(output), "tokenizer": check(output, facts)})


def inspect(folder: Path) -> dict[str, Any]:
    """Return the stored types and bytes of a finished artifact."""
    from phibuild.backends.ort_genai.inspect import inspect as run

    return run(folder)


def prepare() -> None:
    """Import what `load` needs, so that timing `load` times the artifact alone."""
    import phibuild.backends.ort_genai.runtime  # noqa: F401


def load(folder: Path, threads: int) -> OrtGenaiRuntime:
    """Load an artifact on the CPU."""
    from phibuild.backends.ort_genai.runtime import OrtGenaiRuntime

    return OrtGenaiRuntime(folder, threads)
