"""A runner that the kernel kills for memory is run again, alone, and more is planned for it."""

from __future__ import annotations

import json
import os
import shlex
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from conftest import CommandLine
from phibuild.toolchains.environment import toolchain

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not Path("/proc/self/cgroup").exists(), reason="control groups are Linux's"),
]
RECIPE = "devices:\n  intel_n100: {llamacpp: [int4, int8]}\n  mac: {mlx: [int4]}\n"


@pytest.fixture
def small_group() -> Iterator[Path]:
    """A control group of 16 MiB: a runner has more before it has loaded its libraries."""
    groups = Path("/sys/fs/cgroup")
    version_1 = (groups / "memory").is_dir()
    name = f"phibuild-{uuid.uuid4().hex}"
    folder = (groups / "memory" if version_1 else groups) / name
    try:
        folder.mkdir()
    except OSError as error:
        pytest.skip(f"no control group can be made here: {error.strerror}")
    try:
        limit = folder / ("memory.limit_in_bytes" if version_1 else "memory.max")
        if not limit.exists():
            pytest.skip("control groups do not limit memory here")
        limit.write_text(str(16 << 20), "ascii")
        yield folder
    finally:
        folder.rmdir()


@pytest.fixture
def work(
    phibuild: CommandLine,
    toolchain_python: Callable[[str], Path],
    small_group: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> CommandLine:
    """Environments of which llamacpp's interpreter goes into the small group as long as it is asked
    to: a file lists how often."""
    (phibuild.folder / "recipes").mkdir()
    (phibuild.folder / "recipes" / "mine.yaml").write_text(RECIPE, "utf-8")
    toolchains = tmp_path / "toolchains"
    toolchains.mkdir()
    for name in ("llamacpp", "mlx", "pytorch"):
        python = toolchain_python(name)
        real = toolchain(name).folder
        if name != "llamacpp":
            (toolchains / real.name).symlink_to(real)
            continue
        (toolchains / real.name / "bin").mkdir(parents=True)
        for path in real.iterdir():
            if path.name != "bin":
                (toolchains / real.name / path.name).symlink_to(path)
        group, kills = shlex.quote(str(small_group / "cgroup.procs")), tmp_path / "kills"
        script = toolchains / real.name / "bin" / "python"
        script.write_text(
            f"#!/bin/sh\nif [ -s {kills} ]; then sed -i 1d {kills}; echo $$ > {group}; fi\n"
            f'exec {shlex.quote(str(python))} "$@"\n',
            "utf-8",
        )
        script.chmod(0o755)
    monkeypatch.setenv("PHIBUILD_TOOLCHAINS", str(toolchains))
    return phibuild


def steps(work: CommandLine) -> dict[str, dict[str, object]]:
    return {step["id"]: step for step in work.report("mine")["steps"]}


def test_once_is_mended_and_remembered(work: CommandLine, tmp_path: Path) -> None:
    (tmp_path / "kills").write_text("once\n", "utf-8")
    done = work("build", "recipe=mine", "evaluation=none")
    assert done.returncode == 0, done.stderr
    assert "build.phi3-tiny-trained.llamacpp: FAILED: out of memory; it is run again, alone" in (
        done.stderr
    )
    report = work.report("mine")
    assert [cell["status"] for cell in report["cells"]] == ["built"] * 3
    assert steps(work)["build.phi3-tiny-trained.llamacpp"]["attempts"] == 2
    log = (work.folder / "outputs" / "mine" / "latest" / "logs" / "executor.log").read_text("utf-8")
    assert "build.phi3-tiny-trained.llamacpp ran out of memory" in log
    assert "build.phi3-tiny-trained.llamacpp starts again, alone" in log
    assert "out of memory: the system killed the runner" not in json.dumps(report)


def test_twice_fails_with_the_reason_and_raises_the_estimate(
    work: CommandLine, tmp_path: Path
) -> None:
    (tmp_path / "kills").write_text("again\n" * 4, "utf-8")
    done = work("build", "recipe=mine", "evaluation=none")
    assert done.returncode == 1, done.stderr
    found = {cell["backend"] + cell["precision"]: cell for cell in work.report("mine")["cells"]}
    for name in ("llamacppint4", "llamacppint8"):
        assert found[name]["status"] == "failed"
        assert found[name]["reason"].startswith("out of memory: the system killed the runner")
    assert found["mlxint4"]["status"] == "built"
    # It is a real kill: the plan knows now what was not enough.
    (record,) = [
        data
        for path in (work.folder / "store" / "usage").iterdir()
        if (data := json.loads(path.read_text("utf-8"))).get("lacked")
    ]
    assert 0 < record["lacked"] <= 16 << 20
    os.truncate(tmp_path / "kills", 0)
    done = work("build", "recipe=mine", "evaluation=none")
    assert done.returncode == 0, done.stderr
