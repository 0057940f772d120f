"""The openvino toolchain's runner: builds IRs, reads them back, loads them."""

from __future__ import annotations

import gc
import tempfile
from pathlib import Path
from typing import Any

from phibuild.architecture import Architecture
from phibuild.backends.companions import GENERATION_FILES, TOKENIZER_FILES, copy_companions
from phibuild.backends.openvino import telemetry  # noqa: F401, off before openvino is imported
from phibuild.backends.openvino.contents import read_contents
from phibuild.backends.openvino.convert import MODEL_XML, convert
from phibuild.backends.openvino.runtime import OpenVinoRuntime
from phibuild.backends.openvino.tokenizer import convert_tokenizer, copy_tokenizer
from phibuild.worker import Report

REFERENCE = "logits"
"""The graph chooses between short and long rope factors as the original does."""


def build(request: dict[str, Any], report: Report) -> None:
    """Build the variants of the request, one after the other: each is a graph over the same
    mapped weights. A variant that fails does not stop the others."""
    source = Path(request["source"])
    arch = Architecture.from_json(request["architecture"])
    with tempfile.TemporaryDirectory() as scratch:
        report.stage("converting the tokenizer")
        try:
            convert_tokenizer(source, Path(scratch))
        except Exception as error:  # of the many kinds that Transformers and the converter raise
            for entry in request["items"]:
                report.failed(entry["item"], error)
            return
        for entry in request["items"]:
            item, output = entry["item"], Path(entry["output"])
            try:
                report.stage("converting", item=item)
                convert(source, arch, entry["variant"]["options"], output)
                copy_tokenizer(Path(scratch), output)
                copy_companions(
                    source, output, ("config.json", *TOKENIZER_FILES, *GENERATION_FILES)
                )
                result = inspect(output)
            except Exception as error:  # whatever nncf or OpenVINO raises, the others are built
                report.failed(item, error)
            else:
                report.item(item, result)
            gc.collect()  # models and constants hold each other; the next variant needs the memory


def inspect(folder: Path) -> dict[str, Any]:
    """Return the types of an artifact's weights and their bytes, from its own files."""
    return read_contents(folder / MODEL_XML)


def load(folder: Path, threads: int) -> OpenVinoRuntime:
    """Return the artifact on the CPU plugin, in f32, as it is judged."""
    return OpenVinoRuntime(folder, threads)
