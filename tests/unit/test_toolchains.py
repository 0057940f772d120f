"""Toolchains: installed for real from one small package, complete or made again, by several at
once."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from phibuild.backends.registry import SHIPPED
from phibuild.errors import ToolchainError
from phibuild.toolchains.environment import Toolchain, toolchain
from phibuild.toolchains.pip_config import has_local_torch

LOCK = "iniconfig==2.1.0\n"
STATE = ".phibuild-complete.json"


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PHIBUILD_TOOLCHAINS", str(tmp_path / "toolchains"))
    return tmp_path


@pytest.fixture
def tools(folder: Path) -> Toolchain:
    lock = folder / "requirements.txt"
    lock.write_text(LOCK, encoding="utf-8")
    return Toolchain("small", lock)


def imports(tools: Toolchain, module: str) -> bool:
    command = [str(tools.python), "-P", "-c", f"import {module}"]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


def test_install_once(tools: Toolchain) -> None:
    assert tools.problem() == "not installed"
    said: list[str] = []
    assert tools.install(said.append) > 0
    assert said == ["creating the environment", "installing packages"]
    assert tools.problem() is None
    assert imports(tools, "iniconfig")
    assert not imports(tools, "pydantic")  # nothing of the core's environment
    state = json.loads((tools.folder / STATE).read_text(encoding="utf-8"))
    assert state["lock_digest"] == tools.digest
    assert [Path(name).name for name in state["dist_info"]] == ["iniconfig-2.1.0.dist-info"]
    assert tools.install(said.append) == 0.0
    assert len(said) == 2


def test_a_half_made_environment_is_wiped_and_made_again(tools: Toolchain) -> None:
    """Cut off before its state file: whatever else is there."""
    tools.install()
    (tools.folder / STATE).unlink()
    (tools.folder / "rubbish").touch()
    assert tools.problem() == "not installed"
    assert tools.install() > 0
    assert tools.problem() is None
    assert not (tools.folder / "rubbish").exists()
    assert imports(tools, "iniconfig")


@pytest.mark.parametrize("damage", ["package", "interpreter", "state", "state of nothing",
                                    "a file", "a file cut off", "list of files"])  # fmt: skip
def test_damage_is_found_and_mended(tools: Toolchain, damage: str) -> None:
    tools.install()
    if damage == "package":
        (info,) = tools.folder.rglob("iniconfig-*.dist-info")
        info.rename(tools.folder / "elsewhere")
    elif damage == "interpreter":
        tools.python.unlink()
    elif damage == "a file":
        next(tools.folder.rglob("iniconfig/_parse.py")).unlink()
    elif damage == "a file cut off":
        cut_off(next(tools.folder.rglob("iniconfig/__init__.py")))
    elif damage == "list of files":
        next(tools.folder.rglob("iniconfig-*/RECORD")).write_text("x,y,z\n", encoding="utf-8")
    else:
        text = "{" if damage == "state" else "[]"
        (tools.folder / STATE).write_text(text, encoding="utf-8")
    problem = tools.problem()
    assert problem is not None
    assert problem.startswith("damaged: ")
    said: list[str] = []
    assert tools.install(said.append) > 0
    assert said[0] == f"creating the environment again: {problem}"
    assert tools.problem() is None
    assert imports(tools, "iniconfig")


def cut_off(path: Path) -> None:
    """Cut a file, without those that uv's cache shares with it."""
    data = path.read_bytes()
    path.unlink()
    path.write_bytes(data[:-1])


def test_what_cannot_be_installed(tools: Toolchain) -> None:
    tools.lock.write_text("iniconfig==2.1.0\niniconfig==1.1.1\n", encoding="utf-8")
    with pytest.raises(
        ToolchainError, match=r"toolchain small could not be installed:(.|\n)*iniconfig"
    ):
        tools.install()
    assert tools.problem() == "not installed"
    tools.lock.write_text(LOCK, encoding="utf-8")
    tools.install()
    assert tools.problem() is None


def test_the_lock_file_decides(tools: Toolchain) -> None:
    first = tools.folder
    tools.lock.write_text("iniconfig==2.0.0\n", encoding="utf-8")
    assert tools.folder != first
    assert tools.versions() == {"iniconfig": "2.0.0"}


def test_remove(tools: Toolchain) -> None:
    assert tools.remove() is False
    tools.install()
    assert tools.remove() is True
    assert not tools.folder.exists()
    assert tools.problem() == "not installed"


def test_two_processes_at_once(tools: Toolchain) -> None:
    program = """
import sys
from pathlib import Path
from phibuild.toolchains.environment import Toolchain
print(Toolchain("small", Path(sys.argv[1])).install() > 0)
"""
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", program, str(tools.lock)], stdout=subprocess.PIPE, text=True
        )
        for _ in range(3)
    ]
    said = sorted(process.communicate(timeout=120)[0].strip() for process in processes)
    assert said == ["False", "False", "True"]  # one made it, the others waited
    assert tools.problem() is None
    assert imports(tools, "iniconfig")


def test_a_folder_that_cannot_be_made(
    tools: Toolchain, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "file").touch()
    monkeypatch.setenv("PHIBUILD_TOOLCHAINS", str(folder / "file" / "toolchains"))
    with pytest.raises(ToolchainError, match="PHIBUILD_TOOLCHAINS"):
        tools.install()


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_locks_pin_everything(name: str) -> None:
    lock = toolchain(name).lock.read_text(encoding="utf-8")
    wanted = [
        line for line in lock.splitlines()
        if line and not line.startswith(("#", " ", "-")) and not line.endswith("\\")
    ]  # fmt: skip
    assert wanted
    assert all("==" in line or " @ " in line for line in wanted)
    asked = toolchain(name).lock.with_suffix(".in").read_text(encoding="utf-8")
    for line in asked.splitlines():
        word = line.split("#")[0].strip()
        if word and not word.startswith("-"):
            stem = "".join(c if c.isalnum() else "-" for c in word.split("=")[0].split("<")[0]
                           .split(">")[0].split("[")[0].split(";")[0].strip().lower())  # fmt: skip
            assert stem in {pin.lower().replace("_", "-") for pin in toolchain(name).versions()}


def test_indexes_of_pip_are_used(
    tools: Toolchain, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Air-gapped: no index, and a folder of wheels that does not have the package."""
    config = folder / "pip.conf"
    config.write_text(f"[global]\nno-index = true\nfind-links = {folder}\n", encoding="utf-8")
    for name in [name for name in os.environ if name.startswith(("PIP_", "UV_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", str(config))
    monkeypatch.setenv("UV_NO_CACHE", "1")
    assert not has_local_torch()
    with pytest.raises(ToolchainError, match=r"iniconfig"):
        tools.install()
