"""The executor with real toolchains: kills, interruptions, resumption, caching, and what is left.

The model is the embedded one, so a build takes seconds; workers are met right after their start,
while their libraries load.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from conftest import CommandLine
from phibuild.store.store import Store

pytestmark = pytest.mark.cold

RECIPE = """\
devices:
  intel_n100: {llamacpp: [int4, int8]}
  ai_pc_rtx: {pytorch: [int4, int8]}
"""
NONE = "evaluation=none"


@pytest.fixture(scope="module", autouse=True)
def toolchains(toolchain_python: Callable[[str], Path]) -> None:
    for name in ("llamacpp", "pytorch"):
        toolchain_python(name)


@pytest.fixture
def work(phibuild: CommandLine) -> CommandLine:
    write_recipe(phibuild, RECIPE)
    return phibuild


def write_recipe(work: CommandLine, text: str) -> None:
    path = work.folder / "recipes" / "mine.yaml"
    path.parent.mkdir(exist_ok=True)
    path.write_text(text, encoding="utf-8")


def cells(report: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Return backend.precision -> cell."""
    return {f"{cell['backend']}.{cell['precision']}": cell for cell in report["cells"]}


def statuses(work: CommandLine) -> dict[str, str]:
    return {name: cell["status"] for name, cell in cells(work.report("mine")).items()}


@contextlib.contextmanager
def started(work: CommandLine, *words: str) -> Iterator[subprocess.Popen[str]]:
    """Run phibuild in the background; nothing of it is there at the end."""
    process = subprocess.Popen(
        [sys.executable, "-m", "phibuild", *words],
        cwd=work.folder,
        env={**os.environ, "PHIBUILD_STORE": str(work.folder / "store")},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        assert process.stdout is not None
        process.stdout.close()


def workers(process: subprocess.Popen[str], backend: str) -> list[psutil.Process]:
    """Return the runners of a backend that are alive."""
    found = []
    with contextlib.suppress(psutil.NoSuchProcess):
        for child in psutil.Process(process.pid).children(recursive=True):
            with contextlib.suppress(psutil.NoSuchProcess):
                words = child.cmdline()
                if words[-1:] == [backend] and words[-2].endswith("entry.py"):
                    found.append(child)
    return found


def wait_for_worker(process: subprocess.Popen[str], backend: str) -> psutil.Process:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and process.poll() is None:
        found = workers(process, backend)
        if found:
            return found[0]
        time.sleep(0.005)
    raise AssertionError(f"no {backend} worker: {process.communicate()[0]}")


def build_folders(work: CommandLine) -> list[Path]:
    store = work.folder / "store"
    return sorted((store / "artifacts").iterdir()) if (store / "artifacts").is_dir() else []


def whole(work: CommandLine) -> int:
    """Return the number of artifacts in the store; each must be complete."""
    store = Store(work.folder / "store")
    folders = build_folders(work)
    assert all(store.artifact(folder.name) for folder in folders)
    return len(folders)


def test_once_killed_is_tried_again(work: CommandLine) -> None:
    with started(work, "build", "recipe=mine", NONE) as process:
        wait_for_worker(process, "pytorch").kill()
        output = process.communicate(timeout=120)[0]
    assert process.returncode == 0, output
    assert set(statuses(work).values()) == {"built"}


def test_a_worker_that_is_always_killed_fails_alone(work: CommandLine) -> None:
    """Its cells fail with the signal's name; the neighbours go on; the report is written."""
    first = ("~devices.ai_pc_rtx", "devices.intel_n100.llamacpp=[fp16]")
    assert work("build", "recipe=mine", NONE, *first).returncode == 0  # it reads the source
    with started(work, "build", "recipe=mine", NONE) as process:
        while process.poll() is None:
            for worker in workers(process, "pytorch"):
                with contextlib.suppress(psutil.NoSuchProcess):
                    worker.kill()
            time.sleep(0.01)
        output = process.communicate()[0]
    assert process.returncode == 1, output
    assert statuses(work) == {
        "llamacpp.int4": "built", "llamacpp.int8": "built",
        "pytorch.int4": "failed", "pytorch.int8": "failed",
    }  # fmt: skip
    for name in ("int4", "int8"):
        reason = cells(work.report("mine"))[f"pytorch.{name}"]["reason"]
        assert reason.startswith("killed by SIGKILL")
    assert "FAILED" in output
    assert "Traceback" not in output
    assert whole(work) == 3
    again = work("build", "recipe=mine", NONE)  # what failed is tried, what was built is kept
    assert again.returncode == 0, again.stderr
    assert statuses(work) == {
        "llamacpp.int4": "cached", "llamacpp.int8": "cached",
        "pytorch.int4": "built", "pytorch.int8": "built",
    }  # fmt: skip


def test_a_source_that_is_never_read_fails_its_cells(work: CommandLine) -> None:
    with started(work, "build", "recipe=mine", NONE) as process:
        while process.poll() is None:
            for worker in workers(process, "pytorch"):
                with contextlib.suppress(psutil.NoSuchProcess):
                    worker.kill()
            time.sleep(0.01)
        output = process.communicate()[0]
    assert process.returncode == 1, output
    assert "Traceback" not in output
    for cell in cells(work.report("mine")).values():
        assert cell["status"] == "failed"
        assert cell["reason"].startswith("the source: killed by SIGKILL")
    assert whole(work) == 0
    assert work("build", "recipe=mine", NONE).returncode == 0


@pytest.mark.every  # test_faults_signals.py has others like it
def test_an_interruption_leaves_a_report_and_no_process(work: CommandLine) -> None:
    with started(work, "build", "recipe=mine", NONE) as process:
        worker = wait_for_worker(process, "pytorch")
        worker.suspend()  # it would not end by itself
        began = time.monotonic()
        os.kill(process.pid, signal.SIGINT)
        output = process.communicate(timeout=60)[0]
        assert time.monotonic() - began < 15
        assert process.returncode == 130, output
        assert not worker.is_running()
    assert "Traceback" not in output
    report = work.report("mine")
    assert report["totals"]["interrupted"] is True
    for name in ("pytorch.int4", "pytorch.int8"):
        assert cells(report)[name]["reason"] == "interrupted"
    assert list((work.folder / "store" / "tmp").iterdir()) == []
    whole(work)
    again = work("build", "recipe=mine", NONE)
    assert again.returncode == 0, again.stderr


@pytest.mark.every  # test_faults_kill.py has others like it
def test_a_kill_leaves_nothing_partial_and_the_next_run_resumes(work: CommandLine) -> None:
    with started(work, "build", "recipe=mine", NONE) as process:
        worker = wait_for_worker(process, "pytorch")
        deadline = time.monotonic() + 60
        while not build_folders(work) and time.monotonic() < deadline:
            time.sleep(0.005)
        process.kill()
        process.wait()
        gone, _ = psutil.wait_procs([worker], timeout=10)
        assert gone, "the runner outlived phibuild"
    there = whole(work)
    assert there >= 1
    assert not (work.folder / "outputs" / "mine" / "latest").exists()
    again = work("build", "recipe=mine", NONE)
    assert again.returncode == 0, again.stderr
    assert list(statuses(work).values()).count("cached") == there
    assert set(statuses(work).values()) <= {"built", "cached"}
    assert whole(work) == 4


@pytest.mark.every  # test_faults_two.py has others like it
def test_two_at_once_build_everything_once(work: CommandLine) -> None:
    with (
        started(work, "build", "recipe=mine", NONE, "--output", "one") as one,
        started(work, "build", "recipe=mine", NONE, "--output", "two") as two,
    ):
        outputs = [process.communicate(timeout=170)[0] for process in (one, two)]
    assert (one.returncode, two.returncode) == (0, 0), outputs
    reports = [
        json.loads((work.folder / name / "mine" / "latest" / "report.json").read_text("utf-8"))
        for name in ("one", "two")
    ]
    for first, second in zip(*(report["cells"] for report in reports), strict=True):
        assert {first["status"], second["status"]} == {"built", "cached"}
        assert first["artifact_digest"] == second["artifact_digest"]
    assert list((work.folder / "store" / "damaged").iterdir()) == []


def test_life_of_a_recipe(work: CommandLine) -> None:
    """Built and judged; again, nothing; one cell edited; a sweep; outputs; verify; run."""
    first = work("build", "recipe=mine", "evaluation=quick")
    assert first.returncode == 0, first.stderr + first.stdout
    report = work.report("mine")
    assert [cell["status"] for cell in report["cells"]] == ["built"] * 4
    assert all(cell["quality"]["kl_mean"] >= 0 for cell in report["cells"])

    again = work("build", "recipe=mine", "evaluation=quick")
    assert again.returncode == 0
    assert "nothing to do" in again.stdout
    second = work.report("mine")
    assert [cell["status"] for cell in second["cells"]] == ["cached"] * 4
    assert [cell["quality"] for cell in second["cells"]] == [
        cell["quality"] for cell in report["cells"]
    ]

    options = "llamacpp: {int4: {type: Q4_0}, int8: {}}"
    write_recipe(work, RECIPE.replace("llamacpp: [int4, int8]", options))
    edited = work("build", "recipe=mine", "evaluation=quick")
    assert edited.returncode == 0, edited.stdout
    third = work.report("mine")
    assert {name: cell["status"] for name, cell in cells(third).items()} == {
        "llamacpp.int4": "built", "llamacpp.int8": "cached",
        "pytorch.int4": "cached", "pytorch.int8": "cached",
    }  # fmt: skip
    assert cells(third)["llamacpp.int4"]["variant"] == "Q4_0"
    assert third["totals"]["steps"] == 2  # one build, one judging

    write_recipe(
        work,
        "devices:\n  intel_n100: {llamacpp: [int4, int8, fp16]}\n"
        "  ai_pc_rtx: {pytorch: [int4, int8, fp32]}\n",
    )
    swept = work("build", "-m", "recipe=mine", "precision=int4,int8", "evaluation=quick")
    assert swept.returncode == 0, swept.stderr
    assert sorted(cells(work.report("mine"))) == [
        "llamacpp.int4", "llamacpp.int8", "pytorch.int4", "pytorch.int8",
    ]  # fmt: skip

    run = work.folder / "outputs" / "mine" / "latest"
    store = {
        (status.st_dev, status.st_ino)
        for path in (work.folder / "store" / "artifacts").rglob("*")
        if path.is_file() and (status := path.stat())
    }
    files = [path for path in (run / "artifacts").rglob("*") if path.is_file()]
    assert files
    for path in files:
        status = path.stat()
        assert (status.st_dev, status.st_ino) in store, path
        assert stat.S_IMODE(status.st_mode) == 0o444, path

    verified = work("verify")
    assert verified.returncode == 0, verified.stdout
    assert verified.stdout.count("ok ") == 4

    pytorch = run / "artifacts" / "ai_pc_rtx" / "phi3-tiny-trained-pytorch-int8"
    for what in ("phi3-tiny-trained.intel_n100.llamacpp.int8", str(pytorch)):
        generated = work("run", what, "def main(", "--max-tokens", "8")
        assert generated.returncode == 0, generated.stderr
        assert len(generated.stdout.strip()) > 3

    damaged = run / "artifacts" / "intel_n100" / "phi3-tiny-trained-llamacpp-int8"
    (weights,) = damaged.glob("*.gguf")
    times = weights.stat()
    weights.chmod(0o644)
    with weights.open("r+b") as file:
        file.seek(-100, os.SEEK_END)
        byte = file.read(1)
        file.seek(-100, os.SEEK_END)
        file.write(bytes([byte[0] ^ 1]))
    os.utime(weights, ns=(times.st_atime_ns, times.st_mtime_ns))  # the size and time of before
    found = work("verify", "--json")
    assert found.returncode == 1
    problems = {Path(name).name: text for name, text in json.loads(found.stdout).items() if text}
    assert list(problems) == ["phi3-tiny-trained-llamacpp-int8"]
    assert problems["phi3-tiny-trained-llamacpp-int8"] == [
        f"{weights.name}: content differs from the manifest's sha256"
    ]

    os.utime(weights)  # without that trick the next build sees it, and makes it again
    mended = work("build", "-m", "recipe=mine", "precision=int4,int8", "evaluation=quick")
    assert mended.returncode == 0, mended.stderr
    assert statuses(work)["llamacpp.int8"] == "built"
    assert work("verify").returncode == 0
