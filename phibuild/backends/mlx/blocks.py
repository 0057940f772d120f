"""A block of rows of one tensor, and what the variants make of it, each thing made once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from numpy.typing import NDArray

from phibuild.backends.mlx.affine import Groups
from phibuild.backends.mlx.casts import cast
from phibuild.backends.mlx.layout import Quantization


class Block:
    """Rows as the checkpoint has them, in the safetensors type `dtype`."""

    def __init__(self, rows: NDArray[Any], dtype: str) -> None:
        self._dtype = dtype
        self._as_type = {dtype: rows}
        self._groups: dict[tuple[str, int], Groups] = {}

    def as_type(self, dtype: str) -> NDArray[Any]:
        """Return the rows in another safetensors type."""
        if dtype not in self._as_type:
            self._as_type[dtype] = cast(self._as_type[self._dtype], self._dtype, dtype)
        return self._as_type[dtype]

    def quantized(self, dtype: str, how: Quantization) -> Sequence[NDArray[Any]]:
        """Return the packed bytes of the rows cast to `dtype`, then the scales, then the biases
        where the mode has them: affine ones in `dtype`, of which each row has its own."""
        weights = self.as_type(dtype)
        if how.mode != "affine":
            from phibuild.backends.mlx.microscaling import microscale  # imports MLX

            return microscale(weights, dtype, how.group_size, how.bits, how.mode)
        key = dtype, how.group_size
        if key not in self._groups:
            self._groups[key] = Groups(weights, dtype, how.group_size)
        packed, scales, biases = self._groups[key].quantize(how.bits)
        return packed, cast(scales, "F32", dtype), cast(biases, "F32", dtype)
