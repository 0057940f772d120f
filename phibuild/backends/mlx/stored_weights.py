"""The weights of an MLX artifact as float32, read from its files a few rows at a time."""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import BinaryIO

import mlx.core as mx
import numpy as np
from numpy.typing import NDArray

from phibuild.backends.mlx.layout import MlxQuantization
from phibuild.backends.mlx.packing import pack, unpack
from phibuild.worker.floats import NUMPY_TYPES, Floats, widen
from phibuild.worker.json_values import JsonDict, JsonObject
from phibuild.worker.safetensors import TensorInfo, read_checkpoint


class MlxWeights:
    """All weights of an artifact folder, by the path of mlx-lm's module that owns them."""

    def __init__(self, folder: Path, config: JsonObject) -> None:
        self._tensors = read_checkpoint(folder)
        self._whole: JsonDict = config.get("quantization") or {}
        self._files = {
            path: path.open("rb") for path in {tensor.path for tensor in self._tensors.values()}
        }

    def matrix(self, path: str) -> StoredMatrix:
        """Return the weight of a linear layer or an embedding."""
        names = (f"{path}.{part}" for part in ("weight", "scales", "biases"))
        parts = [
            _Rows(tensor, self._files[tensor.path])
            for tensor in (self._tensors.get(name) for name in names)
            if tensor is not None
        ]
        if len(parts) == 1:
            return StoredMatrix(parts, None)
        own = self._whole.get(path, self._whole)
        return StoredMatrix(parts, MlxQuantization(own["bits"], own["group_size"], own["mode"]))

    def vector(self, path: str) -> Floats:
        """Return the weight of a norm."""
        tensor = self._tensors[f"{path}.weight"]
        return _Rows(tensor, self._files[tensor.path]).read(0, tensor.shape[0])


class StoredMatrix:
    """A matrix in an artifact's files, plain or quantized."""

    def __init__(self, parts: Sequence[_Rows], quantization: MlxQuantization | None) -> None:
        self._weight, *self._scaling = parts
        self._quantization = quantization
        self.rows = self._weight.tensor.shape[0]

    @property
    def width(self) -> int:
        """Weights of a row."""
        stored = self._weight.tensor.shape[1]
        how = self._quantization
        return stored if how is None else stored * 32 // how.bits

    def read(self, start: int, stop: int) -> Floats:
        """Return rows as float32 [stop - start, width].

        A quantized weight is code * scale + bias (affine), or the number that its code stands for
        times 2^(scale - 127) (OCP Microscaling Formats v1.0).
        """
        how = self._quantization
        if how is None:
            return self._weight.read(start, stop)
        codes = unpack(self._weight.bytes(start, stop), how.bits)
        groups = codes.reshape(stop - start, -1, how.group_size)
        if how.mode == "affine":
            scales, biases = (part.read(start, stop) for part in self._scaling)
            values: Floats = groups * scales[..., None]
            values += biases[..., None]
        else:
            exponents = self._scaling[0].bytes(start, stop).astype(np.int32) - 127
            values = _microscaled_numbers(how.mode, how.bits)[groups]
            values *= np.ldexp(np.float32(1), exponents)[..., None]
        return values.reshape(stop - start, -1)


class _Rows:
    """One tensor of a file, read by rows."""

    def __init__(self, tensor: TensorInfo, file: BinaryIO) -> None:
        self.tensor = tensor
        self._file = file
        self._row_bytes = tensor.nbytes // tensor.shape[0]

    def bytes(self, start: int, stop: int) -> NDArray[np.uint8]:
        size = (stop - start) * self._row_bytes
        position = self.tensor.offset + start * self._row_bytes
        data = os.pread(self._file.fileno(), size, position)
        if len(data) != size:
            raise OSError(f"{self.tensor.path.name} ends within tensor {self.tensor.name}")
        return np.frombuffer(data, np.uint8).reshape(stop - start, -1)

    def read(self, start: int, stop: int) -> Floats:
        stored = self.tensor.dtype
        values = self.bytes(start, stop).view(NUMPY_TYPES[stored])
        return widen(values.reshape(-1, *self.tensor.shape[1:]), stored)


@cache
def _microscaled_numbers(mode: str, bits: int) -> Floats:
    """Return what each code of a microscaling type stands for, according to MLX."""
    codes = np.arange(256, dtype=np.uint8) & np.uint8((1 << bits) - 1)
    packed = mx.array(pack(codes, bits).view(np.uint32)[None])
    ones = mx.full((1, 8), 127, dtype=mx.uint8)  # 2^0, for each group of 32
    values = mx.dequantize(packed, ones, group_size=32, bits=bits, mode=mode, dtype=mx.float32)
    return np.array(values)[0, : 1 << bits]
