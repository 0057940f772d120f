"""An importance matrix that nobody computed."""

from __future__ import annotations

import struct

from phibuild.backends.llamacpp.layout import tensors
from phibuild.backends.llamacpp.matrix import Entry, ImportanceMatrix
from phibuild.checkpoints.facts import load_checkpoint
from phibuild.config.catalogue import DATA


def make_matrix() -> ImportanceMatrix:
    """Return a matrix that suits the embedded model."""
    arch = load_checkpoint(DATA / "phi3-tiny-trained", "a", "a").architecture
    entries = {
        tensor.name: Entry(struct.pack("<f", 1) * tensor.shape[-1], (1024,))
        for tensor in tensors(arch, "F32")
        if tensor.name.startswith("blk.") and len(tensor.shape) == 2
    }
    return ImportanceMatrix(entries, ("texts.txt",), 2, 512)
