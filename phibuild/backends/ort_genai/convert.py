"""ONNX artifacts, one after the other, by the vendor's model builder (vendor.py)."""

from __future__ import annotations

import gc
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from phibuild.backends.ort_genai import vendor
from phibuild.backends.ort_genai.inspect import inspect
from phibuild.backends.ort_genai.tensors import Streaming
from phibuild.worker.building import Build, Check
from phibuild.worker.codes import coded_weights
from phibuild.worker.costs import Output
from phibuild.worker.genai_tokenizer import adapt, check
from phibuild.worker.protocol import Contents


class OrtGenaiBuilder:
    """See phibuild.worker.building.Builder. Nothing is kept of an artifact while it is made."""

    def __init__(self) -> None:
        self._checkpoint: Mapping[str, torch.Tensor] = {}

    def prepare(self, build: Build[None]) -> None:
        torch.set_num_threads(1)  # slabs run side by side, not the tensors in them
        self._checkpoint = vendor.map_checkpoint(build.source, build.arch)

    def open(self, build: Build[None], output: Output) -> None:
        """There is nothing to be opened: the builder opens its files itself."""

    def convert(self, build: Build[None], outputs: Sequence[tuple[Output, None]]) -> None:
        for output, _ in outputs:
            with build.costs.alone(output):
                self._make(build, output)
                gc.collect()  # a graph's nodes and values refer to each other
            build.complete(output)

    def _make(self, build: Build[None], output: Output) -> None:
        build.report.stage("tracing", item=output.item)
        written, shown = 0, 0

        def progress(weights: int) -> None:
            nonlocal written, shown
            written += weights
            percent = min(99, 100 * written // build.arch.parameters)
            if percent > shown:
                shown = percent
                build.report.stage("quantizing and writing", percent / 100, item=output.item)

        ranges = output.request.get("cache_ranges")
        vendor.build(
            build.source.resolve(),
            build.arch,
            self._checkpoint,
            output.request["variant"],
            output.folder,
            Streaming(build.threads, progress),
            coded_weights(output.request),
            Path(ranges) if ranges else None,
        )
        adapt(output.folder, build.facts)

    def close(self, kept: None) -> None:
        """There is nothing open."""

    def checker(self) -> Check:
        return check

    def inspect(self, folder: Path) -> Contents:
        return inspect(folder)
