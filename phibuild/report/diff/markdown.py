"""A difference as Markdown: a page of its own, and a part of report.md."""

from __future__ import annotations

from collections.abc import Iterator

from phibuild.report.diff.documents import CellDifference, Difference, FigureName
from phibuild.report.diff.text import WORDS, amount, cells_text, headline, noise_legend, share
from phibuild.report.markdown_text import Section, code, escape, fitted, fold, row, table_head

COMMENT_LIMIT = 65_536
_OPEN = 20
"""Rows that stand open; the rest folds away."""
_COLUMNS: dict[str, FigureName] = {"size": "size", "KL": "kl", "top-1": "top1", "decode": "decode"}


def difference_page(difference: Difference, *, limit: int = COMMENT_LIMIT) -> str:
    """Return a difference as a page, in so many bytes of UTF-8."""
    a, b = difference.a, difference.b
    sections = [
        Section([f"# {code(b.name)} beside {code(a.name)}", ""], []),
        *conditions(difference),
        *changes(difference, "## What changed"),
    ]
    return fitted(sections, limit)


def conditions(difference: Difference) -> Iterator[Section]:
    """Yield the conditions of --fail-if, and the cells that they apply to."""
    for result in difference.conditions:
        count = len({one.id for one in result.cells})
        if not count:
            yield Section([f"- {code(result.condition)}: no cell"], [])
            continue
        rows = [f"    - {code(one.id)}: {escape(one.why)}" for one in result.cells]
        yield Section([f"- **{code(result.condition)}: {cells_text(count)}**"], rows)
    if difference.conditions:
        yield Section([""], [])


def changes(difference: Difference, title: str) -> list[Section]:
    """Return the sections of what changed, below a title that is Markdown."""
    changed = [cell for cell in difference.cells if cell.kinds != ["same"]]
    head = [title, "", escape(headline(difference)) + ".", ""]
    if not changed:
        return [Section(head, [])]
    columns = ["cell", "what", *_COLUMNS]
    top = table_head(columns, tuple(_COLUMNS))
    sections = [Section([*head, *top], [_row(cell) for cell in changed[:_OPEN]], [""], 1)]
    if rest := changed[_OPEN:]:
        table = Section(top, [_row(cell) for cell in rest], [], 3)
        sections.append(fold(f"{cells_text(len(rest))} more", table))
    reasons = [
        f"- {code(cell.id)}: {escape(text)}"
        for cell in changed
        for text in (*_reasons(cell), *cell.gates_broken)
    ]
    if reasons:
        sections.append(Section([], reasons, [""], 2))
    notes = [*difference.notes, *filter(None, [noise_legend(difference)])]
    sections.append(Section([*(f"{escape(note)}.\n" for note in notes)], []))
    return sections


def _reasons(cell: CellDifference) -> Iterator[str]:
    if cell.reason and cell.b and {"failed", "gone"} & set(cell.kinds):
        yield (cell.reason.splitlines() or [""])[0]


def _row(cell: CellDifference) -> str:
    name = code(cell.id)
    if cell.a and cell.b and cell.a != cell.b:
        name += f" (was {code(cell.a)})"
    if cell.a and cell.b and cell.variant_a != cell.variant_b:
        name += f" {code(cell.variant_a or '-')} → {code(cell.variant_b or '-')}"
    what = ", ".join(WORDS[kind] for kind in cell.kinds)
    return row([name, what, *(_figure(cell, figure) for figure in _COLUMNS.values())])


def _figure(cell: CellDifference, name: FigureName) -> str:
    """Return a figure of the second run and how it changed; noise is said to be that."""
    one = next((one for one in cell.figures if one.figure == name), None)
    if one is None:
        return ""
    shown = escape(amount(name, one.b))
    if one.verdict == "same":
        return shown
    changed = share(one.relative) if one.relative is not None else f"from {amount(name, one.a)}"
    if one.verdict == "noise":
        return f"{shown} (noise)"
    return f"{shown} (**{changed}**)" if one.verdict == "worse" else f"{shown} ({changed})"
