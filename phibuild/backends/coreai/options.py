"""The options of the coreai backend."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from phibuild.backends.written import WrittenOptions

FEWEST = 64


class CoreAiOptions(WrittenOptions):
    """Options of the coreai backend; None stands for the default of the precision or device."""

    group_size: Literal[16, 32, 64, 128] | None = None
    """int4: consecutive weights of a row that share a scale; 32 by default. int8 always has one
    scale for each row."""
    context: Annotated[int, Field(ge=FEWEST)] | None = None
    """Tokens that the model is made for, which Apple's runner takes no more than: by default all
    that the model's usual rope factors are for. The cache is the runner's."""
