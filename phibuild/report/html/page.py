"""report.html: one file that needs no network, made of templates/ and assets/."""

from __future__ import annotations

import base64
import gzip
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from phibuild.report.choice import Choice, choices
from phibuild.report.documents import Report
from phibuild.report.html import cell_figures, run_figures, texts
from phibuild.report.html.bundle import plot_script
from phibuild.report.html.details import details
from phibuild.report.html.figures import Figure
from phibuild.report.html.grid import grids
from phibuild.report.html.logs import failures
from phibuild.report.html.rows import Row, columns, rows, variant_name, verdict_counts
from phibuild.report.html.specs import STEP_KINDS, Drawing
from phibuild.report.html.theme import SHAPES, Theme
from phibuild.report.html.verdicts import VERDICTS
from phibuild.report.steps import bound_line
from phibuild.report.table import headline
from phibuild.schema import PRECISIONS
from phibuild.units import format_decimal

PAGE = "report.html"
"""The file of a run's folder."""
_HERE = Path(__file__).resolve().parent
_SCRIPTS = ("page.js", "filter.js", "table.js", "plots.js", "panel.js", "start.js")
FIRST_ROWS = 100
"""Rows of the table of cells that are shown at first."""


@dataclass(frozen=True)
class Sections:
    """The figures of a report, section by section of the page."""

    tradeoff: Sequence[Figure]
    speed: Sequence[Figure]
    sizes: Sequence[Figure]
    layers: Sequence[Figure]
    positions: Sequence[Figure]
    time: Sequence[Figure]

    @property
    def all(self) -> tuple[Figure, ...]:
        return (*self.tradeoff, *self.speed, *self.sizes, *self.layers, *self.positions,
                *self.time)  # fmt: skip


def sections(report: Report, found: Sequence[Row]) -> Sections:
    """Return the figures that a report's data allow."""
    return Sections(
        tradeoff=list(cell_figures.tradeoffs(report, found)),
        speed=list(cell_figures.speeds(report, found)),
        sizes=list(cell_figures.sizes(report, found)),
        layers=list(run_figures.layers(report)),
        positions=list(cell_figures.positions(report, found)),
        time=list(run_figures.time_line(report)),
    )


def drawing(report: Report, found: Sequence[Row], *, fixed: bool) -> Drawing:
    """Return what a report's plots share."""
    backends = tuple(dict.fromkeys(row.backend for row in found))
    return Drawing(backends, run_figures.roles(report), Theme(fixed))


def report_html(report: Report, folder: Path | None = None) -> str:
    """Return the page of a report. `folder` is the run's, where the logs of failures lie."""
    chosen = choices(report)
    found = rows(report, chosen)
    plots = sections(report, found)
    script = plot_script()
    by_id = {row.id: row for row in found}
    cells = [row.to_json() for row in found]
    data = {
        "cells": cells,
        "columns": [list(column) for column in columns(report)],
        "verdicts": VERDICTS,
        "first": FIRST_ROWS,
        "figures": [_figure(figure) for figure in plots.all],
        "specs": drawing(report, found, fixed=False).specs(),
    }
    environment = Environment(
        loader=FileSystemLoader(_HERE / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(link=cell_link, size=format_decimal, clean=texts.clean)
    environment.globals.update(
        loss=texts.loss,
        memory=texts.memory,
        label=variant_name,
        figure_id=id,
        device_link=_device_link,
    )
    text = environment.get_template("report.html").render(
        report=report,
        headline=headline(report).removeprefix(f"{report.recipe}: "),
        bound=bound_line(report),
        choices=[_shown(choice, by_id) for choice in chosen],
        grids=list(grids(report, found)),
        rows=found,
        columns=columns(report),
        counts=verdict_counts(found),
        verdicts=VERDICTS,
        row_number={row.id: number for number, row in enumerate(found)},
        names=_names(found),
        keys=_keys(_names(found)["backends"]),
        role_keys=_keys(run_figures.roles(report)),
        step_keys=[(name, number, "square") for number, name in enumerate(STEP_KINDS)],
        toolchains=_toolchains(report),
        plots=plots,
        number={id(figure): number for number, figure in enumerate(plots.all)},
        failures=list(failures(report, folder)),
        first_rows=FIRST_ROWS,
        style=_asset("page.css"),
        script=Markup("\n").join(_asset(name) for name in _SCRIPTS),
        data=packed(data),
        details=packed([details(cell) for cell in report.cells]),
        plot_script=base64.b64encode(script).decode() if script else "",
    )
    return texts.clean(text)


def cell_link(name: str) -> str:
    """Return the fragment that opens a cell."""
    return f"#cell={quote(texts.clean(name), safe='')}"


def packed(data: object) -> str:
    """Return data as JSON, gzipped, in base64: nothing in it can end a script element."""
    text = json.dumps(data, separators=(",", ":"), allow_nan=False)
    return base64.b64encode(gzip.compress(text.encode(), 6, mtime=0)).decode()


def _shown(choice: Choice, by_id: dict[str, Row]) -> tuple[Choice, Row | None]:
    return choice, by_id[texts.clean(choice.ship.id)] if choice.ship else None


def _device_link(choice: Choice) -> str:
    return f"#device={quote(texts.clean(choice.device), safe='')}"


def _names(found: Sequence[Row]) -> dict[str, list[str]]:
    """Return what there is to filter by."""
    return {
        "models": list(dict.fromkeys(row.model for row in found)),
        "devices": list(dict.fromkeys(row.device for row in found)),
        "backends": list(dict.fromkeys(row.backend for row in found)),
        "precisions": [name for name in PRECISIONS if any(row.precision == name for row in found)],
    }


def _keys(names: Sequence[str]) -> list[tuple[str, int, str]]:
    """Return the name, the colour's number and the shape of each that plots tell apart."""
    many = len(SHAPES)
    return [(name, n % many, SHAPES[n % many]) for n, name in enumerate(names)]


def _toolchains(report: Report) -> list[tuple[str, str]]:
    """Return the toolchains that artifacts were built with, by backend."""
    return sorted(
        {(one.backend, one.provenance.toolchain_digest) for one in report.cells if one.provenance}
    )


def _figure(figure: Figure) -> dict[str, object]:
    found: dict[str, object] = {
        "kind": figure.kind, "where": dict(figure.where), "has": figure.has,
        "first": figure.first, "limit": figure.limit, "floor": figure.floor,
        "sets": figure.sets, "columns": figure.columns,
    }  # fmt: skip
    return found if figure.rows is None else {**found, "rows": list(figure.rows)}


def _asset(name: str) -> Markup:
    return Markup((_HERE / "assets" / name).read_text(encoding="utf-8"))
