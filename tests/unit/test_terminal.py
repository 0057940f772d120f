"""A report on a terminal: it fits at every width, loses no figure, and does as it is told about
colours."""

from __future__ import annotations

import io
import re
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.cells import cell_len

from phibuild.report.documents import Report, ReportCell
from phibuild.report.table import loss
from phibuild.report.terminal.page import page, show_report
from phibuild.report.terminal.render import render
from phibuild.schema import document_text
from phibuild.system.screen import can_move, columns, has_colour, make_console
from phibuild.units import format_decimal
from support.report_runs import Run
from support.screens import ESCAPE, HOSTILE, terminal, too_wide

WIDTHS = (20, 30, 40, 50, 59, 60, 65, 66, 72, 80, 91, 92, 99, 100)
SHOW = """
import sys
from pathlib import Path
from phibuild.report.runs import read_report
from phibuild.report.terminal.page import show_report
show_report(read_report(Path(sys.argv[1])), colour="--no-color" not in sys.argv)
"""


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Report:
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("run")
        patch.chdir(folder)
        run = Run(folder)
        run.build_all()
        return run.report()


def text(report: Report, width: int) -> str:
    return render(page(report, width), width)


def changed(report: Report, *cells: ReportCell) -> Report:
    return report.model_copy(update={"cells": list(cells)})


def many(report: Report, count: int) -> Report:
    """Return a report of `count` cells, of 25 to a device."""
    cells = []
    for number in range(count):
        cell = report.cells[number % len(report.cells)]
        device = f"device_{number // 25:03}"
        name = f"{cell.model}.{device}.{cell.backend}.{cell.precision}.v{number}"
        cells.append(cell.model_copy(update={"id": name, "device": device}))
    return changed(report, *cells)


def squeezed(text: str) -> str:
    return re.sub(r"\s+", "", text)


@pytest.mark.parametrize("width", WIDTHS)
def test_no_line_is_wider_and_no_figure_is_lost(report: Report, width: int) -> None:
    found = text(report, width)
    assert too_wide(found, width) == []
    assert "…" not in found
    for cell in report.cells:
        if cell.quality:
            assert squeezed(loss(cell.quality)) in squeezed(found)
            assert squeezed(format_decimal(cell.size_bytes)) in squeezed(found)
    if width >= 40:  # a figure and its unit, a loss and its error stand on one line
        assert "2.00 MB" in found
        assert "1.00 MB" in found


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_names_are_shown_as_they_are(report: Report, name: str, width: int) -> None:
    cells = [
        cell.model_copy(
            update={
                "model": name, "device": name, "variant": name, "reason": cell.reason and name,
                "id": f"{name}.{name}.{cell.backend}.{cell.precision}",
            }
        )
        for cell in report.cells
    ]  # fmt: skip
    found = text(changed(report, *cells), width)
    assert too_wide(found, width) == []
    shown = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in name)
    assert squeezed(shown) in squeezed(found)


@settings(max_examples=30)
@given(name=st.text(min_size=1), width=st.integers(20, 110))
def test_any_name_at_any_width(report: Report, name: str, width: int) -> None:
    cells = [c.model_copy(update={"device": name, "variant": name}) for c in report.cells]
    lines = text(changed(report, *cells), width).split("\n")
    assert all(line.isprintable() for line in lines)
    # Here as rich counts columns: wcwidth and it differ about some sequences of emoji.
    assert max(map(cell_len, lines)) <= width


@pytest.mark.parametrize("width", [40, 80, 100])
def test_a_thousand_cells(report: Report, width: int) -> None:
    large = many(report, 1000)
    found = text(large, width)
    assert too_wide(found, width) == []
    for cell in large.cells:
        if cell.status != "skipped":
            assert f"v{cell.id.rpartition('.v')[2]}" in found
    # What has one reason is said once, and gates do not bury the rest.
    begins = [line.split()[0] for line in found.splitlines() if line.strip()]
    assert begins.count("skipped") == 1
    assert begins.count("GATE") == 21


def test_what_to_ship_stands_first(report: Report) -> None:
    lines = text(report, 100).splitlines()
    assert lines[0] == "What to ship"
    assert lines[1].split() == ["ai_pc_intel", "llamacpp", "int4", "Q4_K_M", "2.00", "MB", "KL",
                                "0.1000"]  # fmt: skip
    assert (
        lines[2].strip() == "the only one that was judged and fits the device and keeps its gates"
    )
    (header,) = (number for number, line in enumerate(lines) if line.startswith("device "))
    assert lines[header].split() == ["device", "backend", "variant", "size", "KL", "(nats)", "fits",
                                     "status"]  # fmt: skip
    assert any("built, misses kl" in line for line in lines)


def test_nothing_to_ship_says_why(report: Report) -> None:
    cells = [c for c in report.cells if c.precision == "int8" or c.backend == "openvino"]
    found = text(changed(report, *cells), 100)
    assert re.search(r"ai_pc_intel +nothing\n +none can be shipped; ", found)


def test_failures_say_their_reason_once(report: Report) -> None:
    failed = [
        c.model_copy(update={"status": "failed", "reason": "killed by SIGKILL\nlast words"})
        for c in report.cells
    ]
    found = text(changed(report, *failed), 80)
    assert " ".join(found.split()).count("killed by SIGKILL last words") == 1
    assert f"and {len(failed) - 3} more: " in " ".join(found.split())


def test_colour_is_never_alone(report: Report) -> None:
    """Without its colours the report has the same words."""
    coloured = render(page(report, 80), 80, colour=True)
    assert ESCAPE.search(coloured)
    assert [line.rstrip() for line in ESCAPE.sub("", coloured).splitlines()] == text(
        report, 80
    ).splitlines()


def test_without_a_terminal_there_is_no_colour_and_a_fixed_width(
    report: Report, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("COLUMNS", "FORCE_COLOR", "NO_COLOR"):
        monkeypatch.delenv(name, raising=False)
    show_report(report)
    found = capsys.readouterr().out
    assert "\x1b" not in found
    assert found == text(report, 100) + "\n"
    monkeypatch.setenv("COLUMNS", "72")
    show_report(report)
    assert capsys.readouterr().out == text(report, 72) + "\n"


def test_wide_has_all_columns(report: Report, capsys: pytest.CaptureFixture[str]) -> None:
    show_report(report, wide=True)
    found = capsys.readouterr().out
    for name in ("bits/w", "ppl (original)", "prefill t/s", "device memory"):
        assert name in found.splitlines()[0]


@pytest.mark.skipif(sys.platform == "win32", reason="a pty")
@pytest.mark.parametrize(
    ("words", "environ", "coloured"),
    [
        ((), {}, True),
        (("--no-color",), {}, False),
        ((), {"NO_COLOR": "1"}, False),
        ((), {"NO_COLOR": ""}, True),  # no-color.org: set, and not empty
        ((), {"TERM": "dumb"}, False),
        ((), {"NO_COLOR": "1", "FORCE_COLOR": "1"}, False),
    ],
)
def test_colours_of_a_terminal(
    report: Report, tmp_path: Path, words: tuple[str, ...], environ: dict[str, str], coloured: bool
) -> None:
    (tmp_path / "report.json").write_text(document_text(report), encoding="utf-8")
    command = [sys.executable, "-c", SHOW, str(tmp_path), *words]
    with terminal(command, 80, 60, environ) as screen:
        assert screen.end() == 0
    assert bool(ESCAPE.search(screen.raw.decode())) is coloured
    assert screen.text == text(report, 80)


def test_what_a_stream_can_do(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("COLUMNS", "FORCE_COLOR", "NO_COLOR"):
        monkeypatch.delenv(name, raising=False)
    pipe = io.StringIO()
    assert (can_move(pipe), has_colour(pipe), columns(pipe)) == (False, False, 100)
    assert make_console(pipe).color_system is None
    monkeypatch.setenv("FORCE_COLOR", "1")
    assert has_colour(pipe)
    assert not has_colour(pipe, wanted=False)
    pipe.close()
    assert not can_move(pipe)
