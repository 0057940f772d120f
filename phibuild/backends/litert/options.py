"""The options of the litert backend, and which of them do not go together."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from phibuild.backends.calibration import gptq_contradiction
from phibuild.backends.common import chosen, joined, plain_weights
from phibuild.backends.litert.layout import PREFILL_TOKENS
from phibuild.backends.mixed import MixedOptions, mixed_contradiction
from phibuild.schema import Contradiction, Precision

Container = Literal["litertlm", "tflite"]


class LiteRtOptions(MixedOptions):
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


def contradiction(precision: Precision, options: LiteRtOptions) -> Contradiction | None:
    """Return groups where there are none, and what mixes types or calibrates elsewhere."""
    if precision in ("fp32", "fp16"):
        return plain_weights(precision, options, "container", "context")
    if precision == "int8" and "group_size" in chosen(options):
        return Contradiction(
            reason=f"int8 has one scale for each row, no {joined(('group_size',))}",
            options=("group_size",),
            remedy="remove group_size, or ask for int4",
        )
    return gptq_contradiction(precision, options) or mixed_contradiction(precision, options)
