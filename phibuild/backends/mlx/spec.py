"""The mlx backend as the core sees it: variants, sizes, skips. No toolchain package."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import Any, Literal

from pydantic import BaseModel

from phibuild.architecture import Architecture
from phibuild.backends.base import SourceFiles, StoredTensor
from phibuild.backends.companions import GENERATION_FILES, TOKENIZER_FILES
from phibuild.backends.mlx import memory
from phibuild.backends.mlx.layout import (
    FLOAT_TYPES,
    Quantization,
    matrix_quantization,
    module_order,
    stored_arrays,
)
from phibuild.schema import Device, Frozen, Options, Precision, Skip, Variant

# Weights of one row that can share a scale, by mode; the first is the mode's default (the table
# of quantization modes in the documentation of mx.quantize).
_GROUPS = {"affine": (64, 32, 128), "mxfp4": (32,), "mxfp8": (32,)}
# Bits of a weight that count as a precision, by mode; the first is the default.
_BITS: dict[Precision, dict[str, tuple[int, ...]]] = {
    "int4": {"affine": (4, 3, 5), "mxfp4": (4,)},
    "int8": {"affine": (8, 6), "mxfp8": (8,)},
}
_CAST: dict[Precision, str] = {"fp16": "float16", "fp32": "float32"}


class MlxOptions(Frozen):
    """Options of the mlx backend; None stands for the default of the precision or the mode."""

    mode: Literal["affine", "mxfp4", "mxfp8"] | None = None
    """How weights are quantized: affine, mxfp4 (int4 alone) or mxfp8 (int8 alone)."""
    bits: Literal[3, 4, 5, 6, 8] | None = None
    """Bits of a weight: 4, also 3 and 5 (int4); 8, also 6 (int8)."""
    group_size: Literal[32, 64, 128] | None = None
    """Consecutive weights of a row that share a scale: 64 (affine), 32 (mxfp4, mxfp8)."""
    recipe: Literal["mixed_2_6", "mixed_3_4", "mixed_3_6", "mixed_4_6"] | None = None
    """Bits by layer, int4 alone: the first number for most weights, the second for lm_head and
    for the v and down projections of the layers that need it."""
    dtype: Literal["float16", "bfloat16", "float32"] | None = None
    """Float type of scales, biases and norms of a quantized artifact; the checkpoint's own by
    default. The first Apple chips (M1, M2) compute float16 faster than bfloat16."""


class MlxSpec:
    """MLX safetensors for Apple GPUs."""

    name = "mlx"
    title = "MLX (mlx-lm)"
    format = "MLX"
    library = "mlx"
    options: type[BaseModel] = MlxOptions

    def variant(
        self, precision: Precision, options: BaseModel, device: Device, arch: Architecture
    ) -> Variant | Skip:
        """Return the variant, or why mlx-lm could not make or run it on this device."""
        assert isinstance(options, MlxOptions)
        if "metal" not in device.accelerators:
            return Skip(
                reason=f"MLX artifacts run on Apple GPUs (metal); {device.title} has "
                f"{', '.join(device.accelerators)}"
            )
        if precision in _CAST:
            chosen = sorted(options.model_dump(exclude_none=True))
            if chosen:
                return Skip(
                    reason=f"{precision} is a plain cast: the options {', '.join(chosen)} "
                    "belong to int4 and int8"
                )
            return self._named(precision, precision, {"dtype": _CAST[precision]})
        return self._quantized(precision, options, arch)

    def _quantized(
        self, precision: Precision, options: MlxOptions, arch: Architecture
    ) -> Variant | Skip:
        modes = _BITS[precision]
        mode = options.mode or "affine"
        if options.recipe:
            reason = _unmixed(precision, mode, options)
            if reason:
                return Skip(reason=reason)
        if mode not in modes:
            return Skip(reason=f"mode {mode} is not {precision}; use {' or '.join(modes)}")
        bits = options.bits or modes[mode][0]
        if bits not in modes[mode]:
            return Skip(
                reason=f"{bits} bits with mode {mode} are not {precision}; "
                f"use {_alternatives(modes[mode])}"
            )
        group_size = options.group_size or _GROUPS[mode][0]
        if group_size not in _GROUPS[mode]:
            return Skip(
                reason=f"mode {mode} has groups of {_alternatives(_GROUPS[mode])}, "
                f"not of {group_size}"
            )
        undivided = _undivided(arch, group_size, _GROUPS[mode])
        if undivided:
            return Skip(reason=undivided)
        dtype = options.dtype or arch.dtype
        if dtype not in FLOAT_TYPES:
            return Skip(
                reason=f"the checkpoint's type {dtype} is none that MLX quantizes; set dtype to "
                f"{' or '.join(FLOAT_TYPES)}"
            )
        chosen: dict[str, Any] = {
            "mode": mode,
            "bits": bits,
            "group_size": group_size,
            "dtype": dtype,
        }
        name = Quantization(bits, group_size, mode).kind
        if options.recipe:
            chosen["recipe"] = options.recipe
            name = options.recipe.replace("_", "-")
        if mode == "affine":
            name += f"-g{group_size}"
        if dtype != arch.dtype:
            name += f"-{dtype}"
        return self._named(precision, name, chosen)

    def _named(self, precision: Precision, name: str, options: Options) -> Variant:
        return Variant(
            backend=self.name, precision=precision, name=name, format=self.format, options=options
        )

    def layout(self, arch: Architecture, variant: Variant) -> Sequence[StoredTensor]:
        """Return every weight; a quantized one with the bytes of its scales and biases."""
        tensors = []
        for name, shape in module_order(arch):
            arrays = stored_arrays(name, shape, arch.layers, variant.options)
            quantized = matrix_quantization(name, arch.layers, variant.options)
            kind = quantized.kind if quantized and len(arrays) > 1 else arrays[0].dtype
            nbytes = sum(array.nbytes for array in arrays)
            tensors.append(StoredTensor(name, kind, math.prod(shape), nbytes))
        return tensors

    def other_bytes(self, arch: Architecture, source: SourceFiles, variant: Variant) -> int:
        """Return the bytes of headers, index, config.json and the files that are copied."""
        arrays = [
            array
            for name, shape in module_order(arch)
            for array in stored_arrays(name, shape, arch.layers, variant.options)
        ]
        header: dict[str, Any] = {"__metadata__": {"format": "mlx"}}
        offset = 0
        for array in arrays:
            end = offset + array.nbytes
            header[array.name] = {
                "dtype": array.dtype,
                "shape": list(array.shape),
                "data_offsets": [offset, end],
            }
            offset = end
        index = {array.name: "model.safetensors" for array in arrays}
        copied = sum(source.files.get(name, 0) for name in TOKENIZER_FILES + GENERATION_FILES)
        # config.json is written anew with an indentation of 4: a list has a line for each entry.
        factors = len(arch.rope.short) + len(arch.rope.long)
        config = source.files.get("config.json", 0) + 9 * factors + 500
        if "recipe" in variant.options:  # two lists of every matrix's parameters
            config += 2 * sum(len(name) + 110 for name, shape in module_order(arch) if shape[1:])
        return (
            8
            + len(json.dumps(header))
            + len(json.dumps(index, indent=4))
            + 4 * len(index)  # the index nests the map one level deeper
            + config
            + copied
        )

    def build_memory(
        self, arch: Architecture, source_bytes: int, variants: Sequence[Variant]
    ) -> int:
        return memory.building()

    def judge_memory(
        self, arch: Architecture, variants: Sequence[Variant], window_tokens: int
    ) -> int:
        return memory.judging(arch, [variant.options for variant in variants], window_tokens)

    def kv_bytes_per_element(self, variant: Variant) -> float:
        """mlx-lm keeps the cache in the type of the activations: that of scales and norms."""
        return 4.0 if FLOAT_TYPES[variant.options["dtype"]] == "F32" else 2.0

    def usage(self, variant: Variant) -> str:
        return 'mlx_lm.generate --model . --prompt "Why is the sky blue?" --max-tokens 256'


def _unmixed(precision: Precision, mode: str, options: MlxOptions) -> str | None:
    """Return why a recipe cannot be combined with these options, or None."""
    if precision != "int4":
        return f"the recipe {options.recipe} is int4's, not {precision}'s"
    if mode != "affine":
        return f"the recipe {options.recipe} needs mode affine, not {mode}"
    if options.bits:
        return f"the recipe {options.recipe} chooses the bits itself; leave bits null"
    return None


def _undivided(arch: Architecture, group_size: int, groups: Sequence[int]) -> str | None:
    """Return why this group cannot be used with the widths of the model's matrices, or None.

    mlx-lm would say nothing and leave those layers as they are (`utils.quantize_model`).
    """
    widths = sorted({shape[1] for _, shape in arch.tensors() if len(shape) == 2})
    undivided = [width for width in widths if width % group_size]
    if not undivided:
        return None
    dividing = [group for group in groups if all(width % group == 0 for width in widths)]
    remedy = (
        f"use group_size {_alternatives(dividing)}"
        if dividing
        else f"no group of this mode ({_alternatives(groups)}) divides all widths of this model"
    )
    return (
        f"groups of {group_size} do not divide layers of width "
        f"{', '.join(map(str, undivided))}, which would stay unquantized; {remedy}"
    )


def _alternatives(numbers: Sequence[int]) -> str:
    return " or ".join(map(str, sorted(numbers)))


SPEC = MlxSpec()
