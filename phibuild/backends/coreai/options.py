"""The options of the coreai backend, and which of them do not go together."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from phibuild.backends.calibration import gptq_contradiction
from phibuild.backends.common import chosen, joined, plain_weights
from phibuild.backends.mixed import MixedOptions, mixed_contradiction
from phibuild.schema import Contradiction, Precision


class CoreAiOptions(MixedOptions):
    """Options of the coreai backend; None stands for the default of the precision or device."""

    group_size: Literal[16, 32, 64, 128] | None = None
    """int4: consecutive weights of a row that share a scale; 32 by default. int8 always has one
    scale for each row."""
    context: Annotated[int, Field(ge=64)] | None = None
    """Tokens that the model is made for: it decides longrope's factors, and the runner's most. What
    the device is planned for by default, at most what the model's usual rope factors are for."""


def contradiction(precision: Precision, options: CoreAiOptions) -> Contradiction | None:
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
