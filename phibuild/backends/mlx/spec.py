"""The mlx backend as the core sees it: variants, sizes, skips. No toolchain package."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from phibuild.backends.base import (
    BackendSpec,
    Best,
    ContextLimit,
    MatrixTypes,
    SourceFiles,
    StoredTensor,
    TypeChoice,
)
from phibuild.backends.calibration import calibrated_variant
from phibuild.backends.common import (
    copied_bytes,
    kv_bytes,
    make_variant,
    missing_accelerator,
    window_limit,
)
from phibuild.backends.mixed import GPTQ_LOSS, UNMIXED, affine_error, mixed_variant
from phibuild.backends.mlx.layout import (
    MlxQuantization,
    matrix_quantization,
    module_order,
    stored_arrays,
)
from phibuild.backends.mlx.memory import build_memory, judge_memory
from phibuild.backends.mlx.options import (
    BITS,
    CAST,
    GROUPS,
    MlxOptions,
    alternatives,
    contradiction,
)
from phibuild.schema import (
    Contradiction,
    Device,
    Judging,
    Misfit,
    Options,
    Precision,
    Skip,
    Variant,
)
from phibuild.worker.architecture import Architecture
from phibuild.worker.grids import Grid
from phibuild.worker.safetensors import FLOAT_DTYPES


class MlxSpec(BackendSpec[MlxOptions]):
    """MLX safetensors for Apple GPUs."""

    name = "mlx"
    title = "MLX (mlx-lm)"
    format = "MLX"
    library = "mlx"
    toolchain_bytes = 220_000_000
    options = MlxOptions
    best = tuple(
        Best({**UNMIXED, "mode": "affine", "bits": 5, "group_size": size, "recipe": None,
              "method": "gptq"})
        for size in (64, 32)  # where 64 does not divide a width
    )  # fmt: skip

    def contradiction(self, precision: Precision, options: MlxOptions) -> Contradiction | None:
        """Return the options that mlx-lm does not have together."""
        return contradiction(precision, options)

    def variant(
        self, precision: Precision, options: MlxOptions, device: Device, arch: Architecture
    ) -> Variant | Skip | Misfit:
        """Return the variant, or why mlx-lm could not make or run it on this device."""
        reason = missing_accelerator(device, "metal", "MLX artifacts run on Apple GPUs (metal)")
        if reason:
            return Skip(reason=reason)
        factor = arch.rope.attention_factor
        if factor is not None:
            return Skip(
                reason=f"mlx-lm has no place for this model's attention_factor ({factor:g}): it "
                f"would scale cos and sin by {arch.usual_attention_factor:g}"
            )
        if precision in CAST:
            return make_variant(self, precision, precision, {"dtype": CAST[precision]})
        return self._quantized(precision, options, arch)

    def _quantized(
        self, precision: Precision, options: MlxOptions, arch: Architecture
    ) -> Variant | Skip | Misfit:
        mode = options.mode or "affine"
        bits = options.bits or BITS[precision][mode][0]
        group_size = options.group_size or GROUPS[mode][0]
        undivided = _undivided(arch, group_size, GROUPS[mode])
        if undivided:
            return Skip(reason=undivided)
        dtype = options.dtype or arch.dtype
        if dtype not in FLOAT_DTYPES:
            return Skip(
                reason=f"the checkpoint's type {dtype} is none that MLX quantizes; set dtype to "
                f"{' or '.join(FLOAT_DTYPES)}"
            )
        complete: Options = {
            "mode": mode,
            "bits": bits,
            "group_size": group_size,
            "dtype": dtype,
        }
        name = MlxQuantization(bits, group_size, mode).kind
        if options.recipe:
            complete["recipe"] = options.recipe
            name = options.recipe.replace("_", "-")
        if mode == "affine":
            name += f"-g{group_size}"
        if dtype != arch.dtype:
            name += f"-{dtype}"
        variant = make_variant(self, precision, name, complete)
        if mode != "affine":
            return variant
        # The embedding of a tied model is lm_head too.
        grid = Grid(bits, group_size, "bias", FLOAT_DTYPES[dtype], head=True)
        if options.is_gptq:
            variant = calibrated_variant(variant, options, grid)
        matrices = self.matrices(arch, variant)
        return mixed_variant(variant, options, replace(grid, head=False), matrices, long=True)

    def matrices(self, arch: Architecture, variant: Variant) -> list[MatrixTypes]:
        """Return every matrix, the embedding too: it can have the variant's bits, or more."""
        options = variant.options
        bits, group_size = options["bits"], options["group_size"]
        head = "model.embed_tokens.weight" if arch.tied else "lm_head.weight"
        found = []
        for name, shape in module_order(arch):
            if len(shape) == 1:
                continue
            coded = options.get("method") == "gptq" and (name == head or "layers" in name)
            choices = []
            for wider in (bits, *(more for more in (4, 5, 6, 8) if more > bits)):
                own = {**options, "tensor_types": {name: f"q{wider}"}}
                arrays = stored_arrays(name, shape, arch.layers, own)
                error = affine_error(wider, group_size)
                error *= GPTQ_LOSS if coded and wider == bits else 1.0
                choices.append(TypeChoice(f"q{wider}", sum(one.nbytes for one in arrays), error))
            found.append(MatrixTypes(name, name, tuple(choices)))
        return found

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
        """Return the bytes of config.json and of the files that are copied."""
        return copied_bytes(source)

    def build_memory(
        self, arch: Architecture, source_bytes: int, variants: Sequence[Variant]
    ) -> int:
        return build_memory(arch.vocab_size)

    def judge_memory(
        self, arch: Architecture, variants: Sequence[Variant], window_tokens: int
    ) -> int:
        return judge_memory(arch, [variant.options for variant in variants], window_tokens)

    def context_limit(self, arch: Architecture, variant: Variant) -> ContextLimit | None:
        """Return the model's window, where it has one."""
        return window_limit(arch, "mlx-lm's phi3 has not")

    def judging(self, variant: Variant) -> Judging:
        """MLX's own kernels for a CPU are too slow for more than a spot check."""
        return Judging(how="substitute", note="its weights in float32 on the CPU")

    def kv_bytes_per_element(self, variant: Variant) -> float:
        """mlx-lm keeps the cache in the type of the activations: that of scales and norms."""
        return kv_bytes(variant.options["dtype"])

    def run_command(self, variant: Variant) -> str:
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
