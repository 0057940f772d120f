"""The matrix of a report: the cells that were built or judged."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rich.console import RenderableType
from rich.text import Text

from phibuild.report.documents import ReportCell
from phibuild.report.terminal.columns import columns
from phibuild.report.terminal.layout import Matrix, Square
from phibuild.report.terminal.words import figures, fits_in_words, style, variant
from phibuild.streams import printable

_MATRIX = Matrix(
    columns(
        ("device", "backend", "variant", "size", "KL (nats)", "fits", "status"),
        flexible="variant", numbers=("size", "KL (nats)"),
    ),
    most={"device": 22, "backend": 20, "status": 20},
    least=18,
)  # fmt: skip


def matrix(cells: Sequence[ReportCell], width: int) -> Iterator[RenderableType]:
    """Yield the cells that were built or judged, those of a model after its name."""
    return _MATRIX.within([_square(cell) for cell in cells if cell.status != "skipped"], width)


def _square(cell: ReportCell) -> Square:
    backend, shown = printable(cell.backend), variant(cell)
    size, loss, _, status = figures(cell)
    return Square(
        cell.model,
        cell.device,
        cell.backend,
        (
            Text(printable(cell.device), "bold"),
            Text(backend),
            Text(shown, style(cell)),
            *figures(cell),
        ),
        Text(f"{backend} {shown}", style(cell), overflow="fold"),
        [size, Text.assemble("KL ", loss), fits_in_words(cell), status],
    )
