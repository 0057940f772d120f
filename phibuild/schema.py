"""The frozen data that flows through phibuild: devices, variants, cells, gates, settings."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationInfo,
    field_validator,
    model_serializer,
    model_validator,
)

from phibuild.figures import ContextLength, DeviceBytes, Said
from phibuild.units import format_size, parse_size

Precision = Literal["int4", "int8", "fp16", "fp32"]
PRECISIONS: tuple[Precision, ...] = ("int4", "int8", "fp16", "fp32")
DeviceClass = Literal["mobile", "iot", "ai_pc", "copilot_pc"]
Accelerator = Literal[
    "cpu", "cuda", "directml", "webgpu", "vulkan", "metal", "openvino_gpu", "openvino_npu",
    "hexagon_npu", "xdna_npu", "neural_engine",
]  # fmt: skip
Size = Annotated[int, BeforeValidator(parse_size)]
Options = dict[str, Any]


class Frozen(BaseModel):
    """Base of all models: unknown keys are errors, values do not change."""

    model_config = ConfigDict(extra="forbid", frozen=True)


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


class ModelChoice(Frozen):
    """Which checkpoint a recipe builds: `path`, a reference (a name of the catalogue, a folder,
    org/name@revision); or an `adapter`, a PEFT folder, on its `base`, a reference. `name` stands in
    cell ids; without one it comes from the reference. A text is the reference alone."""

    path: str | None = None
    base: str | None = None
    adapter: str | None = None
    name: str | None = None

    @model_validator(mode="before")
    @classmethod
    def _from_text(cls, value: object) -> object:
        if isinstance(value, str):
            return {"path": value}
        if not isinstance(value, (dict, ModelChoice)):
            raise ValueError("must be text or a mapping")
        return value

    @model_validator(mode="after")
    def _check(self) -> ModelChoice:
        if self.path is not None:
            for other in ("base", "adapter"):
                if getattr(self, other) is not None:
                    raise ValueError(
                        f"'path', a whole checkpoint, and '{other}' cannot stand together: an "
                        "adapter needs base and adapter"
                    )
        elif self.adapter is None:
            if self.base is not None:
                raise ValueError("'base' needs an adapter; a whole checkpoint is written as path")
            raise ValueError("names no checkpoint: write path, or base and adapter")
        elif self.base is None:
            raise ValueError("'adapter' needs base, the model that it was trained on")
        for key in ("base", "adapter", "name"):
            if getattr(self, key) == "":
                raise ValueError(f"'{key}' must not be empty")
        if self.name is not None and not any(letter.isalnum() for letter in self.name):
            raise ValueError("'name' needs a letter or a digit")
        return self

    @model_serializer
    def _dump(self) -> str | dict[str, str]:
        given = {key: value for key, value in dict(self).items() if value is not None}
        return given["path"] if list(given) == ["path"] else given

    @property
    def reference(self) -> str:
        """What the checkpoint is made from, as one line."""
        return self.path if self.path is not None else f"{self.base} + {self.adapter}"


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
    if isinstance(value, bool) or not isinstance(value, (int, float)):
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


class ExecutorSettings(Frozen):
    """How steps run: `cores` and `memory` to fill (None: what the machine has), seconds a step
    may take."""

    kind: Literal["local"] = "local"
    cores: Annotated[int, Field(gt=0)] | None = None
    memory: Annotated[Size, Field(gt=0)] | None = None
    timeout: Annotated[float, Field(gt=0, le=1e9)] = 7200.0


def _sbatch_word(value: str) -> str:
    if not value or not value.isprintable():
        raise ValueError("must be one line of text")
    return value


def _sbatch_options(value: dict[str, Any]) -> dict[str, Any]:
    """Check options of sbatch: known form, none that phibuild itself sets."""
    for key, given in value.items():
        if not re.fullmatch(r"[a-z][a-z-]*", key):
            raise ValueError(f"{key!r} is not the long name of an option of sbatch")
        if key in SBATCH_SET:
            raise ValueError(f"{key!r} cannot be given: {SBATCH_SET[key]}")
        if not isinstance(given, (str, int, float)):
            raise ValueError(f"{key!r} must be text, a number, true or false")
        try:
            _sbatch_word(str(given))
        except ValueError as error:
            raise ValueError(f"{key!r} {error}") from error
    return value


SBATCH_SET = {
    **dict.fromkeys(
        ("array", "chdir", "dependency", "error", "job-name", "nodes", "ntasks", "open-mode",
         "output", "parsable", "test-only", "wait", "wrap"),
        "phibuild sets it",
    ),
    **{key: f"write executor.{key}" for key in ("partition", "account", "qos", "requeue")},
    "no-requeue": "write executor.requeue",
    "cpus-per-task": "write executor.cores",
}  # fmt: skip
"""Options of sbatch that the configuration cannot give, and why."""
SbatchWord = Annotated[str, AfterValidator(_sbatch_word)]


class SlurmSettings(Frozen):
    """How steps run on a cluster: each is a Slurm job of `cores` cores, of the step's memory and
    `memory_margin`, that may take `timeout` seconds. `memory` is the most that a job may ask for
    (None: what the largest node has). At most `max_jobs` run at once (None: as many as Slurm
    lets); `exclusive` judges on nodes without other jobs; `poll` seconds lie between two
    questions to the scheduler; `setup` are shell commands that a job starts with; `sbatch` are
    further options of sbatch by their long names."""

    kind: Literal["slurm"]
    partition: SbatchWord | None = None
    account: SbatchWord | None = None
    qos: SbatchWord | None = None
    cores: Annotated[int, Field(gt=0)] = 4
    memory: Annotated[Size, Field(gt=0)] | None = None
    memory_margin: Annotated[Size, Field(ge=0)] = 1 << 30
    timeout: Annotated[float, Field(gt=0, le=1e8)] = 7200.0
    max_jobs: Annotated[int, Field(gt=0)] | None = None
    exclusive: bool = False
    requeue: bool = True
    poll: Annotated[float, Field(ge=1, le=3600)] = 10.0
    setup: tuple[str, ...] = ()
    sbatch: Annotated[Options, AfterValidator(_sbatch_options)] = Field(default_factory=dict)


@dataclass(frozen=True)
class Calibration:
    """A text that the original's activations are taken from: `tokens` tokens of the file `path`.
    What it is does not depend on where it lies."""

    path: Path = field(compare=False)
    sha256: str
    tokens: int


class Variant(Frozen):
    """One way a backend makes an artifact: all that decides its bytes besides the checkpoint.

    `name` is what users of that backend call it (Q4_K_M, int4-asym-g64); `format` is the file
    format; `options` are the backend's own, complete, with defaults filled in. A variant with a
    `calibration` is built from the original's activations over that text; its sha256 and tokens
    stand in `options`, and it is no part of what is dumped.
    """

    backend: str
    precision: Precision
    name: str
    format: str
    options: Options
    calibration: Calibration | None = Field(default=None, exclude=True)


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
