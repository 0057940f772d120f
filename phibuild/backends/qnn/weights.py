"""Where the rows of each matrix lie in an artifact's files of external data (onnx.proto,
TensorProto.external_data): a matrix's codes, then its scales, at whole `_ALIGNMENT`s."""

from __future__ import annotations

import math
from dataclasses import dataclass

from onnx import TensorProto

from phibuild.backends.qnn.layout import (
    EMBEDDING,
    encoding,
    head_matrix,
    owners,
    products,
)
from phibuild.backends.qnn.names import INPUTS
from phibuild.worker.architecture import Architecture
from phibuild.worker.encodings import Encoding
from phibuild.worker.requests import Options

_ALIGNMENT = 4096  # ONNX Runtime maps pages


@dataclass(frozen=True)
class Stored:
    """A matrix [rows, width] of the checkpoint in the file `file`: its numbers from byte `data`
    on, and its scales, if it has any, from byte `scales` on."""

    file: str
    shape: tuple[int, int]
    how: Encoding
    data: int
    scales: int

    def numbers(self, name: str, first: int, rows: int) -> TensorProto:
        """Return some of the rows' numbers as an initializer: [rows, blocks, bytes] uint8 as
        MatMulNBits has them, or fp16 [rows, width]."""
        width, how = self.shape[1], self.how
        row = how.data_bytes((1, width))
        if not how.is_integer:
            return self._tensor(name, TensorProto.FLOAT16, (rows, width), self.data, first, row)
        blocks = how.blocks(width)
        shape = (rows, blocks, row // blocks)
        return self._tensor(name, TensorProto.UINT8, shape, self.data, first, row)

    def flat(self, name: str) -> TensorProto:
        """Return all numbers as GatherBlockQuantized has them: uint8 [rows, bytes]."""
        rows, width = self.shape
        row = self.how.data_bytes((1, width))
        return self._tensor(name, TensorProto.UINT8, (rows, row), self.data, 0, row)

    def block_scales(self, name: str, first: int, rows: int) -> TensorProto:
        """Return the scales of some of the rows: fp16 [rows, blocks]."""
        blocks = self.how.blocks(self.shape[1])
        row = self.how.scale_size * blocks
        return self._tensor(name, TensorProto.FLOAT16, (rows, blocks), self.scales, first, row)

    def _tensor(
        self, name: str, kind: int, shape: tuple[int, ...], begin: int, first: int, row: int
    ) -> TensorProto:
        tensor = TensorProto(name=name, data_type=kind, dims=shape)
        tensor.data_location = TensorProto.EXTERNAL
        place = {
            "location": self.file,
            "offset": begin + first * row,
            "length": shape[0] * row,
        }
        for key, value in place.items():
            tensor.external_data.add(key=key, value=str(value))
        return tensor


class Places:
    """The places of all matrices, and the sizes of the files."""

    def __init__(self, arch: Architecture, options: Options) -> None:
        self.sizes: dict[str, int] = {}
        self.matrices: dict[str, Stored] = {}
        """By the checkpoint's names; the embedding is the one that tokens become vectors of."""
        owner, one_type = owners(arch, options), arch.tied and options["mode"] == "int4"
        for name, shape in arch.tensors():
            if len(shape) == 2:
                part = INPUTS if name == EMBEDDING else owner[name]
                how = encoding(name, shape, options)
                if name == EMBEDDING and one_type:
                    how = products(options)
                self.matrices[name] = self._place(part, (shape[0], shape[1]), how)
        self.head = self.matrices[head_matrix(arch)]
        """What scores tokens."""
        self._second: Stored | None = None
        if arch.tied and not one_type:
            self.head = self._second = self._place("head", self.head.shape, products(options))

    def targets(self, name: str) -> list[Stored]:
        """Return where a matrix of the checkpoint goes: a tied embedding to two places, where it
        is of two types."""
        found = [self.matrices[name]]
        if name == EMBEDDING and self._second:
            found.append(self._second)
        return found

    def _place(self, owner: str, shape: tuple[int, int], how: Encoding) -> Stored:
        file = data_file(owner)
        data = self.sizes.get(file, 0)
        scales = _aligned(data + how.data_bytes(shape))
        self.sizes[file] = _aligned(scales + how.scale_bytes(shape))
        return Stored(file, shape, how, data, scales)


def data_file(part: str) -> str:
    """Return the name of the file of a part's weights."""
    return f"{part}.data"


def _aligned(size: int) -> int:
    return math.ceil(size / _ALIGNMENT) * _ALIGNMENT
