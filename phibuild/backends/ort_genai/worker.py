"""The ort_genai backend inside its toolchain."""

from __future__ import annotations

import gc
import os
from pathlib import Path
from typing import Any

from phibuild.backends.ort_genai.inspect import inspect
from phibuild.backends.ort_genai.runtime import OrtGenaiRuntime
from phibuild.backends.ort_genai.tokenizer import adapt, check
from phibuild.worker.architecture import Architecture
from phibuild.worker.protocol import Report
from phibuild.worker.tokenizer_check import Facts, read_facts

__all__ = ["REFERENCE", "build", "inspect", "load"]

REFERENCE = "logits"
"""The graph chooses between short and long rope factors as the original does."""


def build(request: dict[str, Any], report: Report) -> None:
    """Make every item of the request; one that fails does not stop the others."""
    os.environ["TQDM_DISABLE"] = "1"  # before the vendor's packages are imported
    report.stage("importing the model builder")
    import torch

    from phibuild.backends.ort_genai import convert

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


def load(folder: Path, threads: int) -> OrtGenaiRuntime:
    """Load an artifact on the CPU."""
    return OrtGenaiRuntime(folder, threads)
