"""Calibration texts: what a variant's activations are taken from, found and named by content."""

from __future__ import annotations

import hashlib
from functools import cache
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator

from phibuild.schema import Calibration

CHUNK_TOKENS = 512
"""Tokens that the original sees at a time, as llama-imatrix has it by default."""
_EMBEDDED = "embedded"
_EMBEDDED_TEXT = (
    Path(__file__).resolve().parents[1] / "data" / "phi3-tiny-trained" / "calibration.txt"
)


def make_calibration(text: str, tokens: int) -> Calibration:
    """Return `tokens` tokens of a text as recipes name it: a UTF-8 file, or `embedded` for the one
    that ships with the embedded model. Raises ValueError if it cannot be read."""
    try:
        path = _EMBEDDED_TEXT if text == _EMBEDDED else Path(text).expanduser().resolve()
        status = path.stat()
        return Calibration(path, _text_sha256(path, status.st_size, status.st_mtime_ns), tokens)
    except UnicodeDecodeError:
        raise ValueError(f"{text!r} is not UTF-8 text") from None
    except (OSError, ValueError, RuntimeError) as error:  # a NUL in the name, ~ of nobody
        reason = getattr(error, "strerror", None) or error
        raise ValueError(
            f"{text!r} cannot be read: {reason}; give the path of a text file, or {_EMBEDDED}"
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
