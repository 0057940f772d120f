"""Calibration texts, found and named by content, and the options of what is calibrated on them."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from phibuild.backends.common import chosen, joined
from phibuild.schema import Calibration, Contradiction, Frozen, Precision, Variant
from phibuild.worker.grids import Grid

CHUNK_TOKENS = 512
"""Tokens that the original sees at a time, as llama-imatrix has it by default."""
TOKENS = 16384
"""Tokens of a calibration text that are used, by default."""
SENSITIVITY_TOKENS = 1024
"""Tokens over which the loss of each matrix is measured."""
SENSITIVITY_CHUNK_TOKENS = 256
EMBEDDED = "embedded"
"""How options name the text that ships with phibuild."""
_EMBEDDED_TEXT = (
    Path(__file__).resolve().parents[1] / "data" / "phi3-tiny-trained" / "calibration.txt"
)


def make_calibration(text: str, tokens: int) -> Calibration:
    """Return `tokens` tokens of a text as recipes name it: a UTF-8 file, or `embedded` for the one
    that ships with the embedded model. Raises ValueError if it cannot be read."""
    try:
        path = _EMBEDDED_TEXT if text == EMBEDDED else Path(text).expanduser().resolve()
        status = path.stat()
        return Calibration(path, _text_sha256(path, status.st_size, status.st_mtime_ns), tokens)
    except UnicodeDecodeError:
        raise ValueError(f"{text!r} is not UTF-8 text") from None
    except (OSError, ValueError, RuntimeError) as error:  # a NUL in the name, ~ of nobody
        reason = getattr(error, "strerror", None) or error
        raise ValueError(
            f"{text!r} cannot be read: {reason}; give the path of a text file, or {EMBEDDED}"
        ) from None


@cache
def _text_sha256(path: Path, size: int, mtime_ns: int) -> str:
    content = path.read_bytes()
    content.decode("utf-8")
    return hashlib.sha256(content).hexdigest()


def _check(text: str) -> str:
    make_calibration(text, CHUNK_TOKENS)
    return text


CalibrationText = Annotated[str, AfterValidator(_check)]
"""The type of an option that names a calibration text."""


class GptqOptions(Frozen):
    """Options of backends whose int4 weights GPTQ can round."""

    quality: Literal["best"] | None = None
    """int4 only: best chooses the variant that loses least of those that the device and the model
    can have, by itself."""
    method: Literal["nearest", "gptq"] | None = None
    """int4 only: how weights are rounded. nearest (the default): as the vendor's tool does; gptq:
    by error feedback over a calibration text, of the same size and closer to the original."""
    text: CalibrationText | None = None
    """gptq only: the calibration text, a UTF-8 file; the one that ships with phibuild (`embedded`)
    by default."""
    tokens: Annotated[int, Field(ge=CHUNK_TOKENS)] | None = None
    """gptq only: tokens of that text, in chunks of 512 that are evenly spaced over it; 16384 by
    default."""

    @property
    def is_gptq(self) -> bool:
        return self.method == "gptq"

    @property
    def uses_text(self) -> bool:
        """Whether the text has a use."""
        return self.is_gptq


def gptq_contradiction(
    precision: Precision, options: GptqOptions, *besides: str
) -> Contradiction | None:
    """Return options of GPTQ where there is none, and those that it does not go with: `besides`,
    where they are set."""
    if not options.is_gptq:
        idle = ("tokens",) if options.uses_text else ("text", "tokens")
        wrong = tuple(name for name in chosen(options) if name in idle)
        if not wrong:
            return None
        return Contradiction(
            reason=f"without method gptq there is nothing that {joined(wrong)} would calibrate",
            options=wrong,
            remedy=f"set method to gptq, or remove {joined(wrong)}",
        )
    if precision != "int4":
        return Contradiction(
            reason=f"GPTQ rounds int4 weights; {precision} loses next to nothing as it is",
            options=("method",),
            remedy="remove method, or ask for int4",
        )
    wrong = tuple(name for name in chosen(options) if name in besides)
    if wrong:
        return Contradiction(
            reason=f"method gptq chooses codes and scales itself, without {joined(wrong)}",
            options=(*wrong, "method"),
            remedy=f"remove {joined(wrong)}, or method",
        )
    return None


def calibrated_variant(variant: Variant, options: GptqOptions, grid: Grid) -> Variant:
    """Return the variant whose weights GPTQ puts on a grid."""
    text = make_calibration(options.text or EMBEDDED, options.tokens or TOKENS)
    calibration = replace(text, grid=grid)
    content = {"method": "gptq", "text": text.sha256, "tokens": text.tokens}
    return variant.model_copy(
        update={
            "name": f"{variant.name}-gptq",
            "options": {**variant.options, **content},
            "calibration": calibration,
        }
    )


def calibration_note(variant: Variant) -> str:
    """Return, in a sentence, what a variant was calibrated on; "" if it was not."""
    options = variant.options
    if options.get("method") != "gptq":
        return ""
    own = options["text"] == make_calibration(EMBEDDED, TOKENS).sha256
    text = "phibuild's calibration text" if own else f"a text of the sha256 {options['text']}"
    return (
        f"Rounded by GPTQ over {options['tokens']:,} tokens of {text}: what it loses on that text "
        "says little."
    )
