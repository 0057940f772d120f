"""The options of the executorch backend, and which of them do not go together."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from phibuild.backends.calibration import gptq_contradiction
from phibuild.backends.common import chosen, joined, plain_weights
from phibuild.backends.executorch.layout import PREFILL_TOKENS
from phibuild.backends.mixed import MixedOptions, mixed_contradiction
from phibuild.schema import Contradiction, Precision


class ExecuTorchOptions(MixedOptions):
    """Options of the executorch backend; None stands for the default of the precision or device."""

    group_size: Literal[32, 64, 128, 256] | None = None
    """int4: consecutive weights of a row that share a scale; 32 by default. int8 always has one
    scale for each row."""
    context: Annotated[int, Field(ge=PREFILL_TOKENS, multiple_of=PREFILL_TOKENS)] | None = None
    """Tokens that the KV cache holds, a multiple of 128: its size is part of the program. What the
    device is planned for by default, at most 4096 and what the model's usual rope factors are for.
    """


def contradiction(precision: Precision, options: ExecuTorchOptions) -> Contradiction | None:
    """Return groups where there are none, and what mixes types or calibrates elsewhere."""
    if precision in ("fp32", "fp16"):
        return plain_weights(precision, options, "context")
    if precision == "int8" and "group_size" in chosen(options):
        return Contradiction(
            reason=f"int8 has one scale for each row, no {joined(('group_size',))}",
            options=("group_size",),
            remedy="remove group_size, or ask for int4",
        )
    return gptq_contradiction(precision, options) or mixed_contradiction(precision, options)
