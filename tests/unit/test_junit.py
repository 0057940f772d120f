"""JUnit XML of a report, as a standard parser reads it, and what its schemas ask for."""

from __future__ import annotations

import re
from pathlib import Path
from xml.etree import ElementTree

from hypothesis import example, given
from hypothesis import strategies as st
from junitparser import Error, Failure, JUnitXml, Skipped

from conftest import CommandLine
from phibuild.report.documents import Gate, GateBaseline, Report
from phibuild.report.junit import report_junit
from phibuild.schema import document_text
from support.report_cells import lost, some_cell, some_report

STARTED = "2026-11-29T07:10:06"


def gate(passed: bool | None, **changes: object) -> Gate:
    given = {"name": "kl", "limit": 0.05, "value": 0.1, "passed": passed, **changes}
    return Gate.model_validate(given)


def report() -> Report:
    base = GateBaseline(
        run="releases/1.3.0", value=None, factor=1.05, margin=0.0, windows=None,
        problem="releases/1.3.0 has no such cell",
    )  # fmt: skip
    return some_report(
        some_cell("phi.pi.llamacpp.int4.Q4_0", gates=[gate(True), gate(None, baseline=base)]),
        some_cell("phi.pi.llamacpp.int4.Q4_K_M", gates=[gate(False)], status="cached"),
        some_cell("phi.mac.mlx.int4", gates=[gate(False, name="fits_budget", limit=True,
                                                  value=False)]),
        lost("phi.mac.mlx.int8", "failed", "killed by SIGKILL\nthe log"),
        lost("phi.mac.mlx.fp16", "skipped", "no Metal"),
    )  # fmt: skip


def test_a_parser_reads_cells_and_gates() -> None:
    suites = JUnitXml.fromstring(report_junit(report(), STARTED).encode())
    assert [suite.name for suite in suites] == ["phi.pi", "phi.mac"]
    pi, mac = suites
    assert (pi.tests, pi.failures, pi.errors, pi.skipped) == (5, 1, 0, 1)
    assert (mac.tests, mac.failures, mac.errors, mac.skipped) == (4, 1, 1, 1)
    assert (pi.timestamp, pi.hostname) == (STARTED, "localhost")
    found = {(case.classname, case.name): case for suite in suites for case in suite}
    assert len(found) == 9  # no two of one name
    names = [name for _, name in found]
    assert names[:5] == [
        "int4.Q4_0", "int4.Q4_0: kl", "int4.Q4_0: kl beside releases/1.3.0", "int4.Q4_K_M",
        "int4.Q4_K_M: kl",
    ]  # fmt: skip
    assert found["phi.pi.llamacpp", "int4.Q4_0"].is_passed
    assert found["phi.pi.llamacpp", "int4.Q4_0"].time == 1.5
    (missing,) = found["phi.pi.llamacpp", "int4.Q4_0: kl beside releases/1.3.0"].result
    assert isinstance(missing, Skipped)
    assert missing.message == "releases/1.3.0 has no such cell"
    (missed,) = found["phi.pi.llamacpp", "int4.Q4_K_M: kl"].result
    assert isinstance(missed, Failure)
    assert missed.message == "kl 0.1 of at most 0.05 nats"
    (broken,) = found["phi.mac.mlx", "int8"].result
    assert isinstance(broken, Error)
    assert (broken.message, broken.text) == ("killed by SIGKILL", "killed by SIGKILL\nthe log")
    (skipped,) = found["phi.mac.mlx", "fp16"].result
    assert isinstance(skipped, Skipped)
    assert skipped.message == "no Metal"


def test_it_has_what_the_schemas_ask_for() -> None:
    """Windy Road's JUnit.xsd is the strictest: these attributes, these elements in this order."""
    root = ElementTree.fromstring(report_junit(report(), STARTED))
    assert (root.tag, root.attrib) == ("testsuites", {})
    for number, suite in enumerate(root):
        assert {"name", "package", "id", "timestamp", "hostname", "tests", "failures", "errors",
                "skipped", "time"} == set(suite.attrib)  # fmt: skip
        assert suite.attrib["id"] == str(number)
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d", suite.attrib["timestamp"])
        tags = [child.tag for child in suite]
        assert (tags[0], tags[-2:]) == ("properties", ["system-out", "system-err"])
        assert set(tags[1:-2]) == {"testcase"}
        for case in suite.iter("testcase"):
            assert set(case.attrib) == {"name", "classname", "time"}
            assert re.fullmatch(r"\d+\.\d{3}", case.attrib["time"])
            assert len(case) <= 1
            for found in case:
                assert "type" in found.attrib or found.tag == "skipped"


@given(st.text(max_size=40))
@example("\x00\x1b[31m\ufffe\ud800]]>&<\r\n\t\"'")
def test_any_text_is_xml(text: str) -> None:
    cells = [lost("phi.pi.llamacpp.int4", "failed", text), some_cell(f"p{text}.pi.x.int4")
             if "." not in text else some_cell()]  # fmt: skip
    root = ElementTree.fromstring(report_junit(some_report(*cells), STARTED).encode("utf-8"))
    (error,) = root.iter("error")
    kept = re.sub("[^\t\n\r -\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]", "\ufffd", text)
    # A parser has one line feed for every line end (XML 1.0, 2.11).
    assert (error.text or "") == kept.replace("\r\n", "\n").replace("\r", "\n")


def test_the_command_line(phibuild: CommandLine) -> None:
    folder = phibuild.folder / "outputs" / "mine" / "2026-11-29_07-10-06"
    folder.mkdir(parents=True)
    (folder / "report.json").write_text(document_text(report()), "utf-8")
    done = phibuild("report", str(folder), "--junit", "results.xml")
    assert (done.returncode, done.stdout) == (1, "")  # the run's: a cell failed
    text = (phibuild.folder / "results.xml").read_text("utf-8")
    assert sum(suite.tests for suite in JUnitXml.fromstring(text.encode())) == 9
    assert f'timestamp="{STARTED}"' in text
    assert phibuild("report", str(folder), "--junit", "-").stdout == text
    done = phibuild("report", str(folder), "--junit", "-", "--csv")
    assert (done.returncode, done.stdout) == (2, "")
    assert "--csv and --junit - all print" in done.stderr
    done = phibuild("report", str(folder), "--junit", "no/such/folder/x.xml")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: ")
    assert not Path(phibuild.folder / "no").exists()
