"""What a plan says in sentences: notes, refusals, what it takes in all."""

from __future__ import annotations

from collections import Counter

from phibuild.checkpoints import hub
from phibuild.commands.plan_answer import copied_bytes, planned_notes
from phibuild.execute.environments import with_size
from phibuild.execute.forecast import Forecast
from phibuild.planning.plan import Plan
from phibuild.planning.unused import unused_notes
from phibuild.report.notes import note_lines
from phibuild.toolchains.environment import toolchain
from phibuild.units import format_decimal, format_duration


def plan_notes(plan: Plan) -> list[str]:
    """Return what is to be known of the cells and the models of a plan, in sentences."""
    notes = note_lines(
        (cell.cell.id, cell.cell.backend, planned_notes(cell, plan)) for cell in plan.cells
    )
    lines = [line.removeprefix("note").lstrip() for line in notes]
    for name, checkpoint in plan.matrix.models.items():
        lines += [f"{name}: {text}" for text in checkpoint.notes]
        if checkpoint.is_estimate:
            lines.append(
                f"{name} is not, or not whole, in the Hub's cache ({hub.cache_folder()}): "
                "sizes are estimates, figures are those of its published config.json; a build "
                "fetches it from the Hub"
            )
        elif checkpoint.commit and not checkpoint.pinned:
            lines.append(
                f"{name} is {checkpoint.reference} as it was fetched, commit "
                f"{checkpoint.commit}; 'build --refresh' asks the Hub again"
            )
        if not checkpoint.is_estimate and name not in plan.source_digests:
            lines.append(f"{name} has not been hashed yet: nothing of it counts as cached")
    devices = dict.fromkeys(cell.cell.device for cell in plan.cells)
    unused = unused_notes(plan.matrix.devices[name] for name in devices)
    return [*lines, *unused, *_to_install(plan)]


def _to_install(plan: Plan) -> list[str]:
    """Return which toolchains a build installs first, and what they take."""
    missing = [name for name in plan.toolchains if not toolchain(name).is_there]
    if not missing:
        return []
    return [f"toolchains to install: {', '.join(map(with_size, missing))}"]


def plan_refusals(plan: Plan) -> list[tuple[str, str]]:
    """Return the steps that can never run, and what would help: a word and a text each."""
    names = {artifact.key: artifact.cells for artifact in plan.artifacts}
    lines = []
    for refusal in plan.refusals:
        cells = ", ".join(cell for key in refusal.artifacts for cell in names[key])
        what = "not built" if refusal.stops == "build" else "not judged"
        lines.append(("REFUSED", f"{refusal.step}: {refusal.reason} ({what}: {cells})"))
    remedies = dict.fromkeys(one.remedy for one in plan.refusals)
    return [*lines, *(("help", text) for text in remedies)]


def total(plan: Plan, recipe: str) -> str:
    """Return a plan in one line: cells, artifacts, disk, memory."""
    wanted = [artifact for artifact in plan.artifacts if artifact.cells]
    cached = sum(artifact.cached for artifact in wanted)
    copied = copied_bytes(plan)
    copies = f" ({format_decimal(copied)} of it copies in the run's folder)" if copied else ""
    peak = f", peak build memory {format_decimal(plan.peak_build_memory)}" if plan.builds else ""
    return (
        f"{recipe}: {len(plan.cells)} cells, {len(wanted)} artifacts, {cached} cached; "
        f"{format_decimal(plan.disk_bytes + copied)} of disk to write{copies}{peak}"
    )


def step_time(times: Forecast, step: str) -> str | None:
    """Return what a step is likely to take, in words; None if that is not known."""
    seconds = times.seconds(step)
    return None if seconds is None else f"about {format_duration(seconds)}"


def time_lines(times: Forecast) -> list[str]:
    """Return how long it is likely to take in all, and what that rests on."""
    if not times.tasks:
        return []
    left = times.left()
    known = Counter(one.basis if one else None for one in times.expected.values())
    count = len(times.tasks)
    if left.unknown == count:
        return ["time: not known, no such steps have run here yet"]
    word = "at least" if left.unknown else "about"
    rests = [
        (known["same"], "by runs of the same step"),
        (known["scaled"], "by runs of other models or variants, scaled by their work"),
        (known[None], "not known"),
    ]
    said = ", ".join(f"{number} {text}" for number, text in rests if number)
    return [
        f"time: {word} {format_duration(left.seconds)} on {times.cores} cores, "
        f"besides what environments take to install; of {count} steps {said}"
    ]
