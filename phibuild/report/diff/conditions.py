"""The conditions of --fail-if: when a difference is one too many."""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from phibuild.errors import ConfigError, Problem
from phibuild.report.diff.documents import (
    CellDifference,
    ConditionFailure,
    ConditionResult,
    Difference,
    FigureChange,
    FigureName,
    Kind,
)
from phibuild.report.diff.text import figure_text
from phibuild.units import parse_size

GRAMMAR = """\
FIGURE > or < CHANGE, as 'kl>+5%' 'kl>+0.002' 'size>+10MB' 'top1<-0.5%' 'speed<-20%'; FIGURE is
    kl, top1, ppl, size, memory, prefill, decode or speed (either of these two); CHANGE has a sign,
    and is a share of the first run's figure (%) or an amount; '!' at the end counts noise too.
    Or one of failed, gone, gate."""
_FIGURES: dict[str, tuple[FigureName, ...]] = {
    "kl": ("kl",),
    "top1": ("top1",),
    "ppl": ("ppl",),
    "size": ("size",),
    "memory": ("memory",),
    "prefill": ("prefill",),
    "decode": ("decode",),
    "speed": ("prefill", "decode"),
}
_EVENTS: dict[str, Kind] = {"failed": "failed", "gone": "gone", "gate": "gate"}
_OPERATORS: dict[str, Callable[[float, float], bool]] = {
    ">": operator.gt, ">=": operator.ge, "<": operator.lt, "<=": operator.le,
}  # fmt: skip
_CONDITION = re.compile(
    r"(?P<figure>[a-z0-9]+)\s*(?P<operator>[<>]=?)\s*(?P<sign>[+-])\s*(?P<number>\d+(?:\.\d*)?|\.\d+)"
    r"\s*(?P<unit>%|[A-Za-z]*)\s*(?P<noise>!?)"
)


@dataclass(frozen=True)
class Condition:
    """One condition, as it was written. Without `figures` it is the event that it names. `limit` is
    a share with `is_relative`, else an amount; `counts_noise`: a change needs not be beyond it."""

    text: str
    figures: tuple[FigureName, ...]
    compare: Callable[[float, float], bool]
    limit: float
    is_relative: bool
    counts_noise: bool

    def failures(self, difference: Difference) -> ConditionResult:
        """Return the cells that the condition applies to."""
        cells = [
            ConditionFailure(id=cell.id, why=why)
            for cell in difference.cells
            for why in self._whys(cell)
        ]
        return ConditionResult(condition=self.text, cells=cells)

    def _whys(self, cell: CellDifference) -> Iterator[str]:
        """Yield why the condition applies to a cell."""
        if not self.figures:
            # Of what was not there nothing is gone.
            was = self.text != "gone" or cell.status_a in ("built", "cached")
            if was and _EVENTS[self.text] in cell.kinds:
                yield cell.reason or "; ".join(cell.gates_broken) or self.text
            return
        found = {one.figure: one for one in cell.figures}
        for name in self.figures:
            if name in found:
                if self._applies(found[name]):
                    yield figure_text(found[name])
            elif cell.a and cell.b and self._is_lost(cell, name):
                yield f"nothing to compare: {_why_lost(cell)}"
                return

    def _is_lost(self, cell: CellDifference, name: FigureName) -> bool:
        """Whether the first run has a figure that the second has not: what nobody can check is not
        kept."""
        if name in ("size", "memory"):
            return bool({"failed", "gone"} & set(cell.kinds)) and cell.status_a != "skipped"
        return bool({"failed", "gone", "unjudged"} & set(cell.kinds)) and cell.judged_a

    def _applies(self, one: FigureChange) -> bool:
        change = one.change
        if self.is_relative:
            change = one.relative if one.relative is not None else _endless(one.change)
        if not self.compare(change, self.limit):
            return False
        # Where no change at all is one too many, noise is as well.
        return bool(one.beyond_noise) or self.counts_noise or self.compare(0.0, self.limit)


def _endless(change: float) -> float:
    return float("inf") if change > 0 else float("-inf") if change < 0 else 0.0


def _why_lost(cell: CellDifference) -> str:
    if "unjudged" in cell.kinds and not {"failed", "gone"} & set(cell.kinds):
        return "it was not judged"
    return f"it {'failed' if cell.status_b == 'failed' else 'was skipped'}"


def read_conditions(texts: Sequence[str]) -> list[Condition]:
    """Return the conditions that words of the command line mean. Raises ConfigError with all that
    are none, and the grammar."""
    found: list[Condition] = []
    problems = []
    for text in texts:
        try:
            found.append(read_condition(text))
        except ValueError as error:
            problems.append(Problem(str(error), "command line: --fail-if", f"write {GRAMMAR}"))
    if problems:
        raise ConfigError(*problems)
    return found


def read_condition(text: str) -> Condition:
    """Return a condition. Raises ValueError."""
    word = text.strip()
    if word in _EVENTS:
        return Condition(word, (), operator.gt, 0.0, is_relative=False, counts_noise=False)
    match = _CONDITION.fullmatch(word)
    if match is None:
        raise ValueError(f"{text!r} is no condition")
    figures = _FIGURES.get(match["figure"])
    if figures is None:
        raise ValueError(f"{text!r} is no condition: there is no figure {match['figure']!r}")
    sign = -1.0 if match["sign"] == "-" else 1.0
    is_relative = match["unit"] == "%"
    if is_relative:
        limit = float(match["number"]) / 100
    elif figures[0] in ("size", "memory"):
        limit = float(parse_size(match["number"] + match["unit"]))
    elif match["unit"]:
        raise ValueError(f"{text!r} is no condition: {match['figure']} has no unit but %")
    else:
        limit = float(match["number"])
    return Condition(
        word,
        figures,
        _OPERATORS[match["operator"]],
        sign * limit,
        is_relative=is_relative,
        counts_noise=bool(match["noise"]),
    )
