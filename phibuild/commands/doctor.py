"""`phibuild doctor`: what works on this machine, what is missing and how to get it."""

from __future__ import annotations

import argparse
import ctypes.util
import json
import os
import platform
import shutil
import sys
from pathlib import Path

import psutil
from tabulate import tabulate

from phibuild.backends.registry import BACKENDS
from phibuild.errors import EXIT_CELL_FAILED, EXIT_OK
from phibuild.system.places import store_folder, toolchains_folder
from phibuild.toolchains.environment import toolchain
from phibuild.toolchains.pip_config import pip_settings
from phibuild.units import format_size

_MIN_DISK = 10 << 30
_MIN_MEMORY = 4 << 30
Check = tuple[str, str, str, str]
"""What is checked, "ok" | "missing" | "bad", what was found, what to do."""


def run(arguments: argparse.Namespace) -> int:
    """Print the checks; 1 if something stands in the way of a build."""
    checks = [*_host(), *_places(), *_toolchains()]
    if arguments.json:
        keys = ("check", "state", "found", "remedy")
        print(json.dumps([dict(zip(keys, check, strict=True)) for check in checks], indent=1))
    else:
        print(
            tabulate(
                checks, headers=("check", "state", "found", "what to do"), disable_numparse=True
            )
        )
    return EXIT_CELL_FAILED if any(check[1] == "bad" for check in checks) else EXIT_OK


def _host() -> list[Check]:
    memory = psutil.virtual_memory().total
    system = f"{platform.system()} {platform.machine()}"
    windows = sys.platform == "win32"
    enough = memory >= _MIN_MEMORY
    memory_remedy = "" if enough else f"{format_size(_MIN_MEMORY)} at least"
    system_remedy = "runners need Linux, macOS or WSL" if windows else ""
    checks: list[Check] = [
        ("system", "bad" if windows else "ok", system, system_remedy),
        ("python", "ok", platform.python_version(), ""),
        ("cores", "ok", str(os.cpu_count()), ""),
        ("memory", "ok" if enough else "bad", format_size(memory), memory_remedy),
    ]
    if sys.platform == "linux":
        openmp = ctypes.util.find_library("gomp")
        openmp_remedy = "" if openmp else "install your system's libgomp1 package"
        found = openmp or "no libgomp"
        checks.append(("OpenMP (llamacpp)", "ok" if openmp else "missing", found, openmp_remedy))
    mirror = ", ".join(sorted(pip_settings())) or "none"
    checks.append(("pip settings handed to uv", "ok", mirror, ""))
    return checks


def _places() -> list[Check]:
    checks: list[Check] = []
    for name, folder, variable in (
        ("store", store_folder(), "PHIBUILD_STORE"),
        ("toolchains", toolchains_folder(), "PHIBUILD_TOOLCHAINS"),
    ):
        existing = _existing_parent(folder)
        free = shutil.disk_usage(existing).free
        if not os.access(existing, os.W_OK):
            checks.append((name, "bad", f"{folder} cannot be written", f"set {variable}"))
        elif free < _MIN_DISK:
            found = f"{folder}: {format_size(free)} free"
            checks.append((name, "missing", found, f"free some space, or set {variable}"))
        else:
            checks.append((name, "ok", f"{folder}: {format_size(free)} free", ""))
    return checks


def _existing_parent(folder: Path) -> Path:
    while not folder.exists():
        folder = folder.parent
    return folder


def _toolchains() -> list[Check]:
    checks: list[Check] = []
    for name in BACKENDS:
        problem = toolchain(name).problem()
        remedy = f"phibuild toolchain install {name} (a build does it by itself)"
        state = "ok" if problem is None else "missing"
        checks.append(
            (f"toolchain {name}", state, problem or "complete", remedy if problem else "")
        )
    return checks
