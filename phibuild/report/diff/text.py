"""A difference for people: lines of at most 100 columns."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence

from phibuild.report.diff.documents import (
    CellDifference,
    Difference,
    FigureChange,
    FigureName,
    Kind,
)
from phibuild.units import format_decimal

_WIDTH = 100
NAMES: dict[FigureName, str] = {
    "size": "size",
    "memory": "memory on the device",
    "kl": "KL",
    "top1": "top-1",
    "ppl": "perplexity",
    "prefill": "prefill",
    "decode": "decode",
}
WORDS: dict[Kind, str] = {
    "failed": "failed",
    "gate": "misses a gate",
    "unjudged": "not judged",
    "gone": "gone",
    "worse": "worse",
    "larger": "larger",
    "slower": "slower",
    "mended": "mended",
    "new": "new",
    "better": "better",
    "smaller": "smaller",
    "faster": "faster",
    "changed": "other bytes",
    "same": "the same",
}


def difference_lines(difference: Difference, *, everything: bool = False) -> Iterator[str]:
    """Yield the lines of a difference; what is the same or noise only with `everything`."""
    for name, run in (("A", difference.a), ("B", difference.b)):
        yield from _wrapped(f"{name}  {run.name} ({run.recipe}, phibuild {run.phibuild_version})")
    yield ""
    shown = [cell for cell in difference.cells if everything or cell.kinds != ["same"]]
    for cell in shown:
        yield from _cell_lines(cell, everything=everything)
    if shown:
        yield ""
    for note in difference.notes:
        yield from _wrapped(f"note: {note}", "      ")
    if legend := noise_legend(difference, everything=everything):
        yield from _wrapped(f"note: {legend}", "      ")
    yield from _wrapped(headline(difference))
    for result in difference.conditions:
        count = len({one.id for one in result.cells})
        if not count:
            yield from _wrapped(f"ok: {result.condition}")
            continue
        yield from _wrapped(f"FAILED: {result.condition}: {cells_text(count)}")
        for one in result.cells:
            yield from _wrapped(f"    {one.id}: {plain(one.why)}", "        ")


def headline(difference: Difference) -> str:
    """Return one line: how many cells are what."""
    if not difference.cells:
        return "no cells"
    return ", ".join(f"{count} {WORDS[kind]}" for kind, count in difference.totals.items())


def cells_text(count: int) -> str:
    return f"{count} cell" + ("" if count == 1 else "s")


def noise_legend(difference: Difference, *, everything: bool = False) -> str | None:
    """Return how it was decided what is noise, as far as figures were compared."""
    parts = []
    figures = [one for cell in difference.cells for one in cell.figures]
    counts = sorted({one.windows for one in figures if one.windows})
    if counts:
        some = str(counts[0]) if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
        parts.append(f"losses are compared on {some} common windows, at the 5 % level")
    if any(one.windows is None for one in figures if one.figure == "kl"):
        parts.append("losses without common windows by their own standard errors")
    noise = difference.speed_noise
    if noise.same_machine and any(one.figure == "decode" for one in figures):
        known = (
            f"{noise.cells} artifacts that are the same differ by as much"
            if noise.cells
            else "no artifact that is the same was timed in both runs"
        )
        parts.append(f"speeds count beyond a factor of {noise.factor:.2f}: {known}")
    hidden = sum(one.verdict == "noise" for one in figures)
    if hidden and not everything:
        parts.append(f"{hidden} changes of figures are noise (--all shows them)")
    return "; ".join(parts) or None


def _cell_lines(cell: CellDifference, *, everything: bool) -> Iterator[str]:
    kinds = ", ".join(WORDS[kind] for kind in cell.kinds)
    yield from _wrapped(f"{kinds}: {cell.id}")
    if cell.a and cell.b and cell.a != cell.b:
        yield from _wrapped(f"    was {cell.a}", "        ")
    if cell.a and cell.b and cell.variant_a != cell.variant_b:
        yield from _wrapped(f"    {cell.variant_a or '-'} -> {cell.variant_b or '-'}", "        ")
    if cell.reason and cell.b:
        yield from _wrapped(f"    {plain(cell.reason)}", "        ")
    for gate in cell.gates_broken:
        yield from _wrapped(f"    gate: {plain(gate)}", "        ")
    for gate in cell.gates_mended:
        yield from _wrapped(f"    gate kept again: {plain(gate)}", "        ")
    for one in cell.figures:
        if everything or one.verdict in ("worse", "better"):
            yield from _wrapped(f"    {figure_text(one)}", "        ")


def figure_text(one: FigureChange) -> str:
    """Return a figure's change: "KL 0.0527 -> 0.0613, +16.3 % ± 0.6 % (8 windows)"."""
    a, b = amount(one.figure, one.a), amount(one.figure, one.b)
    text = f"{NAMES[one.figure]} {a} -> {b}"
    if not one.change:
        return f"{NAMES[one.figure]} {a}"
    if one.relative is not None:
        text += f", {share(one.relative)}"
        if one.error is not None:
            text += f" ± {abs(one.error / one.a):.1%}".replace("%", " %")
    if one.windows:
        text += f" ({one.windows} windows)"
    if one.verdict == "noise":
        text += " noise" if one.beyond_noise is False else " noise, for all that is known"
    return text


def share(relative: float) -> str:
    """Return a relative change in percent; as a factor where that reads better."""
    if relative >= 9.995:
        return f"x {relative + 1:,.0f}"
    digits = 1 if abs(relative) < 0.9995 else 0
    return f"{relative * 100:+.{digits}f} %"


def amount(figure: FigureName, value: float) -> str:
    """Return a figure as people read it."""
    match figure:
        case "size" | "memory":
            return format_decimal(int(value))
        case "kl":
            return "0" if value == 0 else f"{value:.4f}" if value >= 1e-3 else f"{value:.1e}"
        case "top1":
            return f"{value:.4f}"
        case "ppl":
            return f"{value:.3f}"
        case "prefill" | "decode":
            return f"{value:,.0f} tok/s" if value >= 10 else f"{value:.2f} tok/s"


def plain(text: str) -> str:
    """Return a text on one line, without signs that move a cursor or colour what follows."""
    words = " ".join(text.split())
    return "".join(sign if sign.isprintable() else "\ufffd" for sign in words)


def _wrapped(text: str, indent: str = "    ") -> Sequence[str]:
    first = text[: len(text) - len(text.lstrip())]
    return textwrap.wrap(
        plain(text) if not first else first + plain(text),
        _WIDTH,
        subsequent_indent=indent,
        break_on_hyphens=False,
    )
