"""The options of the mlx backend, and which of them do not go together."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from phibuild.backends.calibration import gptq_contradiction
from phibuild.backends.common import plain_weights
from phibuild.backends.mixed import MixedOptions, mixed_contradiction
from phibuild.schema import Contradiction, Precision

# Weights of one row that can share a scale, by mode; the first is the mode's default (the table
# of quantization modes in the documentation of mx.quantize).
GROUPS = {"affine": (64, 32, 128), "mxfp4": (32,), "mxfp8": (32,)}
# Bits of a weight that count as a precision, by mode; the first is the default.
BITS: dict[Precision, dict[str, tuple[int, ...]]] = {
    "int4": {"affine": (4, 3, 5), "mxfp4": (4,)},
    "int8": {"affine": (8, 6), "mxfp8": (8,)},
}
CAST: dict[Precision, str] = {"fp16": "float16", "fp32": "float32"}


class MlxOptions(MixedOptions):
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


def contradiction(precision: Precision, options: MlxOptions) -> Contradiction | None:
    """Return the options that mlx-lm does not have together."""
    if precision in CAST:
        return plain_weights(precision, options)
    modes = BITS[precision]
    mode = options.mode or "affine"
    if found := gptq_contradiction(precision, options, "recipe"):
        return found
    if found := mixed_contradiction(precision, options, "recipe"):
        return found
    if options.mixes and mode != "affine":
        return Contradiction(
            reason=f"types of tensors differ by their bits, and mode {mode} has one number of them",
            options=("mode", *options.mixes),
            remedy=f"use mode affine, or remove {options.mixes[0]}",
        )
    if options.is_gptq and mode != "affine":
        return Contradiction(
            reason=f"method gptq needs mode affine, not {mode}",
            options=("mode", "method"),
            remedy="use mode affine, or remove method",
        )
    if options.recipe:
        mixed = _unmixed(precision, mode, options)
        if mixed:
            return mixed
    if mode not in modes:
        return Contradiction(
            reason=f"mode {mode} is not {precision}",
            options=("mode",),
            remedy=f"use {' or '.join(modes)}",
        )
    if options.bits and options.bits not in modes[mode]:
        return Contradiction(
            reason=f"{options.bits} bits with mode {mode} are not {precision}",
            options=("bits", "mode"),
            remedy=f"use {alternatives(modes[mode])}",
        )
    if options.group_size and options.group_size not in GROUPS[mode]:
        return Contradiction(
            reason=f"mode {mode} has groups of {alternatives(GROUPS[mode])}, "
            f"not of {options.group_size}",
            options=("group_size", "mode"),
            remedy="leave group_size null",
        )
    return None


def _unmixed(precision: Precision, mode: str, options: MlxOptions) -> Contradiction | None:
    """Return why a recipe cannot be combined with these options, or None."""
    if precision != "int4":
        return Contradiction(
            reason=f"the recipe {options.recipe} is int4's, not {precision}'s",
            options=("recipe",),
            remedy="remove recipe",
        )
    if mode != "affine":
        return Contradiction(
            reason=f"the recipe {options.recipe} needs mode affine, not {mode}",
            options=("recipe", "mode"),
            remedy="use mode affine, or leave recipe null",
        )
    if options.bits:
        return Contradiction(
            reason=f"the recipe {options.recipe} chooses the bits itself",
            options=("recipe", "bits"),
            remedy="leave bits null",
        )
    return None


def alternatives(numbers: Sequence[int]) -> str:
    return " or ".join(map(str, sorted(numbers)))
