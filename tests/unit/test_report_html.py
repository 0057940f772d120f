"""report.html and the plots as they are written: rows, verdicts, plots, logs, texts, files. What a
browser makes of the page: tests/slow/test_report_page.py."""

from __future__ import annotations

import base64
import gzip
import itertools
import json
import struct
import sys
import webbrowser
import xml.etree.ElementTree as ET
from html.parser import HTMLParser
from importlib import metadata
from pathlib import Path

import pytest

from phibuild.cli import main
from phibuild.errors import ConfigError
from phibuild.report.choice import choices
from phibuild.report.documents import Report, ReportCell
from phibuild.report.html import page as page_module
from phibuild.report.html import texts
from phibuild.report.html.bundle import plot_script
from phibuild.report.html.cell_figures import tradeoffs
from phibuild.report.html.details import details
from phibuild.report.html.files import open_page
from phibuild.report.html.logs import LINES, LONGEST, failures, log_end
from phibuild.report.html.page import cell_link, report_html
from phibuild.report.html.plots import pictures, write_plots
from phibuild.report.html.rows import Row, rows
from phibuild.report.html.run_figures import time_line
from phibuild.report.html.verdicts import verdict
from phibuild.report.writing import new_run, write_run
from phibuild.schema import document_text
from support.hostile import HOSTILE, hostile_report
from support.made_reports import CELLS, made_report, report_of
from support.report_runs import Run

SVG = "{http://www.w3.org/2000/svg}"


@pytest.fixture(scope="module")
def report() -> Report:
    return made_report(2)


@pytest.fixture(autouse=True)
def no_script(monkeypatch: pytest.MonkeyPatch) -> None:
    """The plots' script takes seconds to make: pages here do without."""
    monkeypatch.setattr(page_module, "plot_script", lambda: b"gzipped")


class Elements(HTMLParser):
    """The elements of a page, with their attributes, and the text of each script."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: dict[str, str] = {}
        self._script: str | None = None
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))
        self._script = dict(attrs).get("id") if tag == "script" else None

    def handle_data(self, data: str) -> None:
        if self._script:
            self.scripts[self._script] = self.scripts.get(self._script, "") + data


def unpacked(page: str, name: str) -> object:
    return json.loads(gzip.decompress(base64.b64decode(Elements(page).scripts[name])))


def made_rows(report: Report) -> list[Row]:
    return rows(report, choices(report))


# -- rows and verdicts


def test_a_row_has_the_figures_of_its_cell(report: Report) -> None:
    for cell, row in zip(report.cells, made_rows(report), strict=True):
        assert (row.id, row.size, row.plan) == (cell.id, cell.size_bytes, cell.estimated_bytes)
        assert row.kl == (cell.quality.kl_mean if cell.quality else None)
        assert (row.verdict == "ship") == cell.best
    data = made_rows(report)[0].to_json()
    assert "plan" in data
    assert None not in data.values()


def test_none_beats_a_cell_on_the_line_in_size_and_loss(report: Report) -> None:
    found = [row for row in made_rows(report) if row.kl is not None]
    assert sum(bool(row.pareto) for row in found) > 2
    for row in found:
        others = [o for o in found if o.device == row.device and o is not row]
        beaten = any(
            o.size is not None and row.size is not None and o.kl is not None and row.kl is not None
            and o.size <= row.size and o.kl <= row.kl and (o.size, o.kl) != (row.size, row.kl)
            for o in others
        )  # fmt: skip
        assert bool(row.pareto) is not beaten, row.id


def changed(cell: ReportCell, **changes: object) -> ReportCell:
    return cell.model_copy(update=changes)


def test_verdicts(report: Report) -> None:
    good = next(cell for cell in report.cells if cell.best)
    missed = good.gates[0].model_copy(update={"passed": False})
    assert verdict(good, {good.id}) == "ship"
    assert verdict(good, set()) == "good"
    assert verdict(changed(good, gates=[missed]), set()) == "gate"
    assert verdict(changed(good, gates=[missed], fits_budget=False), set()) == "budget"
    assert verdict(changed(good, quality=None, gates=[]), set()) == "unjudged"
    assert verdict(changed(good, status="failed"), set()) == "failed"
    assert verdict(changed(good, status="skipped"), {good.id}) == "skipped"


@pytest.mark.parametrize(
    ("value", "error", "shown"),
    [(0.0, 0.0, "<1e-9"), (0.04781, 0.00334, "0.0478 ± 0.0033"), (0.5, None, "0.5000"),
     (8.1e-4, 1.2e-4, "8.1e-04 ± 1.2e-04")],
)  # fmt: skip
def test_losses_are_shown_with_their_error(value: float, error: float | None, shown: str) -> None:
    assert texts.with_error(value, error) == shown


# -- the page


def test_the_page_names_nothing_outside_of_it(report: Report) -> None:
    elements = Elements(report_html(report)).found
    assert {tag for tag, _ in elements} & {"img", "iframe", "object", "embed", "base"} == set()
    for tag, attributes in elements:
        assert "src" not in attributes
        href = attributes.get("href")
        assert href is None or href.startswith(("#", "data:,")), (tag, href)
    policy = [a["content"] for t, a in elements if a.get("http-equiv") == "Content-Security-Policy"]
    assert policy[0]
    assert "default-src 'none'" in policy[0]


def test_ids_are_unique_and_named_ones_are_there(report: Report) -> None:
    elements = Elements(report_html(report)).found
    ids = [attributes["id"] for _, attributes in elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    for _, attributes in elements:
        for name in ("aria-labelledby", "aria-describedby"):
            assert attributes.get(name) in (None, *ids)
        href = attributes.get("href") or ""
        if href.startswith("#") and "=" not in href:
            assert href[1:] in ids


def test_every_cell_has_its_place_in_the_matrix(report: Report) -> None:
    elements = Elements(report_html(report)).found
    chips = [a for t, a in elements if t == "a" and (a.get("class") or "").startswith("chip ")]
    assert [a["href"] for a in chips] == [cell_link(cell.id) for cell in report.cells]
    assert [a["class"] for a in chips] == [f"chip {row.verdict}" for row in made_rows(report)]


def test_the_data_are_those_of_the_report(report: Report) -> None:
    page = report_html(report)
    data = unpacked(page, "data")
    assert isinstance(data, dict)
    assert [cell["id"] for cell in data["cells"]] == [cell.id for cell in report.cells]
    parts = unpacked(page, "details")
    assert isinstance(parts, list)
    for cell, found in zip(report.cells, parts, strict=True):
        text = json.dumps(found)
        assert (cell.artifact_digest or "") in text
        assert (cell.provenance.key if cell.provenance else "") in text


def test_hostile_names_are_text() -> None:
    page = report_html(hostile_report())
    elements = Elements(page)
    assert [tag for tag, _ in elements.found].count("script") == 4
    assert {tag for tag, _ in elements.found} & {"img", "iframe", "object"} == set()
    assert not any("injected" in (a.get("class") or "") for _, a in elements.found)
    assert not any(name.startswith("on") for _, a in elements.found for name in a)
    titles = {a.get("title") for t, a in elements.found if t == "th"}
    assert set(HOSTILE) <= titles


def test_names_that_are_no_utf8_are_shown_as_far_as_they_go(report: Report) -> None:
    odd = changed(report.cells[0], id="model-\udcff.device_000.llamacpp.int4", device="d\udcff")
    page = report_html(report_of([odd, *report.cells[1:]], "m\udcff"))
    page.encode("utf-8")
    assert "#cell=model-%3F.device_000" in page


def test_a_thousand_cells_are_small() -> None:
    """Beside the plots' script, which is 0.41 MB."""
    page = report_html(made_report(1000 // CELLS))
    assert len(page.encode()) < 1_000_000


def test_a_report_of_an_older_phibuild(report: Report) -> None:
    """It knows nothing of steps, windows and positions."""
    bare = [
        changed(cell, quality=cell.quality.model_copy(update={"by_position": [], "by_window": [],
                                                              "kl_error": None}))
        for cell in report.cells if cell.quality
    ]  # fmt: skip
    older = report_of(bare, report.model.name).model_copy(
        update={"steps": [], "executor": None, "sensitivities": []}
    )
    page = report_html(older)
    assert 'id="time"' not in page
    assert 'id="loss"' not in page
    assert 'id="tradeoff"' in page


def test_nothing_was_made(report: Report) -> None:
    skipped = [cell for cell in made_report(20).cells if cell.status == "skipped"]
    page = report_html(report_of(skipped, report.model.name))
    assert "Nothing to ship" in page
    assert 'id="tradeoff"' not in page


# -- figures


def test_a_budget_is_drawn_where_it_is_near(report: Report) -> None:
    """At the size that fills it with KV cache and buffers (900 MB in these reports)."""
    figure = next(tradeoffs(report, made_rows(report)))
    assert figure.sets["budget"] == [{"at": 9_000_000_000 - 900_000_000, "label": "budget"}]
    cells = [
        changed(cell, device_budget_bytes=90 * 10**9) if cell.quality else cell
        for cell in report.cells
    ]
    far = report_of(cells, report.model.name)
    figure = next(tradeoffs(far, made_rows(far)))
    assert figure.sets["budget"] == []
    assert "89.1 GB fit (beyond this plot)" in figure.note
    assert [line["label"] for line in figure.sets["gates"]] == [
        "limit fp16", "limit int8", "limit int4",
    ]  # fmt: skip


def test_memory_over_time_is_the_sum_of_what_ran(report: Report) -> None:
    figure = next(one for one in time_line(report) if one.kind == "memory")
    assert figure.rows
    for row in figure.rows:
        start, end = row["start"], row["end"]
        assert isinstance(start, float)
        assert isinstance(end, float)
        middle = (start + end) / 2
        ran = [
            step for step in report.steps
            if step.seconds and step.started_seconds < middle < step.started_seconds + step.seconds
        ]  # fmt: skip
        assert row["planned"] == sum(step.memory_bytes for step in ran)
        assert row["taken"] == sum(step.peak_anonymous_bytes or 0 for step in ran)
    for one, other in itertools.pairwise(figure.rows):
        assert one["end"] <= other["start"]  # type: ignore[operator]


def test_details_leave_nothing_out(report: Report) -> None:
    cell = next(cell for cell in report.cells if cell.quality and cell.notes)
    found = dict(details(cell))
    assert ("type", "Q4_K_M") in found["Options"]
    assert [text for _, text in found["Notes"]] == cell.notes
    assert found["Gates"][0][1].startswith("kl ")


# -- logs


def test_the_end_of_a_log(tmp_path: Path) -> None:
    log = tmp_path / "a.log"
    lines = [f"line {number}" for number in range(100)]
    log.write_bytes(
        "\n".join(lines).encode() + b"\n 10%\r 50%\rdone \xff\r\n\x1b[31mred\x1b[0m\x00\n"
        + b"x" * 1000 + b"\n\n"
    )  # fmt: skip
    found = log_end(log).splitlines()
    assert len(found) == LINES
    assert found[0] == f"line {100 - LINES + 3}"
    assert found[-3:] == ["done \ufffd", "red", "x" * LONGEST + " ..."]
    assert log_end(tmp_path / "none.log") == ""
    assert log_end(Path("\0")) == ""


def test_failures_of_one_reason_are_told_once(tmp_path: Path) -> None:
    report = made_report(1000 // CELLS)
    failed = [cell for cell in report.cells if cell.status == "failed"]
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs" / f"{failed[0].id}.log").write_text("Killed\n", encoding="utf-8")
    (one,) = failures(report, tmp_path)
    assert one.ids == [cell.id for cell in failed]
    assert (one.reason, one.more) == (
        "the runner was killed by SIGKILL (out of memory?)", "last stage: quantize",
    )  # fmt: skip
    assert one.log == "Killed"
    (without,) = failures(report, None)
    assert (without.log, without.path) == ("", "")


# -- pictures


def test_pictures_are_well_formed(report: Report, tmp_path: Path) -> None:
    written = write_plots(report, tmp_path / "plots")
    names = {path.stem for path in written}
    assert {name.partition("-")[0] for name in names} == {
        "tradeoff", "speed", "sizes", "layers", "positions", "steps", "memory",
    }  # fmt: skip
    assert len(written) == 2 * len(names) == 2 * 8
    for path in written:
        if path.suffix == ".svg":
            root = ET.fromstring(path.read_text(encoding="utf-8"))
            assert root.tag == f"{SVG}svg"
            assert "var(" not in path.read_text(encoding="utf-8")
        else:
            head = path.read_bytes()[:24]
            assert head.startswith(b"\x89PNG\r\n\x1a\n")
            assert struct.unpack(">II", head[16:])[0] > 1000


def test_a_picture_has_a_point_for_each_judged_cell(report: Report, tmp_path: Path) -> None:
    write_plots(report, tmp_path)
    root = ET.parse(tmp_path / "tradeoff-phi-4-mini-device_000.svg").getroot()
    text = " ".join(one.text or "" for one in root.iter(f"{SVG}text"))
    assert "budget" in text
    assert "size of the artifact" in text
    judged = [c for c in report.cells if c.device == "device_000" and c.quality]
    groups = [g for g in root.iter(f"{SVG}g") if "mark-symbol role-mark" in (g.get("class") or "")]
    assert len(list(groups[0])) == len(judged)


def test_pictures_have_names_that_files_can_have() -> None:
    report = hostile_report()
    names = [name for name, _ in pictures(report)]
    assert len({name.lower() for name in names}) == len(names)
    assert not any(set(name) & set('/\\:*?"<>|\0 ') for name in names)
    twin = report_of([changed(report.cells[0], device="A"), changed(report.cells[1], device="a")],
                     report.model.name)  # fmt: skip
    low = [name.lower() for name, _ in pictures(twin)]
    assert len(set(low)) == len(low)


# -- the script


def test_the_script_is_made_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    made: list[str] = []
    import vl_convert

    def make(snippet: str) -> str:
        made.append(snippet)
        return snippet

    monkeypatch.setattr(vl_convert, "javascript_bundle", make)
    first = plot_script()
    assert first
    assert b"vegaEmbed" in gzip.decompress(first)
    assert plot_script() == first
    assert len(made) == 1
    (kept,) = (tmp_path / "phibuild" / "plots").iterdir()
    kept.write_bytes(first[:-9])  # cut off
    assert plot_script() == first
    assert len(made) == 2
    kept.write_bytes(b"no gzip at all")
    assert plot_script() == first
    monkeypatch.setattr(metadata, "version", lambda name: "9.9")
    plot_script()
    assert len(made) == 4


def test_without_vl_convert_the_page_is_written(
    report: Report, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def gone(name: str) -> str:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "version", gone)
    monkeypatch.setitem(sys.modules, "vl_convert", None)
    monkeypatch.setattr(page_module, "plot_script", plot_script)
    assert plot_script() is None
    assert "The plots are not drawn" in report_html(report)
    with pytest.raises(ConfigError, match="vl-convert-python"):
        write_plots(report, tmp_path)


# -- the command line


def ended(*words: str) -> object:
    """Run a command line; return its exit code."""
    with pytest.raises(SystemExit) as found:
        main(list(words))
    return found.value.code


@pytest.fixture
def outputs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, report: Report) -> Path:
    monkeypatch.chdir(tmp_path)
    run = tmp_path / "outputs" / "made" / "latest"
    run.mkdir(parents=True)
    good = [cell for cell in report.cells if cell.best]
    text = document_text(report_of(good, report.model.name))
    (run / "report.json").write_text(text, encoding="utf-8")
    return run


def test_html_to_a_file(outputs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert ended("report", "--html", "page.html") == 0
    assert capsys.readouterr().out == "page.html\n"
    assert Path("page.html").read_text(encoding="utf-8").startswith("<!doctype html>")
    assert not (outputs / "report.html").exists()


@pytest.mark.parametrize("file", ["no/such/folder/page.html", "."])
def test_html_to_where_it_cannot_be(
    outputs: Path, file: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert ended("report", "--html", file) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith(f"error: {file}: cannot be written: ")
    assert [path.name for path in Path().iterdir()] == ["outputs"]


def test_plots_to_where_they_cannot_be(outputs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("file").touch()
    assert ended("report", "--plots", "file") == 2
    assert "file: cannot be written" in capsys.readouterr().err


def test_open_writes_the_page_of_an_older_run_and_opens_it(
    outputs: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    opened: list[str] = []

    def shown(address: str) -> bool:
        opened.append(address)
        return True

    monkeypatch.setattr(webbrowser, "open", shown)
    assert ended("report", "--open") == 0
    page = outputs / "report.html"
    assert opened == [page.resolve().as_uri()]
    page.write_text("as it was", encoding="utf-8")
    assert ended("report", "--open") == 0
    assert page.read_text(encoding="utf-8") == "as it was"
    capsys.readouterr()
    monkeypatch.setattr(webbrowser, "open", lambda address: False)
    assert ended("report", "--open") == 2
    assert "no browser was found here" in capsys.readouterr().err
    with pytest.raises(ConfigError, match="set BROWSER"):
        open_page(page)


def test_a_build_leaves_its_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    run = Run(tmp_path)
    run.built("Q4_K_M", 2_000_000, 0.1)
    run.result("Q8_0").reason = "killed by SIGKILL"
    with new_run(run.output, "mine") as folder:
        log = folder / "logs" / "build.log"
        log.write_text("the last words\n", encoding="utf-8")
        run.result("Q8_0").logs.append(log)
        write_run(folder, run.plan, run.results, run.store, run.report())
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert "killed by SIGKILL" in page
    assert "the last words" in page
