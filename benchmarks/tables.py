"""The table of what benchmarks/small_machine.py has measured."""

from __future__ import annotations

from typing import Any

from tabulate import tabulate

from measuring import Cost
from vendors import VENDORS

_HEADERS = (
    "checkpoint",
    "backend",
    "what",
    "by",
    "wall s",
    "CPU s",
    "CPU ratio",
    "peak RSS GB",
    "anonymous GB",
    "read GB",
    "written GB",
    "tensors equal",
)


def table(results: list[dict[str, Any]]) -> str:
    """Return the results as a Markdown table, four lines to each: the vendor's command, phibuild's,
    that with the hashing of the checkpoint, and its worker's part; then ggml's kernels alone."""
    rows = []
    for row in results:
        theirs, worker = row["vendor"], row["worker"]
        place = (row["size"], row["backend"], row["what"])
        if theirs:
            failed = Cost(**theirs).failed
            label = VENDORS[row["backend"]].label
            rows.append((*place, label, *_cost(theirs, theirs), failed))
        rows.append((*place, "phibuild", *_cost(row["phibuild"], theirs), _same(row)))
        first = _sum(row["phibuild"], row["hash"])
        rows.append((*place, "first build of a checkpoint", *_cost(first, theirs), ""))
        seconds = (f"{worker['seconds']:.1f}", f"{worker['cpu_seconds']:.1f}")
        ratio = _ratio(worker, theirs)
        anonymous = f"{worker['peak_anonymous_bytes'] / 1e9:.2f}"
        rows.append((*place, "of it the worker", *seconds, ratio, "", anonymous, "", "", ""))
        if floor := row.get("floor"):
            seconds = ("", f"{floor['cpu_seconds']:.1f}")
            ratio = _ratio(floor, theirs)
            rows.append((*place, "ggml's kernels alone", *seconds, ratio, *[""] * 5))
    align = ["left"] * 4 + ["right"] * 7 + ["left"]
    return tabulate(rows, _HEADERS, tablefmt="github", colalign=align, disable_numparse=True)


def _same(row: dict[str, Any]) -> str:
    if row["differing"]:
        return f"NO: {len(row['differing'])}"
    if not row["vendor"]:
        return ""
    if not Cost(**row["vendor"]).failed:
        return "yes"
    return "yes, of the others" if row["what"] == "set" else ""


def _sum(one: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    return (Cost(**one) + Cost(**other)).to_json()


def _cost(cost: dict[str, Any], vendor: dict[str, Any] | None) -> tuple[str, ...]:
    sizes = ("peak_rss_bytes", "peak_anonymous_bytes", "read_bytes", "written_bytes")
    return (
        f"{cost['wall_seconds']:.1f}",
        f"{cost['cpu_seconds']:.1f}",
        _ratio(cost, vendor),
        *(f"{cost[name] / 1e9:.2f}" for name in sizes),
    )


def _ratio(cost: dict[str, Any], vendor: dict[str, Any] | None) -> str:
    return f"{cost['cpu_seconds'] / vendor['cpu_seconds']:.2f}" if vendor else ""
