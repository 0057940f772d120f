"""Toolchains where something goes wrong midway: a package index on loopback that answers when it is
told to, phibuild and uv killed, no network, environments in use, old ones, locks."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from conftest import ROOT, CommandLine
from phibuild.errors import ToolchainError
from phibuild.system.locks import is_held
from phibuild.toolchains.environment import (
    Toolchain,
    old_environments,
    remove_environment,
    toolchain,
)
from phibuild.toolchains.lock import make_lock
from support.package_index import Index, serve

INSTALL = """
import sys
from pathlib import Path
from phibuild.toolchains.environment import Toolchain
print(Toolchain("small", Path(sys.argv[1])).install(), flush=True)
"""


@pytest.fixture(autouse=True)
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Caches and settings of this test alone."""
    for name in [name for name in os.environ if name.startswith(("PIP_", "UV_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", str(tmp_path / "pip.conf"))
    monkeypatch.setenv("UV_CACHE_DIR", str(tmp_path / "uv"))
    monkeypatch.setenv("PHIBUILD_TOOLCHAINS", str(tmp_path / "toolchains"))


@pytest.fixture
def index(tmp_path: Path) -> Iterator[Index]:
    """A mirror that is known from pip's configuration file alone."""
    index = Index()
    index.add("phitiny", "1.0")
    index.add("phitiny", "1.1")
    with serve(index):
        text = f"[global]\nindex-url = {index.url}\n"
        (tmp_path / "pip.conf").write_text(text, encoding="utf-8")
        yield index


@pytest.fixture
def tools(tmp_path: Path) -> Toolchain:
    lock = tmp_path / "requirements.txt"
    lock.write_text("phitiny==1.0\n", encoding="utf-8")
    return Toolchain("small", lock)


@contextlib.contextmanager
def installing(tools: Toolchain, index: Index) -> Iterator[tuple[psutil.Process, psutil.Process]]:
    """Give an installing phibuild and its uv, which waits for a wheel."""
    index.gate.clear()
    process = subprocess.Popen([sys.executable, "-c", INSTALL, str(tools.lock)])
    try:
        assert index.asked.wait(60)
        phibuild = psutil.Process(process.pid)
        (uv,) = [child for child in phibuild.children() if child.name().startswith("uv")]
        yield phibuild, uv
    finally:
        index.gate.set()
        process.kill()
        process.wait()


def works(tools: Toolchain) -> bool:
    done = subprocess.run([tools.python, "-Pc", "import phitiny"], check=False)
    return tools.problem() is None and done.returncode == 0


def test_a_mirror_of_pips_configuration_file(tools: Toolchain, index: Index) -> None:
    tools.install()
    assert works(tools)
    assert any(path.endswith(".whl") for path in index.log)


def test_killed_midway_with_uv(tools: Toolchain, index: Index) -> None:
    with installing(tools, index) as (phibuild, uv):
        phibuild.kill()
        uv.kill()
        psutil.wait_procs([uv], timeout=10)
        assert tools.folder.exists()
        assert tools.problem() == "not installed"
        index.gate.set()
        assert tools.install() > 0
    assert works(tools)


def test_killed_midway_and_uv_goes_on(tools: Toolchain, index: Index) -> None:
    """The next install waits for the uv that is left over: it must not write into its folder."""
    with installing(tools, index) as (phibuild, uv):
        phibuild.kill()
        said: list[str] = []
        thread = threading.Thread(target=lambda: tools.install(said.append))
        thread.start()
        time.sleep(0.5)
        assert uv.is_running()
        assert said == ["waiting for another phibuild that installs it"]
        index.gate.set()
        thread.join(60)
        assert not uv.is_running() or uv.status() == psutil.STATUS_ZOMBIE
    assert said[1:] == ["creating the environment", "installing packages"]
    assert works(tools)


@pytest.mark.parametrize("what", ["uv", "the lock"])
def test_what_is_not_wanted_any_more(tools: Toolchain, index: Index, what: str) -> None:
    if what == "uv":
        index.gate.clear()
        with pytest.raises(ToolchainError, match="interrupted"):
            tools.install(cancelled=index.asked.is_set)
        assert not any(p.name() == "uv" for p in psutil.Process().children())
        assert not is_held(tools.folder.with_suffix(".lock"))
    else:
        with installing(tools, index), pytest.raises(Exception, match="interrupted"):
            tools.install(cancelled=lambda: True)
    index.gate.set()
    tools.install()
    assert works(tools)


@pytest.mark.parametrize("told", [True, False], ids=["UV_OFFLINE", "index gone"])
def test_no_network_and_everything_cached(
    tools: Toolchain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, told: bool
) -> None:
    index = Index()
    index.add("phitiny", "1.0")
    with serve(index):
        text = f"[global]\nindex-url = {index.url}\n"
        (tmp_path / "pip.conf").write_text(text, encoding="utf-8")
        tools.install()
    tools.remove()
    monkeypatch.setenv("UV_HTTP_RETRIES", "0")
    if told:
        monkeypatch.setenv("UV_OFFLINE", "1")
    said: list[str] = []
    tools.install(said.append)
    assert works(tools)
    assert ("installing packages from uv's cache" in said) is not told


def test_no_network_and_nothing_cached(tools: Toolchain, tmp_path: Path) -> None:
    with serve(Index()) as index:
        url = index.url
    (tmp_path / "pip.conf").write_text(f"[global]\nindex-url = {url}\n", encoding="utf-8")
    os.environ["UV_HTTP_RETRIES"] = "0"
    try:
        with pytest.raises(ToolchainError, match="check the network or the mirror") as error:
            tools.install()
    finally:
        del os.environ["UV_HTTP_RETRIES"]
    assert "Connection refused" in str(error.value)


def test_an_environment_in_use_stays(tools: Toolchain, index: Index) -> None:
    tools.install()
    process = subprocess.Popen(
        [tools.python, "-c", "print(flush=True); input()"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert process.stdout
    process.stdout.readline()  # before it has begun, it has no command line yet
    try:
        with pytest.raises(ToolchainError, match=f"in use by process {process.pid}"):
            tools.remove()
    finally:
        process.kill()
        process.communicate()
    assert works(tools)
    assert tools.remove()


def test_old_environments(tmp_path: Path, phibuild: CommandLine) -> None:
    folder = tmp_path / "toolchains"
    old = folder / "mlx-0123456789ab"
    foreign = folder / "mlx-ba9876543210"
    current = toolchain("mlx").folder
    for place, version in ((old, sys.version_info), (foreign, (2, 7)), (current, (3, 11))):
        place.mkdir(parents=True)
        text = f"version_info = {version[0]}.{version[1]}.1\n"
        (place / "pyvenv.cfg").write_text(text, encoding="utf-8")
    (folder / "mlx-cut-off").mkdir()
    (folder / "vendor-mlx-0123456789ab").mkdir()
    assert old_environments(["mlx", "llamacpp"]) == [old]
    assert old_environments(["llamacpp"]) == []
    rows = json.loads(phibuild("toolchain", "list", "--json").stdout)
    (row,) = [row for row in rows if row["folder"] == str(old)]
    assert row["state"].startswith("old: its lock has changed")
    assert row["size_bytes"] == (old / "pyvenv.cfg").stat().st_size
    assert "old: its lock" in phibuild("toolchain", "list").stdout
    assert phibuild("toolchain", "remove", "--old").stdout == f"{old.name}: removed\n"
    assert not old.exists()
    assert foreign.exists()
    remove_environment(foreign)
    assert not foreign.exists()


def test_a_lock_is_made_anew(tools: Toolchain, index: Index, tmp_path: Path) -> None:
    place = tmp_path / "backends" / "small"
    place.mkdir(parents=True)
    (place.parent / "torch_overrides.txt").touch()
    tools = Toolchain("small", place / "requirements.txt")
    with pytest.raises(ToolchainError, match="source checkout"):
        make_lock(tools)
    (place / "requirements.in").write_text("phitiny<1.1\n", encoding="utf-8")
    assert make_lock(tools)
    assert tools.versions() == {"phitiny": "1.0"}
    assert not make_lock(tools)
    (place / "requirements.in").write_text("phitiny\n", encoding="utf-8")
    make_lock(tools)
    assert tools.versions() == {"phitiny": "1.0"}  # locked versions stay
    assert make_lock(tools, upgrade=True)
    assert tools.versions() == {"phitiny": "1.1"}
    text = tools.lock.read_text(encoding="utf-8")
    assert (
        "#    uv pip compile --universal --python-version 3.11 --overrides ../torch_overrides.txt "
        "requirements.in -o requirements.txt\n"
    ) in text
    (place / "overrides.txt").write_text("phitiny<1.1\n", encoding="utf-8")
    assert make_lock(tools)
    assert tools.versions() == {"phitiny": "1.0"}
    text = tools.lock.read_text(encoding="utf-8")
    assert "--overrides ../torch_overrides.txt --overrides overrides.txt requirements.in" in text
    (place / "requirements.in").write_text("nothing-here\n", encoding="utf-8")
    with pytest.raises(ToolchainError, match=r"small could not be locked:(.|\n)*nothing-here"):
        make_lock(tools)
    assert tools.lock.read_text(encoding="utf-8") == text


def test_an_installed_package_cannot_be_locked(
    mere_user: CommandLine, read_only: Callable[[Path], None], tmp_path: Path
) -> None:
    site = tmp_path / "site"
    skip = shutil.ignore_patterns("__pycache__", "*.safetensors")
    shutil.copytree(ROOT / "phibuild", site / "phibuild", ignore=skip)
    read_only(site)
    done = mere_user("toolchain", "lock", "mlx", PYTHONPATH=str(site))
    lock = site / "phibuild" / "backends" / "mlx" / "requirements.txt"
    assert done.returncode == 1
    assert done.stderr == (
        f"error: {lock}: the lock of toolchain mlx cannot be written\n"
        "    locks are made in a source checkout, by who may write it\n"
    )


def test_a_complete_environment_needs_no_right_to_write(
    mere_user: CommandLine, tools: Toolchain, index: Index, read_only: Callable[[Path], None]
) -> None:
    tools.install()
    read_only(tools.folder.parent)
    done = subprocess.run(
        [*mere_user.prefix, sys.executable, "-c", INSTALL, str(tools.lock)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (done.stdout, done.stderr) == ("0.0\n", "")
