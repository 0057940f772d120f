"""Settings of the executors, as conf/executor has them."""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from phibuild.schema import Frozen, Options, Size


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


def _sbatch_options(value: Options) -> Options:
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
        (
            "array",
            "chdir",
            "dependency",
            "error",
            "job-name",
            "nodes",
            "ntasks",
            "open-mode",
            "output",
            "parsable",
            "test-only",
            "wait",
            "wrap",
        ),
        "phibuild sets it",
    ),
    **{key: f"write executor.{key}" for key in ("partition", "account", "qos", "requeue")},
    "no-requeue": "write executor.requeue",
    "cpus-per-task": "write executor.cores",
}
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
