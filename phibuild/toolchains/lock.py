"""Making a toolchain's lock, requirements.txt, from requirements.in: for who maintains it."""

from __future__ import annotations

import os
from pathlib import Path

from phibuild.errors import Problem, ToolchainError
from phibuild.toolchains.environment import Toolchain
from phibuild.toolchains.uv import run_uv

_PYTHON = "3.11"  # the oldest that phibuild runs on
_OVERRIDES = Path(__file__).resolve().parents[1] / "backends" / "torch_overrides.txt"
_OWN_OVERRIDES = "overrides.txt"
"""What a backend leaves out of its lock, beside its requirements.in."""


def make_lock(tools: Toolchain, *, upgrade: bool = False) -> bool:
    """Resolve a toolchain's requirements anew and write its lock; say whether it changed. Versions
    that are locked stay where they are allowed, unless `upgrade` is asked for.

    Raises ToolchainError where there is no source checkout that can be written, or with uv's words.
    """
    folder = tools.lock.parent
    if not (folder / "requirements.in").is_file() or not _can_write(folder, tools.lock):
        raise ToolchainError(
            Problem(
                f"the lock of toolchain {tools.name} cannot be written",
                str(tools.lock),
                "locks are made in a source checkout, by who may write it",
            )
        )
    before = tools.lock.read_text(encoding="utf-8") if tools.lock.exists() else None
    beside = (folder.parent / _OVERRIDES.name).is_file()
    overrides = f"../{_OVERRIDES.name}" if beside else str(_OVERRIDES)
    words = ["pip", "compile", "--quiet", "--universal", "--python-version", _PYTHON]
    words += ["--overrides", overrides]
    if (folder / _OWN_OVERRIDES).is_file():
        words += ["--overrides", _OWN_OVERRIDES]
    words += ["requirements.in", "-o", tools.lock.name]
    # The command is written into the lock: what is asked for once is no part of it, nor where
    # phibuild lies.
    command = f"uv {' '.join(word for word in words if word != '--quiet')}"
    if not beside:
        command = f"phibuild toolchain lock {tools.name}"
    words += ["--custom-compile-command", command, *(["--upgrade"] if upgrade else [])]
    run_uv(f"toolchain {tools.name} could not be locked", *words, folder=folder)
    return tools.lock.read_text(encoding="utf-8") != before


def _can_write(folder: Path, lock: Path) -> bool:
    return os.access(folder, os.W_OK) and (not lock.exists() or os.access(lock, os.W_OK))
