"""Slurm's own commands, and what they say: the queue, the partitions, how a job ended.

One `squeue` asks for all jobs of the user; nothing here needs accounting (sacct).
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

COMMANDS = ("sbatch", "squeue", "scancel", "scontrol", "sinfo")
_SECONDS = 90.0
_ACTIVE = {
    "PENDING", "CONFIGURING", "RUNNING", "SUSPENDED", "STOPPED", "COMPLETING", "REQUEUED",
    "REQUEUE_FED", "REQUEUE_HOLD", "RESIZING", "SIGNALING", "SPECIAL_EXIT", "STAGE_OUT",
    "RESV_DEL_HOLD",
}  # fmt: skip


class SlurmError(Exception):
    """A command of Slurm failed; the message is its own, in one line."""


@dataclass(frozen=True)
class Queued:
    """A job as the queue shows it: Slurm's state, why it waits, where it runs."""

    id: str
    name: str
    state: str
    reason: str
    nodes: str

    @property
    def active(self) -> bool:
        """Whether it waits or runs: it has yet to end."""
        return self.state in _ACTIVE


@dataclass(frozen=True)
class Partition:
    """What a partition's largest nodes have, and its time limit in minutes (None: no limit)."""

    name: str
    default: bool
    cores: int
    memory_bytes: int
    minutes: int | None


def missing() -> list[str]:
    """Return those of Slurm's commands that this machine lacks."""
    return [name for name in COMMANDS if shutil.which(name) is None]


def call(*words: str) -> str:
    """Return what a command prints. Raises SlurmError if it fails or does not answer."""
    try:
        done = subprocess.run(
            words, capture_output=True, text=True, check=False, timeout=_SECONDS,
            stdin=subprocess.DEVNULL, start_new_session=True,  # Ctrl-C is phibuild's to handle
        )  # fmt: skip
    except subprocess.TimeoutExpired as error:
        raise SlurmError(f"{words[0]} did not answer within {_SECONDS:g} s") from error
    except OSError as error:
        raise SlurmError(f"{words[0]}: {error.strerror}") from error
    if done.returncode:
        raise SlurmError(plain(done.stderr or done.stdout) or f"{words[0]} failed")
    return done.stdout


def plain(text: str) -> str:
    """Return what a command of Slurm complained of as one line, without its own name."""
    lines = [re.sub(r"^\w+: (error: |fatal: )?", "", line.strip()) for line in text.splitlines()]
    lines = [line.removeprefix("Batch job submission failed: ") for line in lines]
    return "; ".join(dict.fromkeys(line for line in lines if line and not line.startswith("Try ")))


def queue() -> dict[str, Queued]:
    """Return the user's jobs by id, those that ended in the last minutes too."""
    text = call(
        "squeue", f"--user={os.getuid()}", "--states=all", "--noheader", "--format=%i|%T|%r|%N|%j"
    )
    found = {}
    for line in text.splitlines():
        fields = line.split("|", 4)
        if len(fields) == 5:
            job, state, reason, nodes, name = fields
            found[job] = Queued(job, name, state, reason, nodes)
    return found


def cancel(jobs: Iterable[str], names: Iterable[str] = ()) -> None:
    """Cancel jobs by id, and those of the user with these names."""
    ids = sorted(jobs)
    if ids:
        call("scancel", *ids)
    for name in sorted(names):
        call("scancel", f"--user={os.getuid()}", f"--name={name}")


def job_facts(job: str) -> dict[str, str]:
    """Return what slurmctld still knows of a job ({} if it has forgotten it)."""
    try:
        text = call("scontrol", "show", "job", "--oneliner", job)
    except SlurmError:
        return {}
    return dict(word.split("=", 1) for word in text.split() if "=" in word)


def accounted_states(job: str) -> list[str]:
    """Return the states of a job and its steps in the accounting, [] where there is none."""
    if shutil.which("sacct") is None:
        return []
    try:
        return call("sacct", "-j", job, "-n", "-P", "-o", "State").split("\n")
    except SlurmError:
        return []


def partitions() -> list[Partition]:
    """Return the partitions that the cluster has, each with its largest node."""
    found: dict[str, Partition] = {}
    for line in call("sinfo", "--noheader", "--exact", "--format=%P|%c|%m|%l").splitlines():
        name, cores, memory, limit = line.strip().split("|")
        default, name = name.endswith("*"), name.rstrip("*")
        known = found.get(name)
        found[name] = Partition(
            name,
            default,
            max(_number(cores), known.cores if known else 0),
            max(_number(memory) << 20, known.memory_bytes if known else 0),
            _minutes(limit),
        )
    return list(found.values())


def check_options(options: Sequence[str]) -> None:
    """Have sbatch check options without submitting anything. Raises SlurmError with its words."""
    call("sbatch", "--test-only", *options, "--mem=1M", "--wrap=true")


def _number(text: str) -> int:
    return int(re.sub(r"\D.*", "", text) or 0)


def _minutes(text: str) -> int | None:
    """Return minutes of a limit such as 2-12:00:00; None for one without end."""
    if not re.fullmatch(r"(\d+-)?[\d:]+", text):
        return None
    days, _, clock = text.rpartition("-")
    seconds = 0
    for part in clock.split(":"):
        seconds = seconds * 60 + int(part)
    return int(days or 0) * 1440 + seconds // 60
