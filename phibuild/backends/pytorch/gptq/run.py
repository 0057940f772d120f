"""The verb `quantize`: one calibration, and the codes of every grid that is asked for."""

from __future__ import annotations

import json
import time
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch

from phibuild.backends.pytorch.activations import choose_chunks
from phibuild.backends.pytorch.gptq.layers import Output, Pass, States
from phibuild.backends.pytorch.layerwise import LayerwisePhi3
from phibuild.backends.pytorch.threads import use_threads
from phibuild.worker.architecture import Architecture
from phibuild.worker.codes import META, sweep_parts
from phibuild.worker.grids import Grid
from phibuild.worker.protocol import Report, peak_rss_bytes
from phibuild.worker.requests import QuantizeRequest

_PACKAGES = ("torch", "transformers", "tokenizers", "numpy")


def quantize(request: QuantizeRequest, report: Report) -> None:
    """Write the codes of every item (phibuild.worker.codes) and meta.json into its folder, which
    may have some layers already: what is there is kept.

    The fp32 original sees up to `tokens` tokens of `text`, chosen as for the activations. A text
    that is too short or does not suit the model fails all items.
    """
    outputs = [
        Output(item["item"], Grid.from_json(item["grid"]), Path(item["output"]))
        for item in request["items"]
    ]
    result = {}
    try:
        for output in outputs:
            sweep_parts(output.folder)
        result = _quantize(request, report, outputs)
    except Exception as error:  # whatever Transformers raises is these items' failure
        for output in outputs:
            output.error = output.error or error
    for output in outputs:
        if output.error is not None:
            report.failed(output.item, output.error)
            continue
        text = json.dumps({**result, "grid": output.grid.to_json()}, indent=2)
        (output.folder / META).write_text(text + "\n", encoding="utf-8")
        report.item(output.item, result)


def _quantize(request: QuantizeRequest, report: Report, outputs: list[Output]) -> dict[str, object]:
    started, cpu = time.perf_counter(), time.process_time()
    source = Path(request["source"])
    use_threads(request["threads"])
    report.stage("tokenizing")
    arch = Architecture.from_json(request["architecture"])
    chunks = choose_chunks(request, arch)
    report.stage("loading")
    with torch.inference_mode():
        model = LayerwisePhi3(source, arch)
        states = model.embed(torch.from_numpy(chunks.astype(np.int64)))
        saved = States(Path(request["states"]))
        Pass(model, states, saved, request["threads"], report.stage).run(outputs)
    return {
        "tokens": int(chunks.size),
        "chunks": len(chunks),
        "seconds": time.perf_counter() - started,
        "cpu_seconds": time.process_time() - cpu,
        "peak_rss_bytes": peak_rss_bytes(),
        "versions": {name: version(name) for name in _PACKAGES},
    }
