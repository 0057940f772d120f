"""The options of the qnn backend."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from phibuild.backends.qnn.layout import PROMPT_TOKENS
from phibuild.backends.qnn.socs import Soc
from phibuild.backends.written import WrittenOptions

Form = Literal["context", "onnx"]
FEWEST = 2 * PROMPT_TOKENS


class QnnOptions(WrittenOptions):
    """Options of the qnn backend; None stands for the default of the precision or device."""

    group_size: Literal[16, 32, 64, 128] | None = None
    """int4: consecutive weights of a row that share a scale; 32 by default. int8 always has 32."""
    context: Annotated[int, Field(ge=FEWEST)] | None = None
    """Tokens that the graphs are made for, a multiple of 64: by default what the device names, at
    most 4096 and what the model's short rope factors are for."""
    soc: Soc | None = None
    """context: the chip that is compiled for; by default the device's."""
    gate_tokens: Annotated[int, Field(ge=0, le=FEWEST - PROMPT_TOKENS)] | None = None
    """context: tokens that go one by one, after part of a prompt, through binaries in Qualcomm's
    simulator and through their graphs on the CPU, which must agree; 0: none are. By default 4 for
    models of up to 0.1 billion parameters, and 0 beyond."""
    form: Form = "context"
    """context: binaries that the NPU loads as they are. onnx: the graphs that they are compiled
    of, by the device when it first opens them, or by a machine with the memory for it."""
