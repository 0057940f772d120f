"""Reports: the contract of report.json, the best mark, tables, run folders, exit codes."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path

import pytest

from phibuild.commands.build import exit_code
from phibuild.errors import ConfigError, StoreError
from phibuild.planning.making import make_plan
from phibuild.report.data import make_report
from phibuild.report.documents import Provenance, Report, ReportCell
from phibuild.report.markdown import report_page
from phibuild.report.runs import find_run, read_report
from phibuild.report.table import headline, report_table, summary_lines
from phibuild.report.writing import check_output, new_run, write_run
from phibuild.schema import document_text
from phibuild.store.manifest import check_artifact, read_artifact
from support.documents import some_measure
from support.report_runs import Run, run

__all__ = ["run"]

CELL_KEYS = {
    "id", "device", "backend", "precision", "variant", "format", "status", "reason", "size_bytes",
    "estimated_bytes", "bits_per_weight", "ratio_to_source", "build_seconds", "peak_rss_bytes",
    "quality", "speed", "device_memory_bytes", "fits_budget", "gates", "artifact",
    "artifact_digest",
}  # fmt: skip


@pytest.fixture
def done(run: Run) -> Run:
    run.build_all()
    return run


def cells(report: Report) -> dict[str, ReportCell]:
    return {cell.id.split(".", 1)[1]: cell for cell in report.cells}


def read(report: Report, *lacking: str) -> Report:
    """Return a report as it is read again, without some keys, as an older phibuild left it."""
    data = json.loads(document_text(report))
    for place in (data, *data["models"], *data["cells"], data["model"]):
        for key in lacking:
            place.pop(key, None)
    return Report.read(data)


def test_the_contract(done: Run) -> None:
    report = json.loads(document_text(done.report()))
    assert {"schema_version", "recipe", "command", "host", "model", "cells", "totals"} <= set(
        report
    )
    assert {"name", "source_digest", "parameters", "bytes"} <= set(report["model"])
    assert report["schema_version"] == 1
    for cell in report["cells"]:
        assert set(cell) >= CELL_KEYS
        assert cell["status"] in ("built", "cached", "skipped", "failed")
        for gate in cell["gates"]:
            assert set(gate) == {"name", "limit", "value", "passed", "baseline"}
    built = report["cells"][0]
    assert built["id"].endswith("ai_pc_intel.llamacpp.int4")
    assert {"kl_mean", "kl_p99", "perplexity", "reference_perplexity", "top1"} <= set(
        built["quality"]
    )
    assert set(built["speed"]) == {
        "load_seconds", "prefill_tokens_per_second", "decode_tokens_per_second", "peak_rss_bytes",
    }  # fmt: skip


def test_figures_of_a_cell(done: Run) -> None:
    report = done.report()
    cell = cells(report)["ai_pc_intel.llamacpp.int4"]
    assert (cell.status, cell.variant, cell.format) == ("built", "Q4_K_M", "GGUF")
    assert (cell.size_bytes, cell.bits_per_weight) == (2_000_000, 4.5)
    assert cell.ratio_to_source == pytest.approx(2_000_000 / report.model.bytes)
    assert cell.quality
    assert cell.quality.kl_mean == 0.1
    assert (cell.build_seconds, cell.build_own_seconds, cell.build_shared_seconds) == (1.5, 0.5, 1)
    assert cell.artifact == "artifacts/ai_pc_intel/phi3-tiny-trained-llamacpp-int4"
    assert cell.device_memory_bytes
    assert cell.estimated_bytes
    assert cell.device_memory_bytes > cell.estimated_bytes
    assert cell.fits_budget is True
    assert {gate.name: gate.passed for gate in cell.gates} == {"kl": True, "size": True}


def test_shared_cells_have_the_same_artifact(done: Run) -> None:
    found = cells(done.report())
    one, two = found["ai_pc_intel.llamacpp.int4"], found["intel_n100.llamacpp.int4"]
    assert one.artifact_digest == two.artifact_digest
    assert one.artifact != two.artifact


def test_totals(done: Run) -> None:
    totals = done.report().totals
    assert (totals.built, totals.cached, totals.skipped, totals.failed) == (3, 1, 1, 0)
    assert totals.gates_failed == 2
    assert totals.size_bytes == 7_000_000  # the shared artifact counts once


def test_a_skipped_cell(done: Run) -> None:
    cell = cells(done.report())["ai_pc_intel.ort_genai.fp16"]
    assert cell.status == "skipped"
    assert cell.reason
    assert (cell.artifact, cell.size_bytes, cell.gates) == (None, None, [])


def test_the_best_of_each_device(done: Run) -> None:
    """The smallest that fits and keeps its gates: OpenVINO's is smaller but lost too much."""
    best = [name for name, cell in cells(done.report()).items() if cell.best]
    assert best == ["ai_pc_intel.llamacpp.int4", "intel_n100.llamacpp.int4"]


@pytest.mark.case(
    "building",
    "`*` after Ctrl-C or with evaluation=none",
    "-",
    "no artifact that was not judged is best, in table and report.json",
)
def test_nothing_is_best_that_was_not_judged(run: Run) -> None:
    """After `evaluation=none`, or Ctrl-C before judging."""
    run.built("Q4_K_M", 2_000_000, None)
    run.built("Q8_0", 2_500_000, 0.001)
    report = run.report(interrupted=True)
    assert [name for name, cell in cells(report).items() if cell.best] == [
        "ai_pc_intel.llamacpp.int8"
    ]
    run.result("Q8_0").measure = None
    report = run.report()
    assert not any(cell.best for cell in report.cells)
    assert "*" not in report_table(report)
    assert "nothing was judged: nobody knows" in report_page(report)


@pytest.mark.parametrize(
    ("perplexity", "warns"), [(8.0, False), (1000.0, False), (1100.0, True), (90_000.0, True)]
)
@pytest.mark.case(
    "building",
    "an original whose perplexity is near the vocabulary's size",
    "-",
    "warned of",
)
def test_an_original_that_is_as_good_as_guessing_is_warned_of(
    perplexity: float, warns: bool, run: Run
) -> None:
    tokens = run.plan.matrix.models["phi3-tiny-trained"].files.tokens
    assert 2000 < tokens < 2200
    run.built("Q4_K_M", 2_000_000, 0.1)
    run.result("Q4_K_M").measure = some_measure(reference_perplexity=perplexity)
    report = run.report()
    assert report.model.reference_perplexity == perplexity
    lines = [line for line in summary_lines(report) if line.startswith("WARNING")]
    if not warns:
        assert (lines, report.model.warnings) == ([], [])
        return
    (text,) = report.model.warnings
    assert f"perplexity of {perplexity:,.0f} over this text" in text
    assert f"guessing among its {tokens:,} tokens" in text
    assert lines == [f"WARNING phi3-tiny-trained: {text}"]
    assert "> **Warning** `phi3-tiny-trained`: the original itself" in report_page(report)


def test_notes_of_cells_are_said_once(done: Run) -> None:
    report = done.report()
    noted = [
        cell.model_copy(update={"notes": ["right up to 64 tokens"] if number < 2 else []})
        for number, cell in enumerate(report.cells)
    ]
    report = report.model_copy(update={"cells": noted})
    (line,) = (line for line in summary_lines(report) if "64" in line)
    first, second = (cell.id for cell in report.cells[:2])
    assert line == f"note    {first}, {second}: right up to 64 tokens"
    assert not any("64" in line for line in summary_lines(read(report, "notes")))


def test_a_failed_cell(run: Run) -> None:
    run.built("Q4_K_M", 2_000_000, 0.1)
    run.result("Q8_0").reason = "killed by SIGKILL\nthe last line"
    cell = cells(run.report())["ai_pc_intel.llamacpp.int8"]
    assert (cell.status, cell.artifact, cell.best) == ("failed", None, False)
    assert cell.reason
    assert cell.reason.startswith("killed by SIGKILL")
    lines = summary_lines(run.report())
    position = next(n for n, text in enumerate(lines) if "ai_pc_intel.llamacpp.int8" in text)
    assert lines[position].startswith("FAILED")
    assert lines[position + 1].strip() == "the last line"


def test_exit_codes(run: Run) -> None:
    assert exit_code(run.report()) == 1
    assert exit_code(run.report(interrupted=True)) == 130
    for artifact in run.plan.artifacts:
        run.built(artifact.variant.name, 2_000_000, 0.3)
    assert exit_code(run.report()) == 3
    for result in run.results.values():
        result.measure = some_measure(0.01)
    assert exit_code(run.report()) == 0
    for result in run.results.values():
        result.measure = None
    assert exit_code(run.report()) == 0  # built without judging


def test_the_table(done: Run) -> None:
    report = done.report()
    lines = report_table(report).splitlines()
    assert len(lines) == 2 + 4  # the skipped one is below
    assert "Q4_K_M *" in lines[2]
    assert "2.00" in lines[2]
    assert "gate failed: kl" in "\n".join(lines)
    notes = "\n".join(summary_lines(report))
    assert "skipped phi3-tiny-trained.ai_pc_intel.ort_genai.fp16: " in notes
    assert re.search(r"GATE .*openvino\.int4: kl 0\.3, limit 0\.2", notes)


@pytest.mark.parametrize(
    ("rate", "shown"), [(0.3024, "0.30"), (6.48, "6.5"), (37.9, "38"), (17088.4, "17,088")]
)
def test_speeds_of_any_size_are_shown(rate: float, shown: str, done: Run) -> None:
    report = done.report()
    cell = next(cell for cell in report.cells if cell.speed)
    assert cell.speed
    speed = cell.speed.model_copy(update={"decode_tokens_per_second": rate})
    cell = cell.model_copy(update={"speed": speed})
    assert shown in report_table(report.model_copy(update={"cells": [cell]})).split()


def test_nothing_to_do_is_said(done: Run) -> None:
    assert "nothing to do" not in headline(done.report())
    for artifact in done.plan.artifacts:
        assert artifact.measure_key is not None
        done.store.publish_measure(artifact.measure_key, some_measure())
    again = make_plan(done.plan.matrix, done.plan.evaluation, done.store)
    for result in done.results.values():
        result.status = "cached"
    report = make_report(
        again, done.execution(), done.store,
        recipe="mine", configuration="a: 1\n", command="x", seconds=1,
    )  # fmt: skip
    assert report.totals.skipped == 1
    assert "nothing to do" in headline(report)


def test_steps_and_what_bounded_the_run(done: Run) -> None:
    report = done.report()
    build, judging = report.steps
    assert build.id == "build.m.llamacpp"
    assert build.beside == ["reference.m"]
    assert (build.cpu_seconds, build.peak_anonymous_bytes) == (3.5, 200 << 20)
    assert judging.waited_seconds == {"cores": 3.0}
    assert judging.peak_anonymous_bytes is None
    line = next(line for line in summary_lines(report) if "bounded by" in line)
    assert line == (
        "note    bounded by the steps themselves 75%, cores 25%; 1 of 2 steps ran beside another "
        "within 2 cores and 8.59 GB; the largest took 210 MB"
    )
    assert "<summary>2 steps</summary>" in report_page(report)
    older = read(report, "steps", "executor")
    assert not any("bounded by" in line for line in summary_lines(older))
    assert "steps</summary>" not in report_page(older)


def test_what_decides_the_bytes_is_named(done: Run) -> None:
    report = done.report()
    assert report.configuration == "recipe: mine\n"
    assert report.configuration_sha256 == hashlib.sha256(b"recipe: mine\n").hexdigest()
    cell = next(cell for cell in report.cells if cell.variant == "Q4_K_M")
    assert cell.provenance == Provenance(
        key=done.result("Q4_K_M").artifact.key, source_digest="s", activations=None,
        phibuild_version="0.1.0", builder_digest="b", toolchain_digest="t",
    )  # fmt: skip


def test_a_run_folder(done: Run) -> None:
    with new_run(done.output, "mine") as folder, new_run(done.output, "mine") as second:
        assert folder != second
        assert sorted([second.name, folder.name])[0] == folder.name
        log = folder / "logs" / "build.log"
        log.write_text("what the runner said\n", encoding="utf-8")
        done.result("Q4_K_M").logs.append(log)
        report = done.report()
        write_run(folder, done.plan, done.results, done.store, report)
    assert sorted(path.name for path in folder.iterdir()) == [
        "artifacts", "logs", "report.html", "report.json", "report.md",
    ]  # fmt: skip
    assert read_report(folder) == report
    text = (folder / "report.json").read_text(encoding="utf-8")
    assert text == document_text(report) + "\n"
    assert (folder / "report.md").read_text(encoding="utf-8").startswith("# mine")
    assert (done.output / "mine" / "latest").resolve() == folder.resolve()
    for cell in report.cells:
        if cell.artifact:
            linked = read_artifact(folder / cell.artifact)
            assert linked is not None
            assert check_artifact(linked) == []
            assert linked.digest == cell.artifact_digest
            assert (linked.folder / "model.bin").stat().st_nlink > 1
            said = (folder / "logs" / f"{cell.id}.log").read_text(encoding="utf-8")
            assert said.endswith(f"{cell.id}: {cell.status}\n")
    first = folder / "logs" / "phi3-tiny-trained.ai_pc_intel.llamacpp.int4.log"
    assert first.read_text(encoding="utf-8").startswith("what the runner said")
    for name in (None, "mine", str(folder), f"mine/{folder.name}"):
        assert find_run(done.output, name).resolve() == folder.resolve()


def test_runs_that_are_not_there(tmp_path: Path, done: Run) -> None:
    with pytest.raises(ConfigError, match="no runs here"):
        find_run(done.output, None)
    with new_run(done.output, "mine") as folder:
        write_run(folder, done.plan, done.results, done.store, done.report())
    with pytest.raises(ConfigError, match="did you mean 'mine'"):
        find_run(done.output, "mina")


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("{", "cannot be read"),
        ("[" * 100_000, "cannot be read"),
        ("[]", "is not a phibuild report: it: input should be"),
        ("{}", "is not a phibuild report: phibuild_version: field required"),
    ],
)
def test_damaged_reports(tmp_path: Path, text: str, what: str) -> None:
    (tmp_path / "report.json").write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError, match=rf"report\.json: {what}"):
        read_report(tmp_path)


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"schema_version": 2}, "schema_version: input should be 1"),
        ({"cells": [{"id": 5}]}, "cells.0.id: input should be a valid string"),
        ({"totals": None}, "totals: input should be"),
    ],
)
def test_a_report_of_another_kind(
    done: Run, tmp_path: Path, change: dict[str, object], what: str
) -> None:
    data = json.loads(document_text(done.report()))
    (tmp_path / "report.json").write_text(json.dumps({**data, **change}), encoding="utf-8")
    with pytest.raises(ConfigError, match=what):
        read_report(tmp_path)


def test_what_a_newer_phibuild_says_besides_is_left_out(done: Run, tmp_path: Path) -> None:
    report = done.report()
    data = json.loads(document_text(report))
    first = data["cells"][0]
    for place in (data, data["host"], data["evaluation"], first, first["speed"], first["quality"]):
        place["new"] = 1
    (tmp_path / "report.json").write_text(json.dumps(data), encoding="utf-8")
    assert read_report(tmp_path) == report


def test_an_output_folder_that_cannot_be(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for output in (tmp_path / "file", tmp_path / "file" / "outputs"):
        with pytest.raises(StoreError, match="--output"):
            check_output(output)
    check_output(tmp_path / "a" / "b")
    assert not (tmp_path / "a").exists()
