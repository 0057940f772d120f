"""The steps of a run in its report: when each ran, beside what, what it took, what bounded it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tabulate import tabulate

from phibuild.execute.local.executor import Execution
from phibuild.execute.runner.usage import Usage
from phibuild.units import format_size

_WORDS = {
    "memory": "memory",
    "cores": "cores",
    "needs": "steps that others need",
    "work": "the steps themselves",
    "queue": "the cluster's queue",
}


def step_rows(execution: Execution) -> list[dict[str, Any]]:
    """Return, for each step that ran, in the order of their starts: seconds from the start of the
    run, seconds that it was ready and waited (by what it waited for), the steps that ran at the
    same time, the memory that was planned for it and what it really took (bytes, anonymous);
    `attempts` is 2 if it was run again, alone, after it had run out of memory."""
    rows = []
    for name, ran in sorted(execution.history.ran.items(), key=lambda item: item[1].started):
        used = execution.usage.get(name, Usage())
        rows.append(
            {
                "id": name,
                "cores": ran.task.cores,
                "memory_bytes": ran.task.memory_bytes,
                "started_seconds": ran.started,
                "seconds": None if ran.ended is None else ran.ended - ran.started,
                "waited_seconds": dict(ran.waited),
                "beside": sorted(ran.beside),
                "attempts": ran.attempts,
                "cpu_seconds": used.cpu_seconds,
                "loading_seconds": used.loading_seconds,
                "peak_anonymous_bytes": used.peak_anonymous_bytes,
                "place": execution.places.get(name),
            }
        )
    return rows


def bound_line(report: Mapping[str, Any]) -> str | None:
    """Return what bounded the run, in words; None if it was over at once."""
    executor = report.get("executor") or {}  # reports of old have none
    bounds: dict[str, float] = executor.get("bounded_by_seconds", {})
    total = sum(bounds.values())
    if total < 1:
        return None
    shares = ", ".join(
        f"{_WORDS[name]} {seconds / total:.0%}"
        for name, seconds in sorted(bounds.items(), key=lambda item: -item[1])
        if seconds / total >= 0.005
    )
    steps = [step for step in report["steps"] if step["cores"]]
    largest = max((step["peak_anonymous_bytes"] or 0 for step in steps), default=0)
    beside = sum(1 for step in steps if step["beside"])
    within = f"within {executor['cores']} cores and {format_size(executor['memory_bytes'])}"
    if executor.get("kind") == "slurm":
        within = f"as Slurm jobs of {executor['cores']} cores"
    return f"bounded by {shares}; {beside} of {len(steps)} steps ran beside another {within}" + (
        f"; the largest took {format_size(largest)}" if largest else ""
    )


def steps_table(report: Mapping[str, Any], style: str) -> str:
    """Return the steps that ran runners, as a table; "" if there were none."""
    steps = [step for step in report.get("steps", ()) if step["cores"] and step["seconds"]]
    headers = ["step", "start s", "s", "CPU s", "memory planned", "taken", "waited s for", "beside"]
    if any(step.get("place") for step in steps):
        headers.append("place")
    rows = [
        (
            step["id"],
            f"{step['started_seconds']:.1f}",
            f"{step['seconds']:.1f}",
            f"{step['cpu_seconds']:.1f}",
            format_size(step["memory_bytes"]),
            format_size(step["peak_anonymous_bytes"]),
            ", ".join(f"{what} {s:.0f}" for what, s in step["waited_seconds"].items() if s >= 0.5),
            ", ".join(step["beside"]),
            *((step["place"] or "",) if "place" in headers else ()),
        )
        for step in steps
    ]
    return tabulate(rows, headers, tablefmt=style, disable_numparse=True) if rows else ""
