"""What a GGUF file holds, read by llama.cpp's own reader."""

from __future__ import annotations

from pathlib import Path

from phibuild.backends.llamacpp import ggml
from phibuild.backends.llamacpp.layout import ROPE_FACTORS
from phibuild.worker.protocol import Contents, WorkerError


def inspect(folder: Path) -> Contents:
    """Return the stored types and bytes of the artifact, read by llama.cpp's own GGUF reader."""
    types: dict[str, int] = {}
    weight_bytes = 0
    for tensor in ggml.read_tensors(model_file(folder)):
        if not tensor.name.startswith(ROPE_FACTORS):
            types[tensor.kind] = types.get(tensor.kind, 0) + tensor.parameters
            weight_bytes += tensor.nbytes
    return {"types": types, "weight_bytes": weight_bytes}


def model_file(folder: Path) -> Path:
    """Return the GGUF file of an artifact's folder, or the file itself. Raises WorkerError unless
    there is just one."""
    if folder.is_file():
        return folder
    found = sorted(folder.glob("*.gguf"))
    if len(found) != 1:
        raise WorkerError(f"{len(found)} GGUF files in the artifact, not one")
    return found[0]
