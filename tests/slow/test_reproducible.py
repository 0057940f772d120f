"""The same inputs give the same bytes: on another machine, as far as one machine can be another.

Every build has its own hash seed, working folder, store, checkpoint folder, TMPDIR, home, thread
count, time zone, language and, where a compiler is at hand, a clock that is years off.
"""

from __future__ import annotations

import getpass
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from conftest import CommandLine
from phibuild.backends.registry import SHIPPED
from phibuild.config.catalogue import DATA
from phibuild.store.store import Store
from phibuild.toolchains.environment import toolchain
from support.kinds import some
from support.targets import SHORT_WORDS

pytestmark = pytest.mark.cold

TINY = DATA / "phi3-tiny-trained"
CLOCK = Path(__file__).parents[1] / "support" / "clock.c"
IMATRIX = """\
devices:
  intel_n100: {llamacpp: {int4: {type: Q4_K_M, imatrix: ./texts.txt}}}
"""


@pytest.fixture(scope="module")
def clock(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Return the variables of a clock that is ten years off; none without a C compiler or glibc."""
    compiler = shutil.which("cc")
    if sys.platform != "linux" or not compiler:
        return {}
    library = tmp_path_factory.mktemp("clock") / "clock.so"
    command = [compiler, "-shared", "-fPIC", "-O1", "-o", str(library), str(CLOCK), "-ldl"]
    subprocess.run(command, check=True)
    environ = {"LD_PRELOAD": str(library), "CLOCK_OFFSET": str(10 * 365 * 86400)}
    program = [sys.executable, "-c", "import time; print(time.strftime('%Y'), time.gmtime()[0])"]
    now, then = (
        subprocess.run(program, env={**os.environ, **more}, capture_output=True, check=True).stdout
        for more in ({}, environ)
    )
    assert int(then.split()[0]) - int(now.split()[0]) in (9, 10)
    return environ


def build(
    work: CommandLine, source: Path, *words: str, recipe: str, **environ: str
) -> dict[str, dict[str, Any]]:
    """Build from a copy of a checkpoint in the working folder; return id -> cell."""
    shutil.copytree(source, work.folder / "somewhere" / source.name)
    for name in ("tmp", "home"):
        (work.folder / name).mkdir()
    done = work(
        "build", f"recipe={recipe}", f"model=./somewhere/{source.name}", "evaluation=none", *words,
        TMPDIR=str(work.folder / "tmp"), HOME=str(work.folder / "home"),
        PHIBUILD_TOOLCHAINS=str(toolchain("llamacpp").folder.parent), cwd=None, **environ,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return {cell["id"]: cell for cell in work.report(recipe)["cells"]}


def two_machines(
    tmp_path: Path, clock: dict[str, str], prepare: Callable[[Path], None], source: Path,
    *words: str, recipe: str,
) -> list[dict[str, Any]]:  # fmt: skip
    """Build on two machines, compare, and return the cells."""
    one, two = CommandLine(tmp_path / "one"), CommandLine(tmp_path / "two" / "a longer path")
    for work in (one, two):
        work.folder.mkdir(parents=True)
        prepare(work.folder)
    first = build(
        one, source, "executor.cores=1", *words, recipe=recipe,
        PYTHONHASHSEED="1", TZ="UTC", LC_ALL="C",
    )  # fmt: skip
    second = build(
        two, source, "executor.cores=6", *words, recipe=recipe,
        PYTHONHASHSEED="2", TZ="Asia/Kathmandu", LC_ALL="C.UTF-8", SOURCE_DATE_EPOCH="1", **clock,
    )  # fmt: skip
    assert first.keys() == second.keys()
    for name, cell in first.items():
        if cell["artifact_digest"] != second[name]["artifact_digest"]:
            pytest.fail(f"{name}: {different_files(one, two, cell)}")
        assert cell["artifact_digest"]
        assert cell["provenance"] == second[name]["provenance"]
        assert None not in {**cell["provenance"], "activations": ""}.values()
    for work in (one, two):
        assert_no_traces(work, source)
    return list(first.values())


def different_files(one: CommandLine, two: CommandLine, cell: dict[str, Any]) -> list[str]:
    key = cell["provenance"]["key"]
    found = [Store(work.folder / "store").artifact(key) for work in (one, two)]
    assert all(found)
    files = [{f.path: f.sha256 for f in a.manifest.files} for a in found if a]
    return sorted(name for name in files[0] if files[0][name] != files[1].get(name))


def assert_no_traces(work: CommandLine, source: Path) -> None:
    """Nothing in an artifact tells where it was made, manifest.json included."""
    traces = [str(work.folder), str(source.parent), str(Path.home()),
              str(toolchain("pytorch").folder.parent)]  # fmt: skip
    # Short names of users and machines are words of other things too.
    traces += [name for name in (getpass.getuser(), socket.gethostname()) if len(name) > 5]
    files = [path for path in (work.folder / "store" / "artifacts").rglob("*") if path.is_file()]
    assert files
    for path in files:
        data = path.read_bytes()
        for trace in traces:
            assert trace.encode() not in data, (path, trace)
            assert trace.encode("utf-16-le") not in data, (path, trace)


@pytest.mark.parametrize("shape", some(["trained", "phi4mini"], ["trained"]))
def test_same_bytes(
    shape: str,
    checkpoint: Callable[..., Path],
    tmp_path: Path,
    clock: dict[str, str],
    every: bool,
) -> None:
    """All precisions, or the integers, which have most to choose; int4 of a shape of another kind
    and in shards: but for qnn's, whose compiler takes as long as all others."""
    source = TINY if shape == "trained" else checkpoint(shape, shards=2)
    few = ",".join(name for name in SHIPPED if name != "qnn")
    words = SHORT_WORDS if every else ("-m", "precision=int4,int8", *SHORT_WORDS)
    if shape != "trained":
        words = ("-m", "precision=int4", f"backend={few}")
    found = two_machines(
        tmp_path, clock, lambda folder: None, source, *words, recipe="every_backend"
    )
    qnn = set() if shape == "trained" else {"qnn"}
    assert {cell["backend"] for cell in found} == set(SHIPPED) - qnn


@pytest.mark.every  # threads and activations: test_pytorch_layerwise.py, test_gptq.py
def test_same_bytes_from_activations(tmp_path: Path, clock: dict[str, str]) -> None:
    """The original runs over a text, with its own threads, before the artifact is built."""

    def prepare(folder: Path) -> None:
        (folder / "recipes").mkdir()
        (folder / "recipes" / "mine.yaml").write_text(IMATRIX, encoding="utf-8")
        shutil.copyfile(TINY / "calibration.txt", folder / "recipes" / "texts.txt")
        shutil.copyfile(TINY / "calibration.txt", folder / "texts.txt")

    two_machines(tmp_path, clock, prepare, TINY, recipe="mine")
