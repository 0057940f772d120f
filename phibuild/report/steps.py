"""The steps of a run in its report: when each ran, beside what, what it took, what bounded it."""

from __future__ import annotations

from phibuild.execute.local.executor import Execution
from phibuild.execute.local.scheduler import Bound
from phibuild.execute.runner.usage import Usage
from phibuild.report.documents import Report, ReportStep
from phibuild.units import format_decimal

_WORDS: dict[Bound, str] = {
    "memory": "memory",
    "cores": "cores",
    "needs": "steps that others need",
    "work": "the steps themselves",
    "queue": "the cluster's queue",
}


def step_rows(execution: Execution) -> list[ReportStep]:
    """Return the steps that ran, in the order of their starts."""
    rows = []
    for name, ran in sorted(execution.history.ran.items(), key=lambda item: item[1].started):
        used = execution.usage.get(name, Usage())
        rows.append(
            ReportStep(
                id=name,
                cores=ran.task.cores,
                memory_bytes=ran.task.memory_bytes,
                started_seconds=ran.started,
                seconds=None if ran.ended is None else ran.ended - ran.started,
                waited_seconds=ran.waited,
                beside=sorted(ran.concurrent),
                attempts=ran.attempts,
                cpu_seconds=used.cpu_seconds,
                loading_seconds=used.loading_seconds,
                peak_anonymous_bytes=used.peak_anonymous_bytes,
                place=execution.places.get(name),
            )
        )
    return rows


def bound_line(report: Report) -> str | None:
    """Return what bounded the run, in words; None if it was over at once, or a phibuild wrote the
    report that did not say."""
    executor = report.executor
    bounds = executor.bounded_by_seconds if executor else {}
    total = sum(bounds.values())
    if executor is None or total < 1:
        return None
    shares = ", ".join(
        f"{_WORDS[name]} {seconds / total:.0%}"
        for name, seconds in sorted(bounds.items(), key=lambda item: -item[1])
        if seconds / total >= 0.005
    )
    steps = [step for step in report.steps if step.cores]
    largest = max((step.peak_anonymous_bytes or 0 for step in steps), default=0)
    beside = sum(1 for step in steps if step.beside)
    within = f"within {executor.cores} cores and {format_decimal(executor.memory_bytes)}"
    if executor.kind == "slurm":
        within = f"as Slurm jobs of {executor.cores} cores"
    return f"bounded by {shares}; {beside} of {len(steps)} steps ran beside another {within}" + (
        f"; the largest took {format_decimal(largest)}" if largest else ""
    )
