"""A step to a Slurm job, through submitit; and whether the cluster can take such jobs at all."""

from __future__ import annotations

import math
import shlex
import sys
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path

from phibuild.config.executors import SlurmSettings
from phibuild.errors import ConfigError, Problem, suggest
from phibuild.execute.slurm import commands
from phibuild.execute.slurm.commands import Partition, SlurmError, plain
from phibuild.execute.slurm.remote import MARGIN_SECONDS, RemoteStep, run_step
from phibuild.units import format_decimal

Where = Callable[[tuple[str | int, ...]], str | None]


def check_cluster(settings: SlurmSettings, where: Where) -> None:
    """Raise ConfigError if jobs with these settings could not be submitted from here; `where` says
    where a key of the configuration was written."""
    lacking = commands.missing()
    if lacking:
        raise ConfigError(
            Problem(
                f"executor=slurm needs Slurm's commands; not on this machine: {', '.join(lacking)}",
                where(("executor", "kind")),
                "run phibuild where sbatch works, or use executor=local",
            )
        )
    if find_spec("submitit") is None:
        raise ConfigError(
            Problem(
                "executor=slurm needs the package submitit",
                where(("executor", "kind")),
                "pip install 'phibuild[slurm]'",
            )
        )
    try:
        known = commands.partitions()
    except SlurmError as error:
        raise ConfigError(
            Problem(f"Slurm does not answer: {error}", where(("executor", "kind")))
        ) from error
    _check_names(settings, known, where)
    partition = _partition(settings, known)
    if partition is not None and settings.cores > partition.cores:
        raise ConfigError(
            Problem(
                f"executor.cores: no node of partition {partition.name} has {settings.cores} "
                f"cores, the largest has {partition.cores}",
                where(("executor", "cores")),
            )
        )
    try:
        commands.check_options(_words(settings))
    except SlurmError as error:
        where_ = where(_complained_of(settings, str(error)))
        raise ConfigError(Problem(f"Slurm refuses these settings: {error}", where_)) from error


def _complained_of(settings: SlurmSettings, message: str) -> tuple[str, ...]:
    """Return the key of the configuration that a message of sbatch is most likely about."""
    for key in ("partition", "account", "qos"):
        if key in message.lower():
            return "executor", key
    named = [key for key in settings.sbatch if key in message] or list(settings.sbatch)
    return ("executor", "sbatch", *named[:1])


def _check_names(settings: SlurmSettings, known: Sequence[Partition], where: Where) -> None:
    names = {partition.name for partition in known}
    for name in (settings.partition or "").split(","):
        if name and name not in names:
            raise ConfigError(
                Problem(
                    f"executor.partition: the cluster has no partition {name!r}",
                    where(("executor", "partition")),
                    suggest(name, names),
                )
            )


def _partition(settings: SlurmSettings, known: Sequence[Partition]) -> Partition | None:
    """Return the partition that jobs go to, None if they may go to several."""
    wanted = settings.partition
    return next((p for p in known if p.name == wanted or (not wanted and p.default)), None)


def memory_limit(settings: SlurmSettings) -> int | None:
    """Return the bytes that a step can be given at most, None if that is not known here."""
    if "mem" in settings.sbatch:
        return None
    most = settings.memory
    if most is None:
        try:
            partition = _partition(settings, commands.partitions())
        except SlurmError:
            return None  # a plan can be made anywhere
        most = partition.memory_bytes if partition else None
    return None if most is None else max(0, most - settings.memory_margin)


def _words(settings: SlurmSettings) -> list[str]:
    options = _options(settings)
    return [f"--{key}" if value is True else f"--{key}={value}" for key, value in options.items()]


def _options(settings: SlurmSettings) -> dict[str, str | int | float | bool]:
    """Return the options of sbatch that all jobs share."""
    options: dict[str, str | int | float | bool] = {
        "time": time_limit(settings),
        "cpus-per-task": settings.cores,
        "requeue" if settings.requeue else "no-requeue": True,
    }
    for key in ("partition", "account", "qos"):
        value = getattr(settings, key)
        if value is not None:
            options[key] = value
    # false takes an option away, which submitit and sbatch would read as a value
    given = {**options, **settings.sbatch}
    return {key: value for key, value in given.items() if value is not False}


def time_limit(settings: SlurmSettings) -> int:
    """Return Slurm's limit for a job, in minutes."""
    return math.ceil((settings.timeout + MARGIN_SECONDS) / 60)


def shown_limit(settings: SlurmSettings) -> str:
    """Return Slurm's limit for a job as people gave it, and by which key."""
    given = settings.sbatch.get("time", False)
    if given is False:
        return f"{time_limit(settings)} min (executor.timeout)"
    unit = " min" if str(given).isdecimal() else ""
    return f"{given}{unit} (executor.sbatch.time)"


def job_memory(settings: SlurmSettings, memory_bytes: int) -> int:
    """Return the bytes of memory that a step's job asks for, in whole MiB."""
    return -(-(memory_bytes + settings.memory_margin) >> 20) << 20


def shown_memory(settings: SlurmSettings, memory_bytes: int) -> str:
    """Return the memory that a job asks for as people write it."""
    return str(settings.sbatch.get("mem") or format_decimal(memory_bytes))


def submit(
    task: RemoteStep,
    settings: SlurmSettings,
    name: str,
    memory_bytes: int,
    after: Sequence[str],
    *,
    exclusive: bool,
) -> str:
    """Submit a step as a job called `name` that starts when the jobs `after` have ended, however;
    return its id. Raises SlurmError with sbatch's words if it is refused."""
    from submitit import SlurmExecutor
    from submitit.core.utils import FailedJobError, FailedSubmissionError

    extra: dict[str, object] = {
        "mem": f"{memory_bytes >> 20}M",
        # Python would take modules from the folder that phibuild was started in.
        "chdir": str(task.folder),
        **_options(settings),
    }
    if after:
        extra["dependency"] = f"afterany:{':'.join(after)}"
    if exclusive:
        extra["exclusive"] = True
    executor = SlurmExecutor(folder=task.folder, python=shlex.quote(sys.executable))
    executor.update_parameters(
        job_name=name,
        time=time_limit(settings),
        setup=list(settings.setup),
        # A step of srun's own would be one more process and one more call to slurmctld, and
        # since Slurm 22.05 would not get the job's cores.
        use_srun=False,
        wckey=None,
        additional_parameters=extra,
    )
    try:
        return str(executor.submit(run_step, task).job_id)
    except (FailedJobError, FailedSubmissionError) as error:
        raise SlurmError(plain(str(error)) or "sbatch refused it") from error


def complete_submission(folder: Path, job: str) -> None:
    """Finish what submitit does after sbatch, for a phibuild that was killed in between: the job
    looks for its function under its id."""
    target = folder / f"{job}_submitted.pkl"
    if not target.exists():
        for path in folder.glob("*.pkl"):
            path.rename(target)
