"""The options of the openvino backend, and which of them do not go together."""

from __future__ import annotations

from typing import Literal

from phibuild.backends.calibration import GptqOptions, gptq_contradiction
from phibuild.backends.common import plain_weights
from phibuild.schema import Contradiction, Precision

Mode = Literal["int4_asym", "int4_sym", "int8_asym", "int8_sym"]

MODES: dict[Precision, tuple[Mode, ...]] = {
    "int4": ("int4_asym", "int4_sym"),
    "int8": ("int8_asym", "int8_sym"),
}


class OpenVinoOptions(GptqOptions):
    """Options of the openvino backend; None stands for the default of the precision or mode."""

    mode: Mode | None = None
    """int4: int4_asym (with zero points) or int4_sym; int8: int8_asym or int8_sym."""
    group_size: Literal[32, 64, 128, -1] | None = None
    """int4: consecutive weights of a row that share a scale; -1: the whole row. 64 (int4_asym) or
    128 (int4_sym) by default. int8 always has one scale for each row."""
    target: Literal["cpu", "gpu", "npu"] = "cpu"
    """Plugin that the artifact is for. The NPU takes symmetric weights alone."""


def contradiction(precision: Precision, options: OpenVinoOptions) -> Contradiction | None:
    """Return a mode of another precision, or groups where there are none."""
    if precision not in MODES:
        return plain_weights(precision, options, "target")
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
    return gptq_contradiction(precision, options)
