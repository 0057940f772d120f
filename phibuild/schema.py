"""The frozen data that flows through phibuild: devices, variants, cells, gates, settings."""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

from phibuild.units import format_size, parse_size
from phibuild.worker.grids import Grid
from phibuild.worker.json_values import JsonDict, is_number

Precision = Literal["int4", "int8", "fp16", "fp32"]
PRECISIONS: tuple[Precision, ...] = ("int4", "int8", "fp16", "fp32")
DeviceClass = Literal["mobile", "iot", "ai_pc", "copilot_pc"]
Accelerator = Literal[
    "cpu", "cuda", "directml", "webgpu", "vulkan", "metal", "openvino_gpu", "openvino_npu",
    "hexagon_npu", "xdna_npu", "neural_engine",
]  # fmt: skip
Size = Annotated[int, BeforeValidator(parse_size)]
Options = JsonDict


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


def _context_length(value: int) -> int:
    if value > _MOST_CONTEXT:
        raise ValueError(f"no Phi has a context of more than {_MOST_CONTEXT:,} tokens")
    return value


def _said(value: str) -> str:
    if not value.strip():
        raise ValueError("must not be empty: say where the figure comes from")
    return value


DeviceBytes = Annotated[int, BeforeValidator(_device_bytes), Field(gt=0)]
ContextLength = Annotated[int, Field(gt=0), AfterValidator(_context_length)]
Said = Annotated[str, AfterValidator(_said)]


class Frozen(BaseModel):
    """Base of all models: unknown keys are errors, values do not change."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, json_schema_serialization_defaults_required=True
    )


class Document(Frozen):
    """Base of what phibuild writes as JSON for other programs, and of its parts. The docstrings of
    the fields stand in docs/schema."""

    model_config = ConfigDict(strict=True, use_attribute_docstrings=True)

    @classmethod
    def read(cls, data: object) -> Self:
        """Return the document that JSON data is. What another version of phibuild has written
        besides is left out. Raises ValueError, with the place in the document, if it is none."""
        try:
            return cls.model_validate(data, extra="ignore")
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            place = ".".join(map(str, first["loc"])) or "it"
            raise ValueError(f"{place}: {first['msg'].lower()}") from None


def document_text(document: BaseModel, *, sort_keys: bool = False) -> str:
    """Return a document, or a list or mapping of documents, as JSON."""
    data = document.model_dump(by_alias=True)  # mode="json" would change names that are no UTF-8
    return json.dumps(data, indent=1, sort_keys=sort_keys, allow_nan=False)


class Sources(BaseModel):
    """Where a device's figures come from; other keys may say where more of them do."""

    model_config = ConfigDict(extra="allow", frozen=True)
    __pydantic_extra__: dict[str, str] = Field(init=False)

    memory: Said
    budget: Said
    context_length: Said


class Device(Frozen):
    """A target: what it is, what it has, and where the figures come from. `memory` and `budget`
    (what a model, its KV cache and its buffers may take) are bytes, `context_length` tokens."""

    name: str
    title: str
    device_class: DeviceClass = Field(alias="class")
    memory: DeviceBytes
    budget: DeviceBytes
    accelerators: tuple[Accelerator, ...] = Field(min_length=1)
    context_length: ContextLength
    sources: Sources
    backends: dict[str, dict[Precision, Options]] = {}

    @field_validator("budget")
    @classmethod
    def _within_memory(cls, budget: int, info: ValidationInfo) -> int:
        memory = info.data.get("memory")
        if memory is not None and budget > memory:
            raise ValueError(
                f"more than the device's memory ({format_size(budget)} of {format_size(memory)})"
            )
        return budget


def _limit(value: object) -> object:
    """Check a limit: a positive number, or a mapping of precisions to positive numbers."""
    if isinstance(value, dict):
        for key, number in value.items():
            if key not in PRECISIONS:
                raise ValueError(f"unknown precision {key!r}; known: {', '.join(PRECISIONS)}")
            if isinstance(number, dict):
                raise ValueError(f"the limit of {key} must be a number")
            try:
                _limit(number)
            except ValueError as error:
                raise ValueError(f"{key}: {error}") from error
        return value
    if not is_number(value):
        raise ValueError("a limit is a number, or a mapping of precisions to numbers")
    if not 0 < value < float("inf"):
        raise ValueError("a limit must be greater than 0")
    return float(value)


Limit = Annotated[Any, BeforeValidator(_limit)]


class Gates(Frozen):
    """Limits that a cell must keep. `kl`: mean KL in nats, at most; `top1`: share of equal top-1
    tokens, at least; `size`: bytes of the artifact, at most; `fits_budget`: the artifact with its
    KV cache fits the device's budget. `kl` and `top1` may differ by precision."""

    kl: Limit | None = None
    top1: Limit | None = None
    size: Annotated[Size, Field(gt=0)] | None = None
    fits_budget: bool | None = None


class Evaluation(Frozen):
    """How artifacts are judged: `windows` windows of `window_tokens` tokens, evenly spaced over
    the text (None: the held-out text that phibuild ships); `decode_tokens` steps are decoded one
    by one. The original's logits take at most `max_reference_bytes`: with a large vocabulary
    there are fewer windows."""

    enabled: bool = True
    windows: Annotated[int, Field(gt=0, le=10**9)] = 20
    window_tokens: Annotated[int, Field(ge=16, le=10**9)] = 256
    decode_tokens: Annotated[int, Field(ge=1, le=10**9)] = 32
    max_reference_bytes: Size = 2 << 30
    text: str | None = None


@dataclass(frozen=True)
class Calibration:
    """What is taken of the original over a text, `tokens` tokens of the file `path`: its
    activations, or with a `grid` its weights on it, by GPTQ. What it is does not depend on where
    the text lies."""

    path: Path = field(compare=False)
    sha256: str
    tokens: int
    grid: Grid | None = None

    @property
    def text(self) -> Calibration:
        """The text alone: what several grids share."""
        return replace(self, grid=None)


class Variant(Frozen):
    """One way a backend makes an artifact: all that decides its bytes besides the checkpoint.

    `name` is what users of that backend call it (Q4_K_M, int4-asym-g64); `format` is the file
    format; `options` are the backend's own, complete, with defaults filled in. A variant with a
    `calibration` is built from what that takes of the original; its text's sha256 and tokens stand
    in `options`, and it is no part of what is dumped.
    """

    backend: str
    precision: Precision
    name: str
    format: str
    options: Options
    calibration: Calibration | None = Field(default=None, exclude=True)


class Judging(Document):
    """How a variant's artifacts are judged on this machine."""

    how: Literal["native", "substitute", "no"] = "native"
    """native: as they are made to be run; substitute: in another form; no: they cannot be."""
    note: str | None = None
    """That form ("its graph on the CPU"), or why they cannot be: words that begin in lower case;
    null: native."""

    @model_validator(mode="after")
    def _said(self) -> Judging:
        if (self.how == "native") != (self.note is None):
            raise ValueError("a note says what is judged instead, or why nothing is")
        return self


class Skip(Frozen):
    """Why a combination cannot work: what a device or a model cannot do."""

    reason: str


class Contradiction(Frozen):
    """Options that do not go with their precision, or with one another, on any device and for any
    model: whoever wrote them meant something else. `options` names them; the one that was written
    last is to be changed."""

    reason: str
    options: tuple[str, ...] = Field(min_length=1)
    remedy: str


class Cell(Frozen):
    """One square of the matrix. `variant` is None where `skip` says why not."""

    id: str
    model: str
    device: str
    backend: str
    precision: Precision
    variant: Variant | None
    skip: str | None
    gates: Gates
