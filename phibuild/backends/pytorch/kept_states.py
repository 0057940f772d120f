"""States of several models on their way through the layers, kept in a folder so that a run that is
killed can be gone on with.

They lie in one mapped file with a slot for each model and one that is free: a model's next states
are written there, then a small file says where they are, and its old slot is the free one. So a
kill at any moment leaves whole states. Each has a checksum, for machines that lose power.
"""

from __future__ import annotations

import json
import os
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

_STATES, _PLACES, _SUMS, _NEW = "states", "places.json", "sums.npz", "new"
_Place = tuple[int, int, int]
"""Slot, layers that were passed, and the CRC-32 of the states."""


class KeptStates:
    """The states fp32 [*shape] of `count` models, by their numbers, in a folder that may have some
    of another run: those are gone on with if they are whole."""

    def __init__(self, folder: Path, count: int, shape: tuple[int, ...]) -> None:
        self._folder, self._slots = folder, (count + 1, *shape)
        self._file: NDArray[np.float32]
        self._places: dict[int, _Place] = {}
        if not self._go_on():
            self._places = {}
            (folder / _PLACES).unlink(missing_ok=True)
            self._file = np.memmap(folder / _STATES, np.float32, "w+", shape=self._slots)

    def passed(self, model: int) -> int:
        """Return how many layers a model's states have passed; -1 where there are none."""
        return self._places[model][1] if model in self._places else -1

    def states(self, model: int) -> Tensor:
        """Return a model's states, until it gets the next ones."""
        return torch.from_numpy(self._file[self._places[model][0]])

    @contextmanager
    def next(self, model: int, passed: int) -> Iterator[Tensor]:
        """Yield where to write the states that a model has after so many layers. Raises OSError."""
        used = {slot for slot, _, _ in self._places.values()}
        slot = next(number for number in range(self._slots[0]) if number not in used)
        yield torch.from_numpy(self._file[slot])
        self._places[model] = (slot, passed, _checksum(self._file[slot]))
        data = {"slots": self._slots, "places": self._places}
        new = self._folder / _NEW
        new.write_text(json.dumps(data), encoding="utf-8")
        os.replace(new, self._folder / _PLACES)

    def _go_on(self) -> bool:
        """Take what another run has left; return whether it is there, and whole."""
        try:
            data = json.loads((self._folder / _PLACES).read_text(encoding="utf-8"))
            if data["slots"] != list(self._slots):
                return False
            self._file = np.memmap(self._folder / _STATES, np.float32, "r+", shape=self._slots)
        except (OSError, ValueError):
            return False
        self._places = {int(model): tuple(place) for model, place in data["places"].items()}
        return all(_checksum(self._file[slot]) == crc for slot, _, crc in self._places.values())


def _checksum(states: NDArray[np.float32]) -> int:
    return zlib.crc32(states.reshape(-1).view(np.uint8).data)


def save_sums(folder: Path, parts: int, *sums: Tensor) -> None:
    """Keep sums over the first `parts` parts of something. Raises OSError."""
    new = folder / _NEW
    with new.open("wb") as file:
        np.savez(file, np.array(parts), *(one.numpy() for one in sums))
    os.replace(new, folder / _SUMS)


def load_sums(folder: Path, *sums: Tensor) -> int:
    """Fill `sums` with what was kept; return over how many parts they go, 0 where there is nothing
    to be gone on with."""
    try:
        with np.load(folder / _SUMS) as kept:
            parts, *found = (kept[name] for name in kept.files)
    except (OSError, ValueError, zipfile.BadZipFile):
        return 0
    if [one.shape for one in found] != [tuple(one.shape) for one in sums]:
        return 0
    for one, array in zip(sums, found, strict=True):
        one.copy_(torch.from_numpy(array))
    return int(parts)
