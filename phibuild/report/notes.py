"""What is to be known of a cell besides its figures: where its runtime stops to be the original,
and what it was judged by in place of it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from phibuild.backends.registry import backend
from phibuild.planning.matrix import Matrix
from phibuild.planning.sizes import context_note
from phibuild.schema import Cell, Judging


def cell_notes(cell: Cell, matrix: Matrix, judging: Judging | None = None) -> list[str]:
    """Return the notes of a cell, sentences for people; a skipped one has none. `judging` is how
    it is judged, if it is to be."""
    if cell.variant is None:
        return []
    note = context_note(
        backend(cell.backend),
        matrix.models[cell.model].architecture,
        cell.variant,
        matrix.devices[cell.device],
    )
    return [*([note] if note else []), *_judging_notes(judging)]


def _judging_notes(judging: Judging | None) -> list[str]:
    """Return what is to be said of a cell that is judged in another form, or not at all."""
    if judging is None or judging.how == "native":
        return []
    return [f"{'not judged:' if judging.how == 'no' else 'judged by'} {judging.note}"]


def note_lines(notes: Mapping[str, Sequence[str]]) -> list[str]:
    """Return a line for each note, with the cells that have it: `*.BACKEND.*` if it is all of a
    backend's, else their ids."""
    cells: dict[str, list[str]] = {}
    for name, texts in notes.items():
        for text in texts:
            cells.setdefault(text, []).append(name)
    lines = []
    for text, names in cells.items():
        shown: list[str] = []
        for name, some in _by_backend(names).items():
            whole = _by_backend(notes)[name]
            shown += [f"*.{name}.*"] if some == whole and some[1:] else some
        lines.append(f"note    {', '.join(shown)}: {text}")
    return lines


def _by_backend(names: Iterable[str]) -> dict[str, list[str]]:
    """Return the ids of cells (model.device.backend.precision) by backend."""
    found: dict[str, list[str]] = {}
    for name in names:
        found.setdefault(name.split(".")[-2], []).append(name)
    return found
