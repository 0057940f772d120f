"""The options of the openvino backend, and which of them do not go together."""

from __future__ import annotations

from typing import Literal

from phibuild.backends.calibration import gptq_contradiction
from phibuild.backends.common import plain_weights
from phibuild.backends.mixed import MixedOptions, mixed_contradiction
from phibuild.schema import Contradiction, Precision

Mode = Literal["int4_asym", "int4_sym", "int8_asym", "int8_sym"]

MODES: dict[Precision, tuple[Mode, ...]] = {
    "int4": ("int4_asym", "int4_sym"),
    "int8": ("int8_asym", "int8_sym"),
}


class OpenVinoOptions(MixedOptions):
    """Options of the openvino backend; None stands for the default of the precision or mode."""

    mode: Mode | None = None
    """int4: int4_asym (with zero points) or int4_sym; int8: int8_asym or int8_sym."""
    group_size: Literal[32, 64, 128, -1] | None = None
    """int4: consecutive weights of a row that share a scale; -1: the whole row. 64 (int4_asym) or
    128 (int4_sym) by default. int8 always has one scale for each row."""
    target: Literal["cpu", "gpu", "npu"] = "cpu"
    """Plugin that the artifact is for. The NPU takes symmetric weights alone."""
    kv_cache: Literal["u8", "f16"] | None = None
    """KV_CACHE_PRECISION that the IR asks for; the plugin's default where it is None, but f16 for
    float weights. The artifact is judged with u8."""


def contradiction(precision: Precision, options: OpenVinoOptions) -> Contradiction | None:
    """Return a mode of another precision, or groups where there are none."""
    if precision not in MODES:
        return plain_weights(precision, options, "target", "kv_cache")
    if options.mode and options.mode not in MODES[precision]:
        return Contradiction(
            reason=f"mode {options.mode} is not {precision}",
            options=("mode",),
            remedy=f"use {' or '.join(MODES[precision])}",
        )
    if precision == "int8" and options.group_size is not None:
        return Contradiction(
            reason="int8 has one scale for each row, no groups",
            options=("group_size",),
            remedy="remove group_size, or ask for int4",
        )
    if options.is_gptq and options.group_size == -1:
        return Contradiction(
            reason="method gptq needs groups within a row",
            options=("group_size", "method"),
            remedy="use group_size 32, 64 or 128",
        )
    if options.has_target and options.group_size == -1:
        return Contradiction(
            reason="a target is met by types whose losses are measured in groups within a row",
            options=("group_size", *options.mixes),
            remedy="use group_size 32, 64 or 128",
        )
    return gptq_contradiction(precision, options) or mixed_contradiction(precision, options)
