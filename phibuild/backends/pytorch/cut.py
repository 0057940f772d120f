"""A copy of a checkpoint folder with some of its layers: a folder like it, but small.

Every safetensors file of the folder is copied without the tensors of the other layers, every index
too, under their own names, and all other files are linked: whoever reads the copy chooses among the
same files as in the original.
"""

from __future__ import annotations

import json
import os
import re
import struct
from collections.abc import Sequence
from pathlib import Path

import torch

from phibuild.worker.config_keys import rope_objects
from phibuild.worker.json_values import JsonDict, JsonObject
from phibuild.worker.safetensors import INDEX, SINGLE, shard_paths

_LAYER = re.compile(r"\blayers\.(\d+)\.")
_BLOCK = 1 << 24
_FUSED = {"qkv_proj": ("q_proj", "k_proj", "v_proj"), "gate_up_proj": ("gate_proj", "up_proj")}


def cut_copy(source: Path, target: Path, layers: Sequence[int]) -> None:
    """Fill the empty folder `target` with the checkpoint `source` of which only `layers` are left,
    numbered from 0. Raises OSError or ValueError where a file cannot be read."""
    places = {number: place for place, number in enumerate(layers)}
    for path in sorted(source.iterdir()):
        copy = target / path.name
        if path.name.endswith(".safetensors"):
            _cut_weights(path, copy, places)
        elif path.name.endswith(".safetensors.index.json"):
            index = json.loads(path.read_text(encoding="utf-8"))
            names = index["weight_map"].items()
            index["weight_map"] = {
                new: file for name, file in names if (new := _renamed(name, places))
            }
            copy.write_text(json.dumps(index), encoding="utf-8")
        elif path.name == "config.json":
            config = loadable(json.loads(path.read_text(encoding="utf-8")))
            config["num_hidden_layers"] = len(layers)
            copy.write_text(json.dumps(config), encoding="utf-8")
        else:
            copy.symlink_to(path.absolute())


def loadable(config: JsonObject) -> JsonDict:
    """Return a config.json that Transformers can load: it knows longrope's first name, su, and then
    lacks the original positions, which it looks for before it has renamed it."""
    changed = dict(config)
    for name, scaling in rope_objects(config):
        for key in ("type", "rope_type"):
            if scaling.get(key) == "su":
                changed[name] = scaling = {**scaling, key: "longrope"}
    return changed


def fuse_copy(folder: Path) -> None:
    """Put the separate projections of a copy together as Transformers' Phi-3 has them: `torch.cat`
    of q, k, v and of gate, up."""
    from safetensors.torch import load_file, save_file

    tensors: dict[str, torch.Tensor] = {}
    for path in shard_paths(folder):
        tensors |= load_file(path)
        path.unlink()
    (folder / INDEX).unlink(missing_ok=True)
    for name in sorted(tensors):
        for fused, parts in _FUSED.items():
            if name.endswith(f".{parts[0]}.weight"):
                prefix = name.removesuffix(f"{parts[0]}.weight")
                rows = [tensors.pop(f"{prefix}{part}.weight") for part in parts]
                tensors[f"{prefix}{fused}.weight"] = torch.cat(rows)
    save_file(tensors, folder / SINGLE, metadata={"format": "pt"})


def _renamed(name: str, places: dict[int, int]) -> str | None:
    """Return a tensor's name in the copy, None if it is not in it."""
    found = _LAYER.search(name)
    if found is None:
        return name
    place = places.get(int(found[1]))
    return None if place is None else f"{name[: found.start(1)]}{place}{name[found.end(1) :]}"


def _cut_weights(path: Path, copy: Path, places: dict[int, int]) -> None:
    with path.open("rb") as file, copy.open("wb") as out:
        length = struct.unpack("<Q", file.read(8))[0]
        header: JsonDict = json.loads(file.read(length))
        entries: JsonDict = {}
        pieces: list[tuple[int, int]] = []
        end = 0
        for name, entry in header.items():
            new = name if name == "__metadata__" else _renamed(name, places)
            if name == "__metadata__":
                entries[name] = entry
            elif new is not None:
                first, last = entry["data_offsets"]
                entries[new] = {**entry, "data_offsets": [end, end + last - first]}
                pieces.append((8 + length + first, last - first))
                end += last - first
        text = json.dumps(entries).encode()
        text += b" " * (-len(text) % 8)
        out.write(struct.pack("<Q", len(text)) + text)
        out.flush()
        for offset, nbytes in pieces:
            _copy(file.fileno(), out.fileno(), offset, nbytes)


def _copy(source: int, target: int, offset: int, nbytes: int) -> None:
    while nbytes:
        data = os.pread(source, min(nbytes, _BLOCK), offset)
        if not data:
            raise ValueError("a weight file ended while it was read")
        os.write(target, data)
        offset, nbytes = offset + len(data), nbytes - len(data)
