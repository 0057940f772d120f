"""One locked environment per backend: create it once, mark it complete, find its interpreter.

An environment is made by uv from `backends/<name>/requirements.txt` in place, under a lock, and
counts as complete only once its state file has been put there by an atomic rename: an install that
is cut off is wiped and made again.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock

from phibuild.errors import Problem, ToolchainError
from phibuild.files import write_atomically
from phibuild.pip_config import has_local_torch, no_index, uv_environment
from phibuild.places import toolchains_folder

_STATE = ".phibuild-complete.json"
BACKENDS = Path(__file__).resolve().parent / "backends"


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
        """Return why the environment cannot be used, None if it can."""
        try:
            state = json.loads((self.folder / _STATE).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return "not installed"
        if not isinstance(state, dict) or not isinstance(state.get("dist_info"), list):
            return "damaged: its state file is not what phibuild writes"
        if not self.python.exists():
            return f"damaged: {self.python} is missing"
        missing = [name for name in state["dist_info"] if not (self.folder / name).is_dir()]
        return f"damaged: {missing[0]} is missing" if missing else None

    def versions(self) -> dict[str, str]:
        """Return the locked version of every package, markers ignored."""
        pins = re.findall(
            r"^([A-Za-z0-9._-]+)==([^\s;]+)", self.lock.read_text(encoding="utf-8"), re.MULTILINE
        )
        return dict(pins)

    def install(self, say: Callable[[str], None] = lambda text: None) -> float:
        """Make the environment unless it is complete; return the seconds that it took.

        Raises ToolchainError with uv's own words if that fails. Safe to call from several
        processes at once.
        """
        folder = self.folder
        try:
            folder.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ToolchainError(
                Problem(
                    f"cannot be written: {error.strerror}",
                    str(folder.parent),
                    "set PHIBUILD_TOOLCHAINS to a folder that can be written",
                )
            ) from error
        with FileLock(folder.with_suffix(".lock")):
            if self.problem() is None:
                return 0.0
            started = time.monotonic()
            self._wipe()
            say("creating the environment")
            _uv(
                self.name,
                "venv",
                "--quiet",
                "--no-project",
                "--python",
                sys.executable,
                str(folder),
            )
            say("installing packages")
            command = ["pip", "sync", "--quiet", "--python", str(self.python), str(self.lock)]
            if "torch" in self.versions() and sys.platform == "linux" and not has_local_torch():
                # PyPI's torch for Linux brings gigabytes of CUDA that no runner would load.
                command += ["--torch-backend", "cpu"]
            if no_index():
                command.append("--no-index")
            _uv(self.name, *command)
            state = {
                "lock_digest": self.digest,
                "dist_info": sorted(
                    path.relative_to(folder).as_posix() for path in folder.rglob("*.dist-info")
                ),
            }
            write_atomically(folder / _STATE, json.dumps(state, indent=1))
            return time.monotonic() - started

    def remove(self) -> bool:
        """Remove the environment; return whether it was there."""
        if not self.folder.exists():
            return False
        with FileLock(self.folder.with_suffix(".lock")):
            self._wipe()
        return True

    def _wipe(self) -> None:
        # The state file goes first: what is left by an interruption is not complete.
        (self.folder / _STATE).unlink(missing_ok=True)
        if self.folder.exists():
            shutil.rmtree(self.folder)


def toolchain(name: str) -> Toolchain:
    """Return the toolchain of a backend."""
    return Toolchain(name, BACKENDS / name / "requirements.txt")


def _uv(name: str, *words: str) -> None:
    from uv import find_uv_bin

    # A virtual environment or project that phibuild runs in must not draw uv to itself.
    environ = {key: value for key, value in os.environ.items() if key != "VIRTUAL_ENV"}
    environ.update(uv_environment())
    done = subprocess.run(
        [find_uv_bin(), *words], env=environ, capture_output=True, text=True, check=False
    )
    if done.returncode:
        reason = done.stderr.strip() or done.stdout.strip() or f"uv exited with {done.returncode}"
        raise ToolchainError(
            Problem(
                f"toolchain {name} could not be installed:\n{reason}",
                None,
                "check the network or the mirror in pip's configuration, then run it again",
            )
        )
