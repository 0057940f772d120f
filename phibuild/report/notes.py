"""What is to be known of a cell besides its figures: where its runtime stops to be the original,
and what it was judged by in place of it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from phibuild.backends.registry import backend
from phibuild.planning.matrix import Matrix
from phibuild.planning.sizes import context_note
from phibuild.planning.steps import PlannedArtifact
from phibuild.schema import Cell


def cell_notes(cell: Cell, matrix: Matrix, artifact: PlannedArtifact | None = None) -> list[str]:
    """Return the notes of a cell, sentences for people; a skipped one has none. `artifact` says how
    it is judged, if it is to be."""
    if cell.variant is None:
        return []
    note = context_note(
        backend(cell.backend),
        matrix.models[cell.model].architecture,
        cell.variant,
        matrix.devices[cell.device],
    )
    return [*([note] if note else []), *(_judging_notes(artifact) if artifact else ())]


def _judging_notes(artifact: PlannedArtifact) -> Iterator[str]:
    """Yield what is to be said of a cell that is judged in another form, by less, or not at all."""
    judging = artifact.judging
    if judging and judging.how != "native":
        yield f"{'not judged:' if judging.how == 'no' else 'judged by'} {judging.note}"
    if artifact.tokens:
        yield f"judged by the first {artifact.tokens:,} tokens of each window: it holds no more"


def note_lines(cells: Iterable[tuple[str, str, Sequence[str]]]) -> list[str]:
    """Return a line for each note of cells (id, backend, notes), with those that have it:
    `*.BACKEND.*` if it is all of a backend's, else their ids."""
    whole: dict[str, list[str]] = {}
    noted: dict[str, dict[str, list[str]]] = {}
    for name, backend_name, texts in cells:
        whole.setdefault(backend_name, []).append(name)
        for text in texts:
            noted.setdefault(text, {}).setdefault(backend_name, []).append(name)
    lines = []
    for text, having in noted.items():
        shown: list[str] = []
        for backend_name, some in having.items():
            is_all = some == whole[backend_name] and some[1:]
            shown += [f"*.{backend_name}.*"] if is_all else some
        lines.append(f"note    {', '.join(shown)}: {text}")
    return lines
