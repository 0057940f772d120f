"""A block of rows of one tensor, and what the variants make of it, each thing made once."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from phibuild.backends.mlx.affine import Groups
from phibuild.backends.mlx.layout import MlxQuantization
from phibuild.worker.floats import FLOAT16_END, FLOAT16_END_BITS, AnyFloats, cast
from phibuild.worker.protocol import WorkerError


class Block:
    """Rows of the tensor `name` as the checkpoint has them, in the safetensors type `dtype`."""

    def __init__(self, name: str, rows: AnyFloats, dtype: str) -> None:
        self.rows = len(rows)
        self._name = name
        self._dtype = dtype
        self._as_type = {dtype: rows}
        self._finite: dict[str, bool] = {}
        self._groups: dict[tuple[str, int], Groups] = {}

    def as_type(self, dtype: str) -> AnyFloats:
        """Return the rows in another safetensors type. Raises WorkerError if a number does not fit
        into it."""
        if dtype not in self._as_type:
            if dtype == "F16" and not _fits_float16(self._as_type[self._dtype], self._dtype):
                raise WorkerError(
                    f"{self._name} has weights beyond 65,504, the range of float16; set dtype to "
                    "bfloat16 or float32 where they are quantized, or build fp32"
                )
            self._as_type[dtype] = cast(self._as_type[self._dtype], self._dtype, dtype)
        return self._as_type[dtype]

    def groups(self, dtype: str, size: int) -> Groups:
        """Return the rows cast to `dtype` in groups, for affine quantization. Raises WorkerError if
        there are no codes for them."""
        if (dtype, size) not in self._groups:
            self._groups[dtype, size] = Groups(self._finite_weights(dtype), dtype, size)
        return self._groups[dtype, size]

    def _finite_weights(self, dtype: str) -> AnyFloats:
        weights = self.as_type(dtype)
        if dtype not in self._finite:
            self._finite[dtype] = _is_finite(weights, dtype)
        if not self._finite[dtype]:
            raise WorkerError(f"{self._name} holds NaN or infinity, for which there are no codes")
        return weights

    def quantized(self, dtype: str, how: MlxQuantization) -> Sequence[NDArray[np.generic]]:
        """Return the packed bytes of the rows cast to `dtype`, then the scales, then the biases
        where the mode has them: affine ones in `dtype`, of which each row has its own."""
        if how.mode != "affine":
            from phibuild.backends.mlx.microscaling import microscale  # imports MLX

            weights = self._finite_weights(dtype)
            return microscale(weights, dtype, how.group_size, how.bits, how.mode)
        packed, scales, biases = self.groups(dtype, how.group_size).quantize(how.bits)
        return packed, cast(scales, "F32", dtype), cast(biases, "F32", dtype)


def _fits_float16(values: AnyFloats, source: str) -> bool:
    """Return whether no finite number of the safetensors type `source` becomes infinite as F16."""
    if source == "BF16":
        magnitude = values & np.uint16(0x7FFF)
        return not bool(((magnitude >= FLOAT16_END_BITS) & (magnitude < 0x7F80)).any())
    if source == "F32":
        magnitude = np.abs(values)
        return not bool(((magnitude >= FLOAT16_END) & np.isfinite(magnitude)).any())
    return True


def _is_finite(values: AnyFloats, dtype: str) -> bool:
    """Return whether all numbers of the safetensors type `dtype` are finite."""
    if dtype == "BF16":
        return int((values & np.uint16(0x7FFF)).max(initial=0)) < 0x7F80
    return bool(np.isfinite(values).all())
