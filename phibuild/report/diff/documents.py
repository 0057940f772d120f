"""What `diff --json` prints: two runs, cell by cell."""

from __future__ import annotations

from typing import Literal

from phibuild.report.documents import Host
from phibuild.schema import Document

FigureName = Literal["size", "memory", "kl", "top1", "ppl", "prefill", "decode"]
Verdict = Literal["better", "worse", "noise", "same"]
Kind = Literal[
    "failed", "gate", "unjudged", "gone", "worse", "larger", "slower", "mended", "new", "better",
    "smaller", "faster", "changed", "same",
]  # fmt: skip


class DiffRun(Document):
    """One of the two runs."""

    name: str
    """What it is called: recipe and time, or the file that was given."""
    recipe: str
    phibuild_version: str
    host: Host
    models: list[str]


class FigureChange(Document):
    """A figure that a cell has in both runs."""

    figure: FigureName
    """size: bytes of the artifact; memory: bytes on the device, estimated; kl: mean KL, nats; top1:
    share; ppl: perplexity; prefill, decode: tokens per second on the machine that built."""
    a: float
    """In the first run; of `windows`, its mean over these."""
    b: float
    change: float
    """b - a"""
    relative: float | None
    """change by a; null: a is 0."""
    error: float | None
    """Standard error of the change; null: it is exact, or not known."""
    windows: int | None
    """Windows of the text that both were judged on, which they are compared on; null: by what
    either has by itself."""
    beyond_noise: bool | None
    """Whether it is more than chance; null: nothing is known of that."""
    verdict: Verdict
    """noise: there is a change, and it is not beyond noise, or nobody knows."""


class CellDifference(Document):
    """A cell of one run or of both."""

    id: str
    """In the second run; of one that is gone, in the first."""
    a: str | None
    """Its id in the first run; null: it is new."""
    b: str | None
    """null: it is gone."""
    kinds: list[Kind]
    """What is different, most important first."""
    status_a: str | None
    status_b: str | None
    variant_a: str | None
    variant_b: str | None
    judged_a: bool
    """It was judged in the first run."""
    judged_b: bool
    same_artifact: bool
    """Both have the same files."""
    reason: str | None
    """Why it failed or was skipped in the second run."""
    gates_broken: list[str]
    """Gates that it keeps in the first run and misses in the second, in words."""
    gates_mended: list[str]
    figures: list[FigureChange]


class SpeedNoise(Document):
    """From which factor on speeds count as different."""

    same_machine: bool
    """Speeds of two machines are not compared."""
    factor: float
    cells: int
    """Artifacts that are the same in both runs and were timed anew: the factor is at least what
    these differ by. 0: nothing is known of the machine, and it is 2."""


class ConditionFailure(Document):
    """A cell that a condition of --fail-if applies to."""

    id: str
    why: str


class ConditionResult(Document):
    """A condition of --fail-if, and the cells that it applies to."""

    condition: str
    cells: list[ConditionFailure]


class Difference(Document):
    """What is different between two runs: `phibuild diff A B --json`."""

    schema_version: Literal[1] = 1
    a: DiffRun
    b: DiffRun
    notes: list[str]
    """What is to be known of the comparison as a whole, in sentences."""
    speed_noise: SpeedNoise
    cells: list[CellDifference]
    """Most important first."""
    totals: dict[Kind, int]
    """Number of cells by the first of their kinds; those that there are none of are left out."""
    conditions: list[ConditionResult]
