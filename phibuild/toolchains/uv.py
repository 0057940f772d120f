"""Running uv: with pip's configuration, and never longer than it is wanted."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from pathlib import Path

from phibuild.errors import Problem, ToolchainError
from phibuild.toolchains.pip_config import uv_environment

_POLL_SECONDS = 0.2


def run_uv(
    what: str,
    *words: str,
    folder: Path | None = None,
    lock: int | None = None,
    cancelled: Callable[[], bool] = lambda: False,
) -> None:
    """Run uv in a folder. Raises ToolchainError, which begins with `what` and has uv's own words.

    uv keeps the descriptor of a `lock` open: if phibuild is killed, the lock is held until uv has
    ended too. uv is ended when `cancelled` says so.
    """
    from uv import find_uv_bin

    # A virtual environment or project that phibuild runs in must not draw uv to itself.
    environ = {key: value for key, value in os.environ.items() if key != "VIRTUAL_ENV"}
    environ.update(uv_environment())
    with subprocess.Popen(
        [find_uv_bin(), *words],
        env=environ,
        cwd=folder,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        pass_fds=() if lock is None else (lock,),
    ) as process:
        while True:
            try:
                output, _ = process.communicate(timeout=_POLL_SECONDS)
                break
            except subprocess.TimeoutExpired:
                if cancelled():
                    process.kill()
                    process.wait()
                    raise ToolchainError(Problem(f"{what}: interrupted")) from None
    if process.returncode:
        reason = output.strip() or f"uv exited with {process.returncode}"
        raise ToolchainError(
            Problem(
                f"{what}:\n{reason}",
                None,
                "check the network or the mirror in pip's configuration, then run it again",
            )
        )
