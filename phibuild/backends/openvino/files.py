"""The files of an IR: the .xml by OpenVINO, the .bin in pieces, at offsets known beforehand.

Saving the model would need all weights at once. OpenVINO gets one whose weights are zeros instead:
it stores constants of equal bytes once, so what it writes is small. Then each weight gets room of
its own, in the order of the .xml, and its offset there is corrected. The files are those that
saving the model with its weights would have given, save that two equal matrices are stored twice.
"""

from __future__ import annotations

import os
import re
from collections.abc import Collection
from pathlib import Path

import numpy as np
import openvino as ov
from numpy.typing import NDArray

from phibuild.worker.direct_io import OutputFile

_CONSTANT = re.compile(
    r'(<layer id="\d+" name="([^"]*)" type="Const"[^>]*>\s*<data [^>]*?)'
    r'offset="(\d+)" size="(\d+)"'
)


class IrFiles:
    """An .xml, and the .bin beside it whose constants named in `streamed` are still to come.

    `write` may be called from any thread. Close it when all is written.
    """

    def __init__(self, model: ov.Model, xml: Path, streamed: Collection[str]) -> None:
        save(model, xml)
        binary = xml.with_suffix(".bin")
        self._places: dict[str, tuple[int, int]] = {}
        small: dict[bytes, int] = {}
        end = 0

        def place(found: re.Match[str]) -> str:
            nonlocal end
            head, name, nbytes = found[1], found[2], int(found[4])
            offset, start = end, int(found[3])
            if name in streamed:
                self._places[name] = (offset, nbytes)
            else:
                offset = small.setdefault(os.pread(saved.fileno(), nbytes, start), end)
            if offset == end:
                end += nbytes
            return f'{head}offset="{offset}" size="{nbytes}"'

        with binary.open("rb") as saved:
            text = _CONSTANT.sub(place, xml.read_bytes().decode())
        if len(self._places) != len(streamed):
            raise RuntimeError(f"{xml.name} has {len(self._places)} of {len(streamed)} weights")
        xml.write_bytes(text.encode())
        binary.unlink()
        self._file = OutputFile(binary, end)
        for data, offset in small.items():
            self._file.write(data, offset)

    def write(self, name: str, data: NDArray[np.generic], row: int, rows: int) -> None:
        """Write a piece of the constant `name` of `rows` rows, from `row` on."""
        offset, nbytes = self._places[name]
        start = nbytes * row // rows
        if start + data.nbytes > nbytes:
            raise ValueError(f"{name}: {start + data.nbytes} bytes written to {nbytes}")
        self._file.write(data.reshape(-1).view(np.uint8).data, offset + start)

    def finish(self) -> None:
        """Wait until all is written. Raises OSError for what could not be."""
        self._file.finish()

    def close(self) -> None:
        """Close the .bin; again is fine."""
        self._file.close()


def save(model: ov.Model, xml: Path) -> None:
    """Write the files that `ov.save_model(model, xml, compress_to_fp16=False)` writes, without the
    copy of the graph that it makes: it notes its version and the outputs' names there."""
    model.set_rt_info(ov.get_version(), "OpenVINO Runtime")
    for output in model.outputs:
        output.get_tensor().set_names(output.get_names())
    ov.serialize(model, xml, xml.with_suffix(".bin"))
