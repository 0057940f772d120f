"""The importance matrix: how much each column's rounding errors weigh, from the activations.

llama-imatrix adds up the squares of a matrix's inputs over all tokens, llama-quantize divides by
their number (tools/quantize/quantize.cpp: `load_imatrix`), both in float32. The sums come from the
original's activations step; lm_head and the embedding have none, as llama-imatrix has it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from phibuild.backends.llamacpp.ggml import Floats
from phibuild.backends.llamacpp.layout import Tensor
from phibuild.worker.protocol import WorkerError
from phibuild.worker.safetensors import read_header


@dataclass(frozen=True)
class Importance:
    """Weights [columns] by the matrices' names in the checkpoint, and the chunks of text that they
    come from."""

    columns: Mapping[str, Floats]
    chunks: int


def read_importance(folder: Path) -> Importance:
    """Return the importance matrix that the activations in a folder make. Raises WorkerError if
    they hold infinity or NaN."""
    meta = json.loads((folder / "meta.json").read_text(encoding="utf-8"))
    path = folder / "activations.safetensors"
    data = np.memmap(path, np.uint8, mode="r")
    columns: dict[str, Floats] = {}
    for tensor in read_header(path).values():
        sums = data[tensor.offset : tensor.offset + tensor.nbytes].view("<f4")
        columns[tensor.name] = np.array(sums / np.float32(meta["tokens"]), np.float32)
        if not np.isfinite(columns[tensor.name]).all():
            raise WorkerError(f"the activations of {tensor.name} hold infinity or NaN")
    return Importance(columns, meta["chunks"])


def check_importance(importance: Importance, tensors: list[Tensor]) -> None:
    """Raise WorkerError unless every matrix inside a layer has its weights."""
    for tensor in tensors:
        if tensor.source and tensor.source.startswith("model.layers.") and len(tensor.shape) == 2:
            found = importance.columns.get(tensor.source)
            if found is None or found.shape != tensor.shape[-1:]:
                raise WorkerError(f"the activations do not suit {tensor.source}")
