"""Devices: what they are, what they have, and where the figures come from."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationInfo,
    ValidatorFunctionWrapHandler,
    WithJsonSchema,
    WrapValidator,
    field_validator,
)

from phibuild.schema.base import Frozen, Options, Precision
from phibuild.units import UNIT_TEXT, Amount, parse_size, with_decimal, written

DeviceClass = Literal["mobile", "iot", "ai_pc", "copilot_pc", "server"]
Accelerator = Literal[
    "cpu", "cuda", "directml", "webgpu", "vulkan", "metal", "openvino_gpu", "openvino_npu",
    "hexagon_npu", "xdna_npu", "neural_engine",
]  # fmt: skip
ONE_VARIANT = (
    "several variants of a precision stand in a recipe, at devices.DEVICE.BACKEND.PRECISION alone"
)


def _one_variant(value: object) -> object:
    if isinstance(value, list):
        raise ValueError(f"must be a mapping, not a list: {ONE_VARIANT}")
    return value


_LEAST_MEMORY, _MOST_MEMORY = 1 << 20, 1 << 50
_MOST_CONTEXT = 10_000_000


def _device_bytes(value: object) -> int:
    """Return the bytes of a device's memory or budget; raises ValueError for a figure that no
    device has."""
    if isinstance(value, float) and 0 < value < 1e4 and value != int(value):
        raise ValueError(f"{value!r} has no unit; write for example '{value} GiB'")
    size = parse_size(value)
    if 0 < size < _LEAST_MEMORY:
        if isinstance(value, str) and not value.strip().isdecimal():
            raise ValueError("less than 1 MiB holds no model")
        # What people mean by 4, 8000 and 262144.
        number = size if size <= 1 << 17 else size >> 10
        unit = "GiB" if number <= 1024 else "MiB"
        raise ValueError(f"{value!r} has no unit; write for example '{number} {unit}'")
    if size > _MOST_MEMORY:
        raise ValueError("no device has more than 1 PiB")
    return size


def _as_written(value: object, check: ValidatorFunctionWrapHandler) -> Amount:
    return Amount(check(value), str(value).strip())


def _context_length(value: int) -> int:
    if value > _MOST_CONTEXT:
        raise ValueError(f"no Phi has a context of more than {_MOST_CONTEXT:,} tokens")
    return value


def _said(value: str) -> str:
    if not value.strip():
        raise ValueError("must not be empty: say where the figure comes from")
    return value


DeviceBytes = Annotated[
    int,
    BeforeValidator(_device_bytes),
    Field(gt=0),
    WrapValidator(_as_written),
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "integer", "minimum": _LEAST_MEMORY, "maximum": _MOST_MEMORY},
                UNIT_TEXT,
            ]
        },
        mode="validation",
    ),
]
"""Bytes, an Amount that knows how the file has them."""
ContextLength = Annotated[
    int,
    Field(gt=0),
    AfterValidator(_context_length),
    WithJsonSchema({"type": "integer", "minimum": 1, "maximum": _MOST_CONTEXT}, mode="validation"),
]
Said = Annotated[
    str,
    AfterValidator(_said),
    WithJsonSchema({"type": "string", "pattern": r"\S"}, mode="validation"),
]


class Sources(BaseModel):
    """Where a device's figures come from; other keys may say where more of them do."""

    model_config = ConfigDict(extra="allow", frozen=True)
    __pydantic_extra__: dict[str, str] = Field(init=False)

    memory: Said
    """Where the device's memory is said, such as its data sheet."""
    budget: Said
    """Where the budget comes from, such as what the system leaves."""
    context_length: Said
    """Why so many tokens."""


class Device(Frozen):
    """A target: what it is, what it has, and where the figures come from. Sizes are bytes."""

    name: str
    title: str
    """What people call the device."""
    device_class: DeviceClass = Field(alias="class")
    """What kind of device it is."""
    memory: DeviceBytes
    """The device's memory, such as 8 GiB."""
    budget: DeviceBytes
    """What a model, its KV cache and its buffers may take of it, such as 6 GB."""
    accelerators: tuple[Accelerator, ...] = Field(min_length=1)
    """What can compute there; a backend that needs another is skipped."""
    context_length: ContextLength
    """Tokens that the KV cache is planned for."""
    sources: Sources
    """Where memory, budget and context_length come from."""
    backends: dict[str, dict[Precision, Annotated[Options, BeforeValidator(_one_variant)]]] = Field(
        default={}
    )
    """Options that suit the device: backend -> precision -> options. A recipe's own come first."""

    @field_validator("budget")
    @classmethod
    def _within_memory(cls, budget: int, info: ValidationInfo) -> int:
        memory = info.data.get("memory")
        if memory is not None and budget > memory:
            raise ValueError(
                f"more than the device's memory ({written(budget)} of "
                f"{with_decimal(written(memory), memory)})"
            )
        return budget
