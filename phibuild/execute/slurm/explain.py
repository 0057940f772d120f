"""Why a job ended without a result, in words."""

from __future__ import annotations

import signal
from pathlib import Path

from phibuild.execute.runner.process import last_lines
from phibuild.execute.slurm.commands import accounted_states, job_facts

OUT_OF_MEMORY = "OUT_OF_MEMORY"
_MEMORY_WORDS = ("oom-kill", "exceeded memory limit", "exceeded job memory limit", "oom_kill")


def end_state(job: str, seen: str | None) -> str:
    """Return the state that a job ended in, as exactly as Slurm tells it: `seen` in the queue, in
    the accounting where there is one, "" if it is not known."""
    states = accounted_states(job)
    if any(state.startswith(OUT_OF_MEMORY) for state in states):
        return OUT_OF_MEMORY  # of a step: the job itself may be called FAILED
    return seen or (states[0] if states else "")


def explain(job: str, state: str, folder: Path, memory: str, limit: str) -> str:
    """Say why a job ended without a result. `memory` and `limit` are what it was given, as
    `shown_memory` and `shown_limit` say it."""
    facts = job_facts(job)
    state = state or facts.get("JobState", "")
    word, _, by = state.partition(" ")
    node = facts.get("BatchHost") or facts.get("NodeList") or "its node"
    log = folder / f"{job}_0_log.err"
    tail = last_lines(log)
    if word == OUT_OF_MEMORY or any(text in tail.lower() for text in _MEMORY_WORDS):
        return f"out of memory: Slurm job {job} had {memory} (executor.memory_margin raises it)"
    if word in ("TIMEOUT", "DEADLINE"):
        return f"timed out: Slurm ended job {job} at its limit of {limit}"
    if word == "CANCELLED":
        who = f" {by}" if by else ""
        return f"cancelled from outside: Slurm job {job} was cancelled{who}"
    if word in ("NODE_FAIL", "BOOT_FAIL"):
        return f"the node failed: Slurm job {job} was on {node}"
    if word == "PREEMPTED":
        return f"preempted: Slurm ended job {job} for one of higher priority"
    if not word:
        return (
            f"Slurm no longer knows how job {job} ended: it has no accounting here, and slurmctld "
            "forgets ended jobs after MinJobAge seconds"
        )
    what = f"Slurm job {job} on {node} ended as {word}{_exit(facts.get('ExitCode', ''))}"
    if not log.exists():
        return f"{what} and wrote nothing: the store's folder must be shared with the nodes"
    return f"{what}\n{tail}" if tail else what


def _exit(code: str) -> str:
    """Return an exit code such as 1:0 or 0:9 in words."""
    status, _, number = code.partition(":")
    if number.isdigit() and int(number):
        try:
            name = signal.Signals(int(number)).name
        except ValueError:
            name = f"signal {number}"
        why = "; without accounting Slurm does not say why, often it is memory"
        return f", killed by {name}" + (why if name == "SIGKILL" else "")
    return f" with exit code {status}" if status not in ("", "0") else " without a result"
