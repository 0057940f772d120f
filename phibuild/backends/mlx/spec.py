"""The mlx backend as the core sees it: variants, sizes, skips. No toolchain package."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import Any

from pydantic import BaseModel

from phibuild.backends.base import ContextLimit, SourceFiles, StoredTensor, window_limit
from phibuild.backends.mlx import memory
from phibuild.backends.mlx.layout import (
    FLOAT_TYPES,
    Quantization,
    matrix_quantization,
    module_order,
    stored_arrays,
)
from phibuild.backends.mlx.options import (
    BITS,
    CAST,
    GROUPS,
    MlxOptions,
    alternatives,
    contradiction,
)
from phibuild.schema import Contradiction, Device, Judging, Options, Precision, Skip, Variant
from phibuild.worker.architecture import Architecture
from phibuild.worker.companions import companions


class MlxSpec:
    """MLX safetensors for Apple GPUs."""

    name = "mlx"
    title = "MLX (mlx-lm)"
    format = "MLX"
    library = "mlx"
    copied: tuple[str, ...] = ()
    options: type[BaseModel] = MlxOptions

    def contradiction(self, precision: Precision, options: BaseModel) -> Contradiction | None:
        """Return the options that mlx-lm does not have together."""
        assert isinstance(options, MlxOptions)
        return contradiction(precision, options)

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
        factor = arch.rope.attention_factor
        if factor is not None:
            return Skip(
                reason=f"mlx-lm has no place for this model's attention_factor ({factor:g}): it "
                f"would scale cos and sin by {arch.usual_attention_factor:g}"
            )
        if precision in CAST:
            return self._named(precision, precision, {"dtype": CAST[precision]})
        return self._quantized(precision, options, arch)

    def _quantized(
        self, precision: Precision, options: MlxOptions, arch: Architecture
    ) -> Variant | Skip:
        mode = options.mode or "affine"
        bits = options.bits or BITS[precision][mode][0]
        group_size = options.group_size or GROUPS[mode][0]
        undivided = _undivided(arch, group_size, GROUPS[mode])
        if undivided:
            return Skip(reason=undivided)
        dtype = options.dtype or arch.dtype
        if dtype not in FLOAT_TYPES:
            return Skip(
                reason=f"the checkpoint's type {dtype} is none that MLX quantizes; set dtype to "
                f"{' or '.join(FLOAT_TYPES)}"
            )
        complete: dict[str, Any] = {
            "mode": mode,
            "bits": bits,
            "group_size": group_size,
            "dtype": dtype,
        }
        name = Quantization(bits, group_size, mode).kind
        if options.recipe:
            complete["recipe"] = options.recipe
            name = options.recipe.replace("_", "-")
        if mode == "affine":
            name += f"-g{group_size}"
        if dtype != arch.dtype:
            name += f"-{dtype}"
        return self._named(precision, name, complete)

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
        copied = sum(source.files[name] for name in companions(source.files))
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
        return memory.building(arch.vocab_size)

    def judge_memory(
        self, arch: Architecture, variants: Sequence[Variant], window_tokens: int
    ) -> int:
        return memory.judging(arch, [variant.options for variant in variants], window_tokens)

    def context_limit(self, arch: Architecture, variant: Variant) -> ContextLimit | None:
        """Return the model's window, where it has one."""
        return window_limit(
            arch,
            "the model's attention reaches back over a window of that many tokens, which mlx-lm's "
            "phi3 has not: beyond it the artifact is another model",
        )

    def judging(self, variant: Variant) -> Judging:
        """MLX's own kernels for a CPU are too slow for more than a spot check."""
        return Judging(how="substitute", note="its weights in float32 on the CPU")

    def kv_bytes_per_element(self, variant: Variant) -> float:
        """mlx-lm keeps the cache in the type of the activations: that of scales and norms."""
        return 4.0 if FLOAT_TYPES[variant.options["dtype"]] == "F32" else 2.0

    def usage(self, variant: Variant) -> str:
        return 'mlx_lm.generate --model . --prompt "Why is the sky blue?" --max-tokens 256'


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
        f"use group_size {alternatives(dividing)}"
        if dividing
        else f"no group of this mode ({alternatives(groups)}) divides all widths of this model"
    )
    return (
        f"groups of {group_size} do not divide layers of width "
        f"{', '.join(map(str, undivided))}, which would stay unquantized; {remedy}"
    )


SPEC = MlxSpec()
