"""A weight file read once: its sha256, and the first weight in it that is no number.

The digest needs every byte anyway, so the check for all formats costs no pass of its own.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from phibuild.store.documents import NonFinite
from phibuild.worker.safetensors import TensorInfo, read_header

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_CHUNK_BYTES = 4 << 20
# Type of the bits, and those that are all set in infinity and NaN alone.
_EXPONENTS = {"BF16": ("<u2", 0x7F80), "F16": ("<u2", 0x7C00), "F32": ("<u4", 0x7F800000)}
_MANTISSAS = {"BF16": 0x7F, "F16": 0x3FF, "F32": 0x7FFFFF}


def read_weights(path: Path) -> tuple[str, NonFinite | None]:
    """Return the sha256 of a safetensors file, and the first weight of its floats that is not
    finite. Raises ValueError if it is no such file, or changes while it is read."""
    digest = hashlib.sha256()
    found: NonFinite | None = None
    with path.open("rb", buffering=0) as file:
        position = 0
        for tensor in read_header(path).values():  # in the order of their data, without gaps
            for data in _pieces(file, tensor.offset - position):
                digest.update(data)
            start = 0
            for data in _pieces(file, tensor.nbytes):
                digest.update(data)
                if found is None and tensor.dtype in _EXPONENTS:
                    found = _first(tensor, data, start)
                start += len(data)
            position = tensor.offset + tensor.nbytes
        for data in _pieces(file, path.stat().st_size - position):
            digest.update(data)
    return digest.hexdigest(), found


def _pieces(file: BinaryIO, nbytes: int) -> Iterator[bytes]:
    """Yield the next bytes of a file, a whole number of weights at a time."""
    while nbytes > 0:
        size = min(nbytes, _CHUNK_BYTES)
        data = bytearray()
        while len(data) < size:
            more = file.read(size - len(data))
            if not more:
                raise ValueError("it ended while it was read")
            data += more
        nbytes -= size
        yield bytes(data)


def _first(tensor: TensorInfo, data: bytes, start: int) -> NonFinite | None:
    """Return the first weight of a piece of a tensor, `start` bytes into it, that is not finite."""
    import numpy as np  # commands that read no weights do without

    kind, exponent = _EXPONENTS[tensor.dtype]
    bits: NDArray[np.uint16 | np.uint32] = np.frombuffer(data, kind)
    # A magnitude of all exponent bits, or more, is infinity or NaN. The largest is found at the
    # speed of memory, where it is: rarely.
    magnitude = bits & bits.dtype.type(exponent | _MANTISSAS[tensor.dtype])
    if int(magnitude.max(initial=0)) < exponent:
        return None
    index = int(np.flatnonzero(magnitude >= exponent)[0])
    negative = bool(bits[index] >> (8 * bits.itemsize - 1))
    value = "NaN" if int(magnitude[index]) > exponent else "-infinity" if negative else "infinity"
    place = np.unravel_index(start // bits.itemsize + index, tensor.shape or (1,))
    position = [int(number) for number in place]
    return NonFinite(tensor=tensor.name, position=position, value=value)
