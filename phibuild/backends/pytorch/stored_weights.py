"""Weights of a checkpoint or an artifact, read from its files when they are needed, as fp32."""

from __future__ import annotations

import contextlib
import json
import math
import mmap
import os
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from phibuild.backends.pytorch.config_groups import PromisedLayers
from phibuild.backends.pytorch.dtypes import CODES, DTYPES
from phibuild.worker.json_values import JsonDict
from phibuild.worker.protocol import WorkerError
from phibuild.worker.safetensors import TensorInfo, read_checkpoint

if TYPE_CHECKING:  # it takes a tenth of a second, and most folders have nothing that needs it
    from compressed_tensors.quantization import QuantizationArgs


class WeightReader:
    """Tensors of a folder by the names of the checkpoint, quantized ones dequantized.

    Files are mapped one tensor at a time, so that they take no memory of their own. They stay open:
    a checkpoint that is replaced meanwhile does not get mixed with the one before.
    """

    def __init__(self, folder: Path) -> None:
        self._tensors = read_checkpoint(folder)
        paths = {info.path for info in self._tensors.values()}
        self._files = {path: path.open("rb") for path in paths}
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        self._promised = PromisedLayers(config)

    def fill(self, name: str, out: Tensor, first: int = 0) -> None:
        """Fill `out` (fp32) with the rows of the tensor `name` from number `first` on.

        Raises WorkerError if there is no such tensor, or not of this shape.
        """
        arguments = self._promised.of(name)
        if arguments is not None and f"{name}_packed" in self._tensors:
            self._dequantize(name, out, first, arguments)
            return
        info = self._info(name)
        self._check(name, info.shape, out, first)
        if arguments is not None and info.dtype in CODES:
            self._scale_rows(info, out, first, arguments)
            return
        out.copy_(self._mapped(info, first, len(out)))

    def shape(self, name: str) -> tuple[int, int]:
        """Return the shape of a matrix that is not quantized."""
        rows, columns = self._info(name).shape
        return rows, columns

    def rows(self, name: str, numbers: Tensor) -> Tensor:
        """Return the rows of a matrix with these `numbers` [...]: fp32 [..., columns]."""
        info = self._info(name)
        distinct, places = numbers.unique(return_inverse=True)
        return self._mapped(info, 0, info.shape[0])[distinct].float()[places]

    def expect(self, names: Iterable[str]) -> None:
        """Have the system read these tensors from disk in the background, where it can."""
        if not hasattr(os, "posix_fadvise"):
            return
        for name in names:
            for part in (name, f"{name}_packed"):
                info = self._tensors.get(part)
                if info is not None:
                    with contextlib.suppress(OSError):
                        file = self._files[info.path].fileno()
                        os.posix_fadvise(file, info.offset, info.nbytes, os.POSIX_FADV_WILLNEED)

    def activations_of(self, name: str) -> QuantizationArgs | None:
        """Return how a server rounds what the layer of a weight takes in; None if it does not."""
        arguments = self._promised.activations_of(name)
        if arguments is None:
            return None
        from phibuild.backends.pytorch.quantized_rows import read_arguments

        return read_arguments(arguments)

    def _scale_rows(self, info: TensorInfo, out: Tensor, first: int, how: JsonDict) -> None:
        from phibuild.backends.pytorch.quantized_rows import fill_scaled

        scale = self._info(f"{info.name}_scale")
        fill_scaled(out, first, partial(self._mapped, info), partial(self._mapped, scale), how)

    def _dequantize(self, name: str, out: Tensor, first: int, how: JsonDict) -> None:
        from phibuild.backends.pytorch.quantized_rows import fill_packed

        packed, scale = self._info(f"{name}_packed"), self._info(f"{name}_scale")
        rows, columns = self._mapped(self._info(f"{name}_shape"), 0, 2).tolist()
        self._check(name, (rows, columns), out, first)

        def zero_points(first: int, rows: int) -> Tensor:
            return self._mapped(self._info(f"{name}_zero_point"), first, rows)

        scales = partial(self._mapped, scale)
        fill_packed(out, first, partial(self._mapped, packed), scales, zero_points, how)

    def _mapped(self, info: TensorInfo, first: int, rows: int) -> Tensor:
        """Return rows of a tensor on mapped pages of its file."""
        row_bytes = info.nbytes // info.shape[0]
        begin, count = info.offset + first * row_bytes, rows * math.prod(info.shape[1:])
        start = begin // mmap.ALLOCATIONGRANULARITY * mmap.ALLOCATIONGRANULARITY
        # Private pages: tensors are writable to PyTorch; nothing writes these.
        view = mmap.mmap(
            self._files[info.path].fileno(),
            begin - start + rows * row_bytes,
            access=mmap.ACCESS_COPY,
            offset=start,
        )
        values = torch.frombuffer(view, dtype=DTYPES[info.dtype], count=count, offset=begin - start)
        return values.view(rows, *info.shape[1:])

    def _info(self, name: str) -> TensorInfo:
        info = self._tensors.get(name)
        if info is None or info.dtype not in DTYPES:
            found = "is missing" if info is None else f"has the type {info.dtype}"
            raise WorkerError(f"tensor {name} {found}")
        return info

    def _check(self, name: str, shape: tuple[int, ...], out: Tensor, first: int) -> None:
        if shape[1:] != out.shape[1:] or first + len(out) > shape[0]:
            raise WorkerError(f"{name} is {list(shape)}; the model needs {list(out.shape)}")
