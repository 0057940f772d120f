"""The options of the litert backend."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from phibuild.backends.litert.layout import PREFILL_TOKENS
from phibuild.backends.written import WrittenOptions

Container = Literal["litertlm", "tflite"]


class LiteRtOptions(WrittenOptions):
    """Options of the litert backend; None stands for the default of the precision or device."""

    group_size: Literal[32, 64, 128, 256] | None = None
    """int4: consecutive weights of a row that share a scale; 32 by default. int8 always has one
    scale for each row."""
    container: Container = "litertlm"
    """litertlm: a bundle of model, tokenizer, chat template and stop tokens, for LiteRT-LM; tflite:
    the model alone, for LiteRT, with the tokenizer's files beside it."""
    context: Annotated[int, Field(ge=PREFILL_TOKENS, multiple_of=PREFILL_TOKENS)] | None = None
    """Tokens that the KV cache holds, a multiple of 128: its size is part of the model. What the
    device is planned for by default, at most 4096 and what the model's usual rope factors are for.
    """
