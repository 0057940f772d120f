"""The options of the llamacpp backend, and which of them do not go together."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from phibuild.backends.calibration import (
    CHUNK_TOKENS,
    CalibrationText,
    GptqOptions,
    gptq_contradiction,
)
from phibuild.backends.common import chosen, joined
from phibuild.schema import Contradiction, Precision

GgufType = Literal["Q4_K_M", "Q4_0", "Q5_K_M", "IQ4_XS", "Q8_0", "F16", "F32"]

TYPES: dict[Precision, tuple[GgufType, ...]] = {
    "int4": ("Q4_K_M", "Q4_0", "Q5_K_M", "IQ4_XS"),
    "int8": ("Q8_0",),
    "fp16": ("F16",),
    "fp32": ("F32",),
}


class LlamaCppOptions(GptqOptions):
    """Options of the llamacpp backend; None stands for the default of the precision. GPTQ makes
    Q4_0: the scales of K-quants are ggml's own affair."""

    type: GgufType | None = None
    """GGUF type. int4: Q4_K_M (the usual choice), Q4_0 (the layout that Arm CPUs repack), Q5_K_M
    (larger and closer to the original), IQ4_XS (smallest); int8: Q8_0; fp16: F16; fp32: F32."""
    imatrix: CalibrationText | None = None
    """int4 only: a calibration text (a UTF-8 file, or `embedded`). What its tokens send into each
    matrix decides how much the columns' rounding errors weigh, as with llama-quantize --imatrix."""
    imatrix_tokens: Annotated[int, Field(ge=CHUNK_TOKENS)] = 16384
    """Tokens of that text, in chunks of 512 that are evenly spaced over it."""


def contradiction(precision: Precision, options: LlamaCppOptions) -> Contradiction | None:
    """Return a type of another precision, or what belongs to int4 alone."""
    allowed = TYPES[precision]
    if options.type and options.type not in allowed:
        return Contradiction(
            reason=f"GGUF type {options.type} is not {precision}",
            options=("type",),
            remedy=f"{precision} has {', '.join(allowed)}",
        )
    if options.is_gptq and precision == "int4" and options.type not in (None, "Q4_0"):
        return Contradiction(
            reason=f"method gptq makes Q4_0, not {options.type}",
            options=("type", "method"),
            remedy="set type to Q4_0 or null, or remove method",
        )
    if found := gptq_contradiction(precision, options, "imatrix"):
        return found
    wrong = chosen(options, "type", "method") if precision != "int4" else ()
    if wrong:
        return Contradiction(
            reason=f"an importance matrix guides the search for 4-bit values; {precision} has none",
            options=wrong,
            remedy=f"remove {joined(wrong)}, which goes with int4",
        )
    return None
