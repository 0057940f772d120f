"""How an MLX artifact stores each weight: the names, types and shapes of its arrays.

Standard library only: the plan (in the core) and the converter (in the toolchain) share it. The
conventions are those of `mlx_lm.convert` (mlx-lm 0.32, `utils.quantize_model`) and `mx.quantize`:
every matrix, the embedding included, is quantized along its rows in groups; the norms are not.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from phibuild.worker.architecture import Architecture
from phibuild.worker.requests import Options
from phibuild.worker.safetensors import FLOAT_DTYPES, ITEM_BYTES


@dataclass(frozen=True)
class StoredArray:
    """One array of the artifact: safetensors type, and shape in elements of that type."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * ITEM_BYTES[self.dtype]


@dataclass(frozen=True)
class MlxQuantization:
    """Parameters of `mx.quantize`: `bits` of a weight, weights of a row that share a scale, and
    `mode`: affine (w = q * scale + bias) or an OCP microscaling type (mxfp4, mxfp8)."""

    bits: int
    group_size: int
    mode: str

    @property
    def kind(self) -> str:
        """The stored type as MLX users name it: q4, q8, mxfp4, ..."""
        return f"q{self.bits}" if self.mode == "affine" else self.mode


# Low and high bits of the recipes of mlx_lm.convert (`mixed_quant_predicate_builder`).
RECIPES = {"mixed_2_6": (2, 6), "mixed_3_4": (3, 4), "mixed_3_6": (3, 6), "mixed_4_6": (4, 6)}


def quantization(options: Options) -> MlxQuantization | None:
    """Return how a variant with these options quantizes, or None for a plain cast. With a recipe
    it is what config.json says of the whole; each matrix has its own."""
    if "bits" not in options:
        return None
    return MlxQuantization(options["bits"], options["group_size"], options["mode"])


def matrix_quantization(name: str, layers: int, options: Options) -> MlxQuantization | None:
    """Return how the matrix `name` of a model of so many layers is quantized.

    Its own type counts (q6). A recipe gives more bits to lm_head, and to down_proj and qkv_proj
    (for its v) of the first and last eighth of the layers and of every third between them.
    """
    whole = quantization(options)
    if whole is None:
        return None
    if kind := options.get("tensor_types", {}).get(name):
        return MlxQuantization(int(kind[1:]), whole.group_size, whole.mode)
    if "recipe" not in options:
        return whole
    low, high = RECIPES[options["recipe"]]
    layer = int(name.split(".")[2]) if name.startswith("model.layers.") else 0
    first = layers // 8
    sensitive = layer < first or layer >= 7 * layers // 8 or (layer - first) % 3 == 2
    more = "lm_head" in name or (sensitive and ("v_proj" in name or "down_proj" in name))
    return MlxQuantization(high if more else low, whole.group_size, whole.mode)


def stored_arrays(
    name: str, shape: tuple[int, ...], layers: int, options: Options
) -> tuple[StoredArray, ...]:
    """Return the arrays that store one tensor of the checkpoint of a model of so many layers, the
    weight itself first.

    A quantized matrix [rows, columns] is packed into 32-bit words, `columns * bits / 32` to a
    row; affine scales and biases are in the variant's float type, microscaling ones are one
    E8M0 byte without a bias. A vector is stored in the variant's float type.
    """
    dtype = FLOAT_DTYPES[options["dtype"]]
    quantized = matrix_quantization(name, layers, options)
    if quantized is None or len(shape) != 2:
        return (StoredArray(name, dtype, shape),)
    rows, columns = shape
    layer = name.removesuffix(".weight")
    packed = StoredArray(name, "U32", (rows, columns * quantized.bits // 32))
    groups = (rows, columns // quantized.group_size)
    if quantized.mode != "affine":
        return packed, StoredArray(f"{layer}.scales", "U8", groups)
    return (
        packed,
        StoredArray(f"{layer}.scales", dtype, groups),
        StoredArray(f"{layer}.biases", dtype, groups),
    )


def module_order(arch: Architecture) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Yield name and shape of the checkpoint's tensors in the order of mlx-lm's modules
    (`models/phi3.py`), in which it fills its files: in each layer the norms come last."""
    norms: list[tuple[str, tuple[int, ...]]] = []
    layer = ""
    for name, shape in arch.tensors():
        current = name.split(".")[2] if name.startswith("model.layers.") else ""
        if current != layer:
            yield from norms
            norms, layer = [], current
        if layer and len(shape) == 1:
            norms.append((name, shape))
        else:
            yield name, shape
    yield from norms
