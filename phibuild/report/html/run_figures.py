"""The plots of a run: what each matrix loses, what ran beside what, memory."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from itertools import pairwise

from phibuild.report.documents import Report, ReportStep, Sensitivity
from phibuild.report.html import texts
from phibuild.report.html.figures import Figure
from phibuild.report.html.rows import JsonRow
from phibuild.units import format_decimal

_LAYER = re.compile(r"model\.layers\.(\d+)\.(?:\w+\.)?(\w+)\.weight")
STEPS = 60
"""That are drawn at most."""


def layers(report: Report) -> Iterator[Figure]:
    """Yield the loss by layer of each sensitivity that was measured."""
    for number, one in enumerate(report.sensitivities):
        rows = [row for name, _ in one.losses.items() if (row := _matrix(one, name))]
        others = [
            f"{texts.clean(name.removesuffix('.weight'))} {loss.kl:.5f} ± {loss.kl_error:.5f}"
            for name, loss in one.losses.items()
            if not _LAYER.fullmatch(name)
        ]
        if not rows:
            continue
        worst = max(one.losses.items(), key=lambda item: item[1].kl)
        model = texts.clean(one.model)
        yield Figure(
            "layers", f"layers-{model}-{number + 1}",
            f"Loss by layer: {model}, {one.grid.get('bits')} bits in groups of "
            f"{one.grid.get('group_size')}",
            f"Loss with each of {len(one.losses)} matrices alone on the grid; most is lost by "
            f"{texts.clean(worst[0])}, {worst[1].kl:.5f} nats.",
            "KL of the model with one matrix on the grid and all others as they are, "
            f"± its standard error over {one.tokens:,} tokens."
            + (f" Outside of the layers: {', '.join(others)}." if others else ""),
            rows=rows, columns=(("layer", "Layer"), ("role", "Matrix"), ("kl", "KL, nats"),
                                ("error", "± standard error")),
        )  # fmt: skip


def time_line(report: Report) -> Iterator[Figure]:
    """Yield when the steps ran, and their memory."""
    ran = [step for step in report.steps if step.seconds is not None and step.seconds > 0]
    if not ran:
        return
    long = sorted(ran, key=lambda step: -(step.seconds or 0))[:STEPS]
    names = {step.id for step in long}
    model = report.models[0].name if len(report.models) == 1 else None
    kept = [step for step in ran if step.id in names]
    few = f" The longest {STEPS} of {len(ran)}." if len(ran) > STEPS else ""
    yield Figure(
        "steps", "steps", "What ran beside what",
        f"When {len(kept)} steps ran, within {texts.seconds(report.totals.seconds)}; the longest, "
        f"{texts.clean(long[0].id)}, took {texts.seconds(long[0].seconds)}.", few.strip(),
        rows=[_step(step, model) for step in kept],
        columns=(("step", "Step"), ("start", "Start, s"), ("seconds", "Seconds"),
                 ("cpu", "CPU s"), ("planned", "Memory planned"), ("taken", "Taken"),
                 ("waited", "Waited for"), ("beside", "Beside")),
    )  # fmt: skip
    memory = _memory(ran)
    if any(row["planned"] for row in memory):
        most = max(row["planned"] for row in memory)
        limit = report.executor.memory_bytes if report.executor else 0
        of = f" of the {format_decimal(limit)} that there were" if limit else ""
        yield Figure(
            "memory", "memory", "Memory planned and taken",
            f"At most {format_decimal(int(most))} were planned at once{of}.",
            "Light: planned for the steps that ran; dark: the sum of what each took at its peak."
            + (f" For all steps there were {format_decimal(limit)}." if limit else ""),
            rows=[dict(row) for row in memory],
            columns=(("start", "From, s"), ("end", "To, s"), ("planned", "Planned"),
                     ("taken", "Taken")),
        )  # fmt: skip


def _matrix(one: Sensitivity, name: str) -> JsonRow | None:
    match = _LAYER.fullmatch(name)
    if match is None:
        return None
    loss = one.losses[name]
    return {"layer": int(match[1]), "role": match[2], "kl": loss.kl, "error": loss.kl_error,
            "low": loss.kl - loss.kl_error, "high": loss.kl + loss.kl_error}  # fmt: skip


def roles(report: Report) -> tuple[str, ...]:
    """Return the roles of the matrices whose loss was measured."""
    names = (name for one in report.sensitivities for name in one.losses)
    return tuple(dict.fromkeys(match[2] for name in names if (match := _LAYER.fullmatch(name))))


_KINDS = {"toolchain": "prepare", "source": "original", "reference": "original", "build": "build",
          "measure": "judge"}  # fmt: skip


def _step(step: ReportStep, model: str | None) -> JsonRow:
    """Return a step; `model`: the only one, which its name need not have."""
    seconds = step.seconds or 0.0
    return {
        "step": texts.clean(step.id.replace(f".{model}", "") if model else step.id),
        "kind": _KINDS.get(step.id.partition(".")[0], "original"),
        "start": round(step.started_seconds, 2),
        "end": round(step.started_seconds + seconds, 2),
        "seconds": round(seconds, 2),
        "cpu": round(step.cpu_seconds, 2),
        "planned": step.memory_bytes,
        "taken": step.peak_anonymous_bytes,
        "waited": ", ".join(
            f"{what} {long:.0f} s" for what, long in step.waited_seconds.items() if long >= 0.5
        ),
        "beside": texts.clean(", ".join(step.beside)),
    }


def _memory(steps: Sequence[ReportStep]) -> list[dict[str, float]]:
    """Return the memory of what ran, between one step's start or end and the next."""
    changes: list[tuple[float, int, int]] = []
    for step in steps:
        planned, taken = step.memory_bytes, step.peak_anonymous_bytes or 0
        changes.append((step.started_seconds, planned, taken))
        changes.append((step.started_seconds + (step.seconds or 0), -planned, -taken))
    changes.sort()
    found = []
    planned = taken = 0
    for (time, more, took), (until, _, _) in pairwise(changes):
        planned, taken = planned + more, taken + took
        if until - time > 1e-3 and planned:
            found.append({"start": round(time, 3), "end": round(until, 3), "planned": planned,
                          "taken": taken})  # fmt: skip
    return found
