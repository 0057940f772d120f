"""One locked environment per backend: create it once, mark it complete, find its interpreter.

An environment is made by uv from `requirements.txt` in the backend's folder, in place, under a
lock, and counts as complete only once its state file has been put there by an atomic rename: an
install that is cut off is wiped and made again.
"""

from __future__ import annotations

import csv
import hashlib
import json
import os
import platform
import re
import shutil
import sys
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path

import psutil

from phibuild.errors import Problem, ToolchainError
from phibuild.system.files import write_atomically
from phibuild.system.locks import held, is_held
from phibuild.system.places import toolchains_folder
from phibuild.system.plugins import plugin
from phibuild.toolchains.pip_config import has_local_torch, no_index
from phibuild.toolchains.uv import run_uv
from phibuild.worker.json_values import is_texts, object_or_empty

NOT_INSTALLED = "not installed"
_STATE = ".phibuild-complete.json"
_LOCK = "requirements.txt"


@dataclass(frozen=True)
class Toolchain:
    """The environment of one backend, present or not. `lock` is its locked requirements file."""

    name: str
    lock: Path

    @property
    def digest(self) -> str:
        """Digest of all that decides what is installed: lock file, Python, platform."""
        text = self.lock.read_text(encoding="utf-8")
        marker = f"{sys.version_info[0]}.{sys.version_info[1]} {sys.platform} {platform.machine()}"
        return hashlib.sha256(f"{text}\n{marker}".encode()).hexdigest()

    @property
    def folder(self) -> Path:
        return toolchains_folder() / f"{self.name}-{self.digest[:12]}"

    @property
    def python(self) -> Path:
        if sys.platform == "win32":
            return self.folder / "Scripts" / "python.exe"
        return self.folder / "bin" / "python"

    def problem(self) -> str | None:
        """Return why the environment cannot be used, None if it can: every file that its packages
        list must be there with its size."""
        try:
            state = object_or_empty(json.loads((self.folder / _STATE).read_text(encoding="utf-8")))
        except OSError:
            return NOT_INSTALLED
        except ValueError:
            state = {}
        infos = state.get("dist_info")
        if not is_texts(infos):
            return "damaged: its state file is not what phibuild writes"
        if not self.python.exists():
            return f"damaged: {self.python} is missing"
        for name in infos:
            wrong = _missing_file(self.folder / name)
            if wrong:
                return f"damaged: {wrong}"
        return None

    @property
    def is_there(self) -> bool:
        """Whether it was made once; `problem` looks for damage."""
        return (self.folder / _STATE).exists()

    def versions(self) -> dict[str, str]:
        """Return the locked version of every package, markers ignored."""
        pins = re.findall(
            r"^([A-Za-z0-9._-]+)==([^\s;]+)", self.lock.read_text(encoding="utf-8"), re.MULTILINE
        )
        return dict(pins)

    def install(
        self,
        say: Callable[[str], None] = lambda text: None,
        cancelled: Callable[[], bool] = lambda: False,
    ) -> float:
        """Make the environment unless it is complete; return the seconds that it took. A damaged
        one is made again.

        Raises ToolchainError with uv's own words if that fails, or if `cancelled` says that it is
        not wanted any more. Safe to call from several processes at once.
        """
        if self.problem() is None:  # without the lock, for a folder that may only be read
            return 0.0
        _make_folder(self.folder.parent)
        if is_held(self._lock):
            say("waiting for another phibuild that installs it")
        with held(self._lock, cancelled=cancelled) as lock:
            problem = self.problem()
            if problem is None:
                return 0.0
            started = time.monotonic()
            again = "" if problem == NOT_INSTALLED else f" again: {problem}"
            say(f"creating the environment{again}")
            _wipe(self.folder)
            command = ("venv", "--quiet", "--no-project", "--python", sys.executable)
            self._uv(lock, cancelled, *command, str(self.folder))
            say("installing packages")
            self._sync(lock, say, cancelled)
            infos = self.folder.rglob("*.dist-info")
            state = {
                "lock_digest": self.digest,
                "dist_info": sorted(path.relative_to(self.folder).as_posix() for path in infos),
            }
            write_atomically(self.folder / _STATE, json.dumps(state, indent=1))
            return time.monotonic() - started

    def _sync(self, lock: int, say: Callable[[str], None], cancelled: Callable[[], bool]) -> None:
        """Install the packages; from uv's cache alone if they cannot be had otherwise."""
        command = ["pip", "sync", "--quiet", "--python", str(self.python), str(self.lock)]
        if "torch" in self.versions() and sys.platform == "linux" and not has_local_torch():
            # PyPI's torch for Linux brings gigabytes of CUDA that no runner would load.
            command += ["--torch-backend", "cpu"]
        if no_index():
            command.append("--no-index")
        try:
            self._uv(lock, cancelled, *command)
        except ToolchainError as error:
            if cancelled():
                raise
            say("installing packages from uv's cache")  # uv asks the index even for what it has
            try:
                self._uv(lock, cancelled, *command, "--offline")
            except ToolchainError:
                raise error from None

    def remove(self) -> bool:
        """Remove the environment; return whether it was there. Raises ToolchainError if a process
        runs in it."""
        if not self.folder.exists():
            return False
        remove_environment(self.folder)
        return True

    @property
    def _lock(self) -> Path:
        return self.folder.with_suffix(".lock")

    def _uv(self, lock: int, cancelled: Callable[[], bool], *words: str) -> None:
        what = f"toolchain {self.name} could not be installed"
        run_uv(what, *words, lock=lock, cancelled=cancelled)


def toolchain(name: str, *, locked: bool = True) -> Toolchain:
    """Return the toolchain of a backend. Raises BackendError if the backend has no folder, or no
    lock in it where there has to be one (`locked`)."""
    found = plugin(name)
    lock = found.folder / _LOCK
    if locked and not lock.is_file():
        help = f"'phibuild toolchain lock {name}' makes it from requirements.in"
        raise found.error(f"there is no {_LOCK} in {found.folder}", help)
    return Toolchain(name, lock)


def old_environments(names: Collection[str]) -> list[Path]:
    """Return the environments of these toolchains whose lock has changed since, or whose install
    never ended. Those of another Python are somebody else's."""
    current = {toolchain(name).folder for name in names}
    pattern = re.compile(rf"(?:{'|'.join(map(re.escape, names))})-[0-9a-f]{{12}}")
    return [
        folder
        for folder in sorted(toolchains_folder().glob("*"))
        if pattern.fullmatch(folder.name)
        and folder.is_dir()
        and folder not in current
        and _python_of(folder) in (None, f"{sys.version_info[0]}.{sys.version_info[1]}")
    ]


def remove_environment(folder: Path) -> None:
    """Remove an environment; raises ToolchainError if a process runs in it."""
    lock = folder.with_suffix(".lock")
    with held(lock):
        for process in psutil.process_iter(["cmdline"]):
            words = process.info["cmdline"]
            if words and Path(words[0]).is_relative_to(folder):
                raise ToolchainError(
                    Problem(f"in use by process {process.pid}", str(folder), "wait for its end")
                )
        _wipe(folder)
        lock.unlink()


def size_bytes(folder: Path) -> int:
    """Return the bytes of an environment's files; uv's cache may share them."""
    files = (path for path in folder.rglob("*") if path.is_file() and not path.is_symlink())
    return sum(path.stat().st_size for path in files)


def _python_of(folder: Path) -> str | None:
    """Return the Python of an environment, as in "3.11"; None if it cannot be told."""
    try:
        text = (folder / "pyvenv.cfg").read_text(encoding="utf-8")
    except OSError:
        return None
    found = re.search(r"^version(?:_info)?\s*=\s*(\d+\.\d+)", text, re.MULTILINE)
    return found[1] if found else None


def _missing_file(info: Path) -> str | None:
    """Compare a package with the list of its files, RECORD; return what is wrong."""
    site = info.parent
    if site.name != "site-packages":
        return None  # vendored in another package, whose list has its files
    try:
        with (info / "RECORD").open(encoding="utf-8", newline="") as file:
            for path, _, size in csv.reader(file):
                # os.stat: there are tens of thousands of files.
                found = os.stat(f"{site}/{path}").st_size
                if size and found != int(size):
                    return f"{site / path} has {found} bytes instead of {size}"
    except OSError as error:
        return f"{os.path.normpath(error.filename)} is missing"
    except (ValueError, csv.Error):
        return f"{info / 'RECORD'} is not a list of files"
    return None


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        remedy = "set PHIBUILD_TOOLCHAINS to a folder that can be written"
        problem = Problem(f"cannot be written: {error.strerror}", str(folder), remedy)
        raise ToolchainError(problem) from error


def _wipe(folder: Path) -> None:
    # The state file goes first: what is left by an interruption is not complete.
    (folder / _STATE).unlink(missing_ok=True)
    if folder.exists():
        shutil.rmtree(folder)
