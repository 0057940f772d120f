"""The openvino toolchain's runner: builds IRs, reads them back, loads them."""

from __future__ import annotations

import gc
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from phibuild.backends.openvino import telemetry  # noqa: F401, off before openvino is imported
from phibuild.worker.protocol import Report, peak_rss_bytes

if TYPE_CHECKING:
    from phibuild.backends.openvino.runtime import OpenVinoRuntime

REFERENCE = "logits"
"""The graph chooses between short and long rope factors as the original does."""


def build(request: dict[str, Any], report: Report) -> None:
    """Build the variants of the request in one pass over the checkpoint. What fails one of them
    does not stop the others."""
    from phibuild.backends.openvino.convert import Output, read_tensors, write_matrices
    from phibuild.backends.openvino.tokenizer import check, convert_tokenizer, copy_tokenizer
    from phibuild.worker.architecture import Architecture
    from phibuild.worker.companions import (
        GENERATION_FILES,
        TOKENIZER_FILES,
        complete_generation_config,
        copy_companions,
    )
    from phibuild.worker.tokenizer_check import read_facts

    source = Path(request["source"])
    arch = Architecture.from_json(request["architecture"])
    entries = {entry["item"]: entry for entry in request["items"]}
    folders = {item: Path(entry["output"]) for item, entry in entries.items()}
    outputs: dict[str, Output] = {}
    started = time.perf_counter()
    try:
        facts = read_facts(Path(request["facts"]))
        with tempfile.TemporaryDirectory() as scratch:
            report.stage("converting the tokenizer")
            convert_tokenizer(source, Path(scratch))
            for folder in folders.values():
                copy_tokenizer(Path(scratch), folder)
                copy_companions(
                    source, folder, ("config.json", *TOKENIZER_FILES, *GENERATION_FILES)
                )
                complete_generation_config(folder, facts.stops)
            report.stage("checking the tokenizer")
            checked = check(next(iter(folders.values())), facts)  # all have the same files
        tensors = read_tensors(source, arch)
        for item, entry in entries.items():
            try:
                report.stage("laying out the graph", item=item)
                options = entry["variant"]["options"]
                outputs[item] = Output(folders[item], tensors, arch, options)
            except Exception as error:  # whatever OpenVINO raises, the others are built
                report.failed(item, error)
            gc.collect()  # nodes of a graph hold each other
        if outputs:
            write_matrices(
                tensors,
                list(outputs.values()),
                request["threads"],
                lambda done: report.stage("converting", done),
            )
    except Exception as error:  # of the many kinds that the tokenizer's converter raises, too
        for item in outputs or entries:
            report.failed(item, error)
        return
    finally:
        for output in outputs.values():
            output.close()
    # All were made at once: each has its share of the time, and the peak of all.
    cost = {
        "seconds": (time.perf_counter() - started) / max(1, len(outputs)),
        "peak_rss_bytes": peak_rss_bytes(),
    }
    for item, output in outputs.items():
        try:
            if output.error is not None:
                raise output.error
            report.item(item, {**inspect(folders[item]), **cost, "tokenizer": checked})
        except Exception as error:  # this artifact's alone
            report.failed(item, error)


def inspect(folder: Path) -> dict[str, Any]:
    """Return the stored types and bytes of a finished artifact."""
    from phibuild.backends.openvino.inspect import inspect as run

    return run(folder)


def prepare() -> None:
    """Import what `load` needs, so that timing `load` times the artifact alone."""
    import phibuild.backends.openvino.runtime  # noqa: F401


def load(folder: Path, threads: int) -> OpenVinoRuntime:
    """Return the artifact on the CPU plugin, in f32, as it is judged."""
    from phibuild.backends.openvino.runtime import OpenVinoRuntime

    return OpenVinoRuntime(folder, threads)
