"""What a backend makes of options, and the cells of the matrix."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path

from pydantic import Field

from phibuild.schema.base import Frozen, Options, Precision
from phibuild.schema.gates import Gates
from phibuild.worker.grids import Grid


@dataclass(frozen=True)
class Calibration:
    """What is taken of the original over a text, `tokens` tokens of the file `path`: its
    activations, or with a `grid` its weights on it, by GPTQ, or, `losses` being set, what it loses
    with each of its matrices on it, `long` by the long rope factors. What it is does not depend on
    where the text lies."""

    path: Path = field(compare=False)
    sha256: str
    tokens: int
    grid: Grid | None = None
    losses: bool = False
    long: bool = False

    @property
    def text(self) -> Calibration:
        """The text alone: what several grids share."""
        return replace(self, grid=None)


@dataclass(frozen=True)
class InputFile:
    """A file of the user's that a variant is built from. What it is does not depend on where it
    lies."""

    path: Path = field(compare=False)
    sha256: str


class Variant(Frozen):
    """One way a backend makes an artifact: all that decides its bytes besides the checkpoint.

    `name` is what users of that backend call it (Q4_K_M, int4-asym-g64); `format` is the file
    format; `options` are the backend's own, complete, with defaults filled in. A variant with a
    `calibration` is built from what that takes of the original; its text's sha256 and tokens stand
    in `options`, and it is no part of what is dumped. So it is with a `file` that it is built from,
    and with `cache_ranges`, by which its KV cache is scaled, over the same text.
    One with a `sensitivity` has the types of its tensors chosen by it, when it is built, so that it
    meets the target that stands in `options`.
    """

    backend: str
    precision: Precision
    name: str
    format: str
    options: Options
    calibration: Calibration | None = Field(default=None, exclude=True)
    cache_ranges: Calibration | None = Field(default=None, exclude=True)
    sensitivity: Calibration | None = Field(default=None, exclude=True)
    file: InputFile | None = Field(default=None, exclude=True)

    @property
    def texts(self) -> tuple[Calibration, ...]:
        """All that is taken of the original over texts for it."""
        return tuple(one for one in (self.calibration, self.cache_ranges, self.sensitivity) if one)


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


class Misfit(Frozen):
    """An option that does not go with the model: whoever wrote it meant another one."""

    option: str
    reason: str
    remedy: str


class Cell(Frozen):
    """One square of the matrix. `variant` is None where `skip` says why not. `label` tells it from
    the other variants of its precision there, as the end of its id; empty where it is the only
    one."""

    id: str
    model: str
    device: str
    backend: str
    precision: Precision
    label: str = ""
    variant: Variant | None
    skip: str | None
    gates: Gates

    @property
    def place(self) -> str:
        """The id without the variant."""
        return f"{self.model}.{self.device}.{self.backend}.{self.precision}"
