"""GitHub Actions: annotations and the job's summary, by GitHub's own rules."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from conftest import CommandLine
from phibuild.errors import Problem
from phibuild.report.annotations import annotation, limited, problem_annotation
from phibuild.report.documents import Gate, Report
from phibuild.report.github import report_annotations, report_to_actions
from phibuild.report.markdown import report_page
from support.report_cells import lost, some_cell, some_report


def report(failed: int = 1) -> Report:
    gate = Gate(name="kl", limit=0.05, value=0.1, passed=False)
    return some_report(
        some_cell("phi.pi.llamacpp.int4"),
        some_cell("phi.mac.mlx.int4", gates=[gate]),
        *(lost(f"phi.mac.mlx.int8.v{n}", "failed", "killed\nlog") for n in range(failed)),
    )


def unescape(line: str) -> tuple[str, str, str]:
    """Return command, title and message as the runner reads them (actions/runner,
    ActionCommand.cs: properties end at the first '::', then escapes are taken back)."""
    head, _, message = line.removeprefix("::").partition("::")
    command, _, properties = head.partition(" ")
    pairs = (("%0D", "\r"), ("%0A", "\n"), ("%3A", ":"), ("%2C", ","), ("%25", "%"))
    (title,) = (one.removeprefix("title=") for one in properties.split(","))
    for code, sign in pairs:
        title = title.replace(code, sign)
    for code, sign in (*pairs[:2], pairs[4]):
        message = message.replace(code, sign)
    return command, title, message


@given(st.text(max_size=40), st.text(max_size=40))
def test_any_message_is_one_command(message: str, title: str) -> None:
    line = annotation("error", message, title)
    assert "\n" not in line
    assert "\r" not in line
    assert unescape(line) == ("error", title, message)


def test_what_failed_is_an_error_and_what_to_ship_a_notice() -> None:
    assert [unescape(line) for line in report_annotations(report())] == [
        ("error", "a gate is missed", "phi.mac.mlx.int4: kl 0.1 of at most 0.05 nats"),
        ("error", "a cell failed", "phi.mac.mlx.int8.v0: killed"),
        ("notice", "to ship",
         "pi: llamacpp int4 Q4_0, 2.00 MB, the only one that was judged and fits the device"),
        ("warning", "nothing to ship",
         "mac: none can be shipped; mlx int4 Q4_0: kl 0.1 of at most 0.05 nats"),
    ]  # fmt: skip


def test_ten_annotations_of_a_kind_are_shown() -> None:
    lines = limited(list(report_annotations(report(failed=30))))
    errors = [line for line in lines if line.startswith("::error")]
    assert len(errors) == 10
    assert unescape(errors[-1])[2] == "22 more: see the job's summary and its log"
    assert any(line.startswith("::notice") for line in lines)


def run(monkeypatch: pytest.MonkeyPatch, summary: Path | None, *, quiet: bool = False) -> None:
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    if summary:
        monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(summary))
    found = report()
    report_to_actions(found, lambda limit: report_page(found, limit=limit), quiet=quiet)


def test_the_summary_is_appended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    summary = tmp_path / "summary"
    summary.write_text("before", "utf-8")
    run(monkeypatch, summary)
    assert summary.read_text("utf-8") == "before\n" + report_page(report())
    assert capsys.readouterr().out.startswith("::error title=")
    run(monkeypatch, summary, quiet=True)
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith("::error title=")


@pytest.mark.parametrize("taken", [(1 << 20) - 4000, (1 << 20) - 1000, 1 << 20, 2 << 20])
def test_the_summary_has_one_mebibyte(
    taken: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    summary = tmp_path / "summary"
    summary.write_bytes(b"x" * taken)
    run(monkeypatch, summary)
    assert summary.stat().st_size <= max(taken, 1 << 20)
    if taken > (1 << 20) - 2000:
        assert summary.stat().st_size == taken
        assert "summary" in capsys.readouterr().err


def test_a_summary_that_cannot_be_written_is_no_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run(monkeypatch, tmp_path)
    assert "the job's summary cannot be written" in capsys.readouterr().err


def test_elsewhere_nothing_is_written(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("GITHUB_ACTIONS", "GITHUB_STEP_SUMMARY"):
        monkeypatch.delenv(name, raising=False)
    report_to_actions(report(), lambda limit: "", quiet=False)
    assert capsys.readouterr() == ("", "")


def test_an_error_stands_at_its_line(phibuild: CommandLine) -> None:
    recipe = phibuild.folder / "recipes" / "mine.yaml"
    recipe.parent.mkdir()
    recipe.write_text("devices:\n  pi: {llamacpp: [int4]}\n", "utf-8")
    done = phibuild("plan", "recipe=mine", GITHUB_ACTIONS="true")
    assert (done.returncode, done.stdout) == (2, "")
    line = next(line for line in done.stderr.splitlines() if line.startswith("::"))
    assert line.startswith(
        "::error file=recipes/mine.yaml,line=2,title=phibuild::unknown device 'pi'%0A"
    )
    assert "::" not in phibuild("plan", "recipe=mine").stderr


def test_a_problem_without_a_file_says_where_it_is() -> None:
    problem = Problem("100 % wrong", "command line: a=1", "leave it")
    assert problem_annotation(problem) == (
        "::error title=phibuild::command line: a=1: 100 %25 wrong%0Aleave it"
    )
