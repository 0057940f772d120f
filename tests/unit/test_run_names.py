"""What runs are called on the command line, and `phibuild diff` itself."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from conftest import CommandLine
from phibuild.errors import ConfigError
from phibuild.report.documents import Report
from phibuild.report.runs import find_report, find_run, run_before, runs_of
from phibuild.schema import document_text
from support.report_cells import some_cell, some_report

TIMES = ("2026-01-01_10-00-00", "2026-01-01_10-00-00-2", "2026-01-01_10-00-00-10",
         "2026-01-02_09-00-00")  # fmt: skip


def write(output: Path, recipe: str, name: str, report: Report | None = None) -> Path:
    folder = output / recipe / name
    folder.mkdir(parents=True)
    found = report or some_report(some_cell(), recipe=recipe)
    (folder / "report.json").write_text(document_text(found), "utf-8")
    return folder


@pytest.fixture
def output(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Runs of two recipes, the newest of `mine`; one of them has not ended."""
    monkeypatch.chdir(tmp_path)
    output = tmp_path / "outputs"
    for name in TIMES:
        write(output, "mine", name)
    write(output, "other", "2026-01-01_10-00-00")
    write(output, "other", "2026-01-03_00-00-00")
    (output / "mine" / "2026-01-04_00-00-00").mkdir()
    for number, (recipe, name) in enumerate((("other", "2026-01-03_00-00-00"), ("mine", TIMES[3]))):
        (output / recipe / "latest").symlink_to(name)
        os.utime(output / recipe / name / "report.json", (number, number))
    return output


@pytest.mark.parametrize(
    ("name", "folder"),
    [
        (None, f"mine/{TIMES[3]}"), ("latest", f"mine/{TIMES[3]}"), ("mine", f"mine/{TIMES[3]}"),
        ("latest~1", f"mine/{TIMES[2]}"), ("mine~0", f"mine/{TIMES[3]}"),
        ("mine~2", f"mine/{TIMES[1]}"), ("mine~3", f"mine/{TIMES[0]}"),
        ("other", "other/2026-01-03_00-00-00"), ("other~1", "other/2026-01-01_10-00-00"),
        (TIMES[1], f"mine/{TIMES[1]}"), (f"mine/{TIMES[0]}", f"mine/{TIMES[0]}"),
        (f"{TIMES[3]}~1", f"mine/{TIMES[2]}"), (f"outputs/mine/{TIMES[1]}", f"mine/{TIMES[1]}"),
        ("outputs/mine/latest", f"mine/{TIMES[3]}"),
        (f"outputs/mine/{TIMES[1]}~1", f"mine/{TIMES[0]}"),
    ],
)  # fmt: skip
def test_a_run_by_its_name(output: Path, name: str | None, folder: str) -> None:
    assert find_run(output, name).resolve() == (output / folder).resolve()
    assert find_report(output, name).resolve() == (output / folder / "report.json").resolve()


@pytest.mark.parametrize(
    ("name", "what"),
    [
        ("mine~4", "no run 'mine~4': there are not so many before it"),
        ("mina", "did you mean 'mine'"), ("2026-01-01_10-00-00", "several runs"),
        ("2026-01-04_00-00-00", "no run"), ("nothing~1", "no run 'nothing'"), ("~nobody", "no run"),
        ("a" * 5000, "no run"), ("a\0b", "no run"), ("~1", "no run '~1'"),
        ("mine~99999999999", "no run"),
    ],
)  # fmt: skip
def test_a_run_that_is_not_there(output: Path, name: str, what: str) -> None:
    with pytest.raises(ConfigError) as error:
        find_report(output, name)
    assert what in str(error.value)


def test_runs_are_sorted_by_time_and_number(output: Path) -> None:
    assert [path.name for path in runs_of(output, "mine")] == list(reversed(TIMES))
    assert runs_of(output, "nobody's") == []
    unfinished = output / "mine" / "2026-01-04_00-00-00"
    before = run_before(unfinished)
    assert before is not None
    assert before.name == TIMES[3]
    assert run_before(output / "mine" / TIMES[0]) is None
    assert run_before(output / "releases") is None


@pytest.fixture
def site(phibuild: CommandLine) -> CommandLine:
    output = phibuild.folder / "outputs"
    write(output, "mine", TIMES[0])
    larger = some_report(some_cell(size_bytes=3_000_000, artifact_digest="e"), recipe="mine")
    write(output, "mine", TIMES[3], larger)
    (output / "mine" / "latest").symlink_to(TIMES[3])
    return phibuild


def test_diff_on_the_command_line(site: CommandLine) -> None:
    done = site("diff")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"A mine/{TIMES[0]} (mine, phibuild 0.1.0)\nB mine/{TIMES[3]}")
    assert "larger: phi.pi.llamacpp.int4\n    size 2.00 MB -> 3.00 MB, +50.0 %" in done.stdout
    assert site("diff", "mine~1", "mine").stdout == done.stdout
    path = f"outputs/mine/{TIMES[0]}/report.json"
    assert site("diff", path).stdout == done.stdout
    failed = site("diff", "--fail-if", "size>+1%", "gone", GITHUB_ACTIONS="true")
    assert failed.returncode == 3
    assert "::error title=size>+1%25::phi.pi.llamacpp.int4: size" in failed.stdout
    assert site("diff", "--fail-if", "size>+50%").returncode == 0
    assert site("diff", "latest", "latest~1", "--fail-if", "size>+1%").returncode == 0


def test_diff_as_json_and_as_markdown(site: CommandLine) -> None:
    done = site("diff", "--json", "--fail-if", "size>+1%", GITHUB_ACTIONS="true")
    assert done.returncode == 3
    found = json.loads(done.stdout)
    assert found["conditions"][0]["cells"][0]["id"] == "phi.pi.llamacpp.int4"
    assert found["totals"] == {"larger": 1}
    assert done.stderr.startswith("::error ")
    page = site("diff", "--markdown").stdout
    assert page.startswith(f"# `mine/{TIMES[3]}` beside `mine/{TIMES[0]}`\n")


@pytest.mark.parametrize(
    ("words", "what"),
    [
        (("diff", "nothing"), "no run 'nothing'"),
        (("diff", "--fail-if", "kl>5%"), "'kl>5%' is no condition"),
        (("diff", "--fail-if", "kl>+5%", "mine"), "'mine' is no condition"),
        (("diff", "--fail-if"), "expected at least one argument"),
        (("diff", "--json", "--markdown"), "--json and --markdown both print"),
        (("report", "--csv", "--markdown"), "--markdown and --csv all print"),
        (("diff", "a", "b", "c"), "unrecognized arguments: c"),
    ],
)
def test_wrong_words(site: CommandLine, words: tuple[str, ...], what: str) -> None:
    done = site(*words)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: ")
    assert what in done.stderr
