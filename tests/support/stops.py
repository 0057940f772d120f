"""Models that stop: the embedded one, with the token that ends generation where another was."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from phibuild.worker.safetensors import read_checkpoint
from support.checkpoints import TOKENIZERS

END = "<|end|>"


def end_at(said: str, folder: Path) -> Path:
    """Copy the embedded model into a new folder, so that it says END where it said that token;
    return the folder."""
    shutil.copytree(TOKENIZERS["phi3"], folder)
    vocabulary = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    added = {token["content"]: token["id"] for token in vocabulary["added_tokens"]}
    _swap_rows(folder, added[END], vocabulary["model"]["vocab"][said])
    return folder


def _swap_rows(source: Path, one: int, other: int) -> None:
    """Exchange two rows of lm_head, so that a model says the one token where it said the other."""
    head = read_checkpoint(source)["lm_head.weight"]
    path, rows, nbytes = head.path, head.shape[0], head.nbytes
    data = bytearray(path.read_bytes())
    width = nbytes // rows
    first, second = (
        slice(head.offset + row * width, head.offset + (row + 1) * width) for row in (one, other)
    )
    data[first], data[second] = data[second], data[first]
    path.unlink()
    path.write_bytes(data)
