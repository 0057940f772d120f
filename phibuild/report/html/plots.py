"""The plots of a report as pictures: SVG and PNG, made without a browser."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from phibuild.errors import ConfigError, Problem
from phibuild.report.choice import choices
from phibuild.report.documents import Report
from phibuild.report.html.bundle import PACKAGE
from phibuild.report.html.figures import Figure
from phibuild.report.html.page import drawing, sections
from phibuild.report.html.rows import JsonRow, rows
from phibuild.report.html.theme import Spec
from phibuild.system.files import write_atomically

WIDTH = 640
SCALE = 2
"""Pixels of a PNG for each of the plot's."""
_LONGEST = 120  # of a file's name without its end, in characters


def pictures(report: Report) -> Iterator[tuple[str, Spec]]:
    """Yield each plot's name, as a file may have it, and its complete specification."""
    found = rows(report, choices(report))
    specs = drawing(report, found, fixed=True).specs()
    cells = [row.to_json() for row in found]
    taken: set[str] = set()
    for figure in sections(report, found).all:
        name = base = _file_name(figure.name)
        number = 1
        while name.lower() in taken:  # some file systems do not tell capitals
            number += 1
            name = f"{base}-{number}"
        taken.add(name.lower())
        yield name, _filled(specs[figure.kind], figure, cells)


def write_plots(report: Report, folder: Path) -> list[Path]:
    """Write each plot as SVG and PNG into a folder; return the files. Raises ConfigError where
    vl-convert is not to be had or the folder cannot be written."""
    try:
        import vl_convert
    except ImportError as error:
        raise ConfigError(
            Problem("the plots need vl-convert-python", "command line: --plots",
                    f"pip install {PACKAGE}, on a platform that it is made for")
        ) from error  # fmt: skip
    written = []
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, spec in pictures(report):
            text = json.dumps(spec)
            svg, png = folder / f"{name}.svg", folder / f"{name}.png"
            write_atomically(svg, vl_convert.vegalite_to_svg(text))
            write_atomically(png, vl_convert.vegalite_to_png(text, scale=SCALE))
            written += [svg, png]
    except OSError as error:
        raise ConfigError(
            Problem(f"cannot be written: {error.strerror}", str(folder), "choose another folder")
        ) from error
    return written


def _filled(spec: Spec, figure: Figure, cells: list[JsonRow]) -> Spec:
    return {
        **spec,
        "width": WIDTH,
        "title": {"text": figure.title, "anchor": "start", "fontSize": 14, "offset": 10},
        "params": [{"name": "floor", "value": figure.floor}],
        "datasets": {"rows": figure.select(cells), **figure.sets},
        "padding": 12,
    }


def _file_name(name: str) -> str:
    """Return a name that every file system takes."""
    kept = "".join(letter if letter.isalnum() or letter in "-_." else "_" for letter in name)
    return kept.strip(".")[:_LONGEST]
