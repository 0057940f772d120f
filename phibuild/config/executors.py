"""Settings of the executors, as conf/executor has them."""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, WithJsonSchema

from phibuild.schema import Frozen, Options, PositiveSize, Size


class ExecutorSettings(Frozen):
    """How steps run on this machine."""

    kind: Literal["local"] = "local"
    """local: on this machine."""
    cores: Annotated[int, Field(gt=0)] | None = None
    """Cores to fill; null: all."""
    memory: PositiveSize | None = None
    """Memory to fill, such as 12 GiB; null: what is available when the build starts."""
    timeout: Annotated[float, Field(gt=0, le=1e9)] = 7200.0
    """Seconds that one step may take."""


_ONE_LINE = r"^[^\x00-\x1f\x7f]+$"


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
SbatchWord = Annotated[
    str,
    AfterValidator(_sbatch_word),
    WithJsonSchema({"type": "string", "pattern": _ONE_LINE}, mode="validation"),
]
SbatchOptions = Annotated[
    Options,
    AfterValidator(_sbatch_options),
    WithJsonSchema(
        {
            "type": "object",
            "propertyNames": {"pattern": "^[a-z][a-z-]*$", "not": {"enum": sorted(SBATCH_SET)}},
            "additionalProperties": {"type": ["string", "number", "boolean"], "pattern": _ONE_LINE},
        },
        mode="validation",
    ),
]


class SlurmSettings(Frozen):
    """How steps run on a cluster: each is a Slurm job of its own."""

    kind: Literal["slurm"]
    """slurm: as jobs of a cluster."""
    partition: SbatchWord | None = None
    """Partition of the jobs; null: the cluster's default."""
    account: SbatchWord | None = None
    """Account of the jobs; null: the cluster's default."""
    qos: SbatchWord | None = None
    """Quality of service of the jobs; null: the cluster's default."""
    cores: Annotated[int, Field(gt=0)] = 4
    """Cores of each job."""
    memory: PositiveSize | None = None
    """The most that a job may ask for; null: what the largest node has."""
    memory_margin: Annotated[Size, Field(ge=0)] = 1 << 30
    """What a job asks for beyond its step's own memory."""
    timeout: Annotated[float, Field(gt=0, le=1e8)] = 7200.0
    """Seconds that one step may take."""
    max_jobs: Annotated[int, Field(gt=0)] | None = None
    """At most so many jobs at once; null: as many as Slurm lets."""
    exclusive: bool = False
    """true: judge on nodes without other jobs."""
    requeue: bool = True
    """Slurm starts a step anew after a node's failure or a preemption."""
    poll: Annotated[float, Field(ge=1, le=3600)] = 10.0
    """Seconds between two questions to the scheduler."""
    setup: tuple[str, ...] = ()
    """Shell commands that a job starts with, such as `module load gcc`. Not in a recipe."""
    sbatch: SbatchOptions = Field(default_factory=dict)
    """Further options of sbatch by their long names, such as {constraint: avx512}."""
