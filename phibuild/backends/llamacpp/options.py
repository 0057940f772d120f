"""The options of the llamacpp backend, and which of them do not go together."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from phibuild.backends.calibration import (
    CHUNK_TOKENS,
    TOKENS,
    gptq_contradiction,
    make_calibration,
)
from phibuild.backends.common import chosen, joined
from phibuild.backends.llamacpp.cache import CacheType
from phibuild.backends.llamacpp.matrix import ImportanceMatrix
from phibuild.backends.llamacpp.matrix_file import SUFFIXES, read_matrix
from phibuild.backends.mixed import MixedOptions, mixed_contradiction
from phibuild.schema import Contradiction, InputFile, Precision

GgufType = Literal["Q4_K_M", "Q4_0", "Q5_K_M", "IQ4_XS", "Q8_0", "F16", "F32"]

TYPES: dict[Precision, tuple[GgufType, ...]] = {
    "int4": ("Q4_K_M", "Q4_0", "Q5_K_M", "IQ4_XS"),
    "int8": ("Q8_0",),
    "fp16": ("F16",),
    "fp32": ("F32",),
}

GPTQ_TYPES: tuple[GgufType, ...] = ("Q4_K_M", "Q4_0", "Q5_K_M")
"""Those whose base type GPTQ can round to: IQ4_XS has a table of values, no grid."""


def is_matrix_file(source: str) -> bool:
    """Return whether an importance matrix is named by a file that holds it, not by a text."""
    return source.lower().endswith(SUFFIXES)


def open_matrix(source: str) -> tuple[ImportanceMatrix, InputFile]:
    """Return the importance matrix of a file. Raises ValueError if it cannot be read."""
    try:
        path = Path(source).expanduser().resolve()
        matrix, sha256 = read_matrix(path)
    except (OSError, RuntimeError) as error:
        reason = f"cannot be read: {getattr(error, 'strerror', None) or error}"
    except ValueError as error:
        reason = f"is no importance matrix: {error}"
    else:
        return matrix, InputFile(path, sha256)
    raise ValueError(f"{source!r} {reason}; give a file that llama-imatrix or phibuild has written")


def _check(source: str) -> str:
    if is_matrix_file(source):
        open_matrix(source)
    else:
        make_calibration(source, CHUNK_TOKENS)
    return source


class LlamaCppOptions(MixedOptions):
    """Options of the llamacpp backend; None stands for the default of the precision. GPTQ rounds
    what has the file's base type; tensors that llama.cpp gives a larger one have it as ever."""

    type: GgufType | None = None
    """GGUF type. int4: Q4_K_M (the usual choice), Q4_0 (the layout that Arm CPUs repack), Q5_K_M
    (larger and closer to the original), IQ4_XS (smallest); int8: Q8_0; fp16: F16; fp32: F32. By
    default Q4_K_M, on a device with a Hexagon NPU Q4_0 by gptq."""
    imatrix: Annotated[str, AfterValidator(_check)] | None = None
    """int4 only: a calibration text (a UTF-8 file, or `embedded`), or a file of llama-imatrix
    (.gguf; .dat or .imatrix of older ones). What the text's tokens send into each matrix decides
    how much the columns' rounding errors weigh, as with llama-quantize --imatrix."""
    imatrix_tokens: Annotated[int, Field(ge=CHUNK_TOKENS)] = TOKENS
    """Tokens of that text, in chunks of 512 that are evenly spaced over it."""
    kv_cache: CacheType | None = None
    """Type of the KV cache on the device: f16 (the default), q8_0 (34 bytes for 32 elements) or
    q4_0 (18). The artifact is judged with it."""


def contradiction(precision: Precision, options: LlamaCppOptions) -> Contradiction | None:
    """Return a type of another precision, or what belongs to int4 alone."""
    allowed = TYPES[precision]
    if options.type and options.type not in allowed:
        return Contradiction(
            reason=f"GGUF type {options.type} is not {precision}",
            options=("type",),
            remedy=f"{precision} has {', '.join(allowed)}",
        )
    if options.is_gptq and precision == "int4" and options.type not in (None, *GPTQ_TYPES):
        return Contradiction(
            reason=f"method gptq makes {', '.join(GPTQ_TYPES)}, not {options.type}",
            options=("type", "method"),
            remedy=f"set type to {GPTQ_TYPES[0]} or null, or remove method",
        )
    if found := gptq_contradiction(precision, options, "imatrix"):
        return found
    if found := mixed_contradiction(precision, options):
        return found
    wrong = chosen(options, "type", "method", "kv_cache") if precision != "int4" else ()
    if wrong:
        return Contradiction(
            reason=f"an importance matrix guides the search for 4-bit values; {precision} has none",
            options=wrong,
            remedy=f"remove {joined(wrong)}, which goes with int4",
        )
    if options.imatrix and is_matrix_file(options.imatrix) and options.imatrix_tokens != TOKENS:
        return Contradiction(
            reason=f"{options.imatrix!r} is made of its tokens already",
            options=("imatrix_tokens", "imatrix"),
            remedy="remove imatrix_tokens, which goes with a text",
        )
    return None
