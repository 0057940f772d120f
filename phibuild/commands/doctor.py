"""`phibuild doctor`: what works on this machine, what is missing and how to get it."""

from __future__ import annotations

import argparse
import ctypes.util
import os
import platform
import shutil
import sys
from pathlib import Path
from typing import Literal

import psutil
from tabulate import tabulate

from phibuild.backends.registry import BACKENDS, backend
from phibuild.commands.answers import Check, DoctorAnswer
from phibuild.errors import EXIT_CELL_FAILED, EXIT_OK, BackendError, Problem
from phibuild.schema import document_text
from phibuild.system.places import store_folder, toolchains_folder
from phibuild.system.plugins import shadowed
from phibuild.toolchains.environment import toolchain
from phibuild.toolchains.pip_config import pip_settings
from phibuild.units import format_decimal

_MIN_DISK = 10 * 10**9
_MIN_MEMORY = 4 * 10**9
State = Literal["ok", "missing", "bad"]


def run(arguments: argparse.Namespace) -> int:
    """Print the checks; 1 if something stands in the way of a build."""
    checks = [*_host(), *_places(), *_toolchains()]
    if arguments.json:
        print(document_text(DoctorAnswer(checks)))
    else:
        rows = [(check.check, check.state, check.found, check.remedy) for check in checks]
        headers = ("check", "state", "found", "what to do")
        print(tabulate(rows, headers=headers, disable_numparse=True))
    return EXIT_CELL_FAILED if any(check.state == "bad" for check in checks) else EXIT_OK


def _check(check: str, state: State, found: str, remedy: str = "") -> Check:
    return Check(check=check, state=state, found=found, remedy=remedy)


def _host() -> list[Check]:
    memory = psutil.virtual_memory().total
    system = f"{platform.system()} {platform.machine()}"
    windows = sys.platform == "win32"
    checks = [
        _check("system", "bad" if windows else "ok", system,
               "runners need Linux, macOS or WSL" if windows else ""),
        _check("python", "ok", platform.python_version()),
        _check("cores", "ok", str(os.cpu_count())),
        _check("memory", "ok" if memory >= _MIN_MEMORY else "bad", format_decimal(memory),
               "" if memory >= _MIN_MEMORY else f"{format_decimal(_MIN_MEMORY)} at least"),
    ]  # fmt: skip
    if sys.platform == "linux":
        openmp = ctypes.util.find_library("gomp")
        remedy = "" if openmp else "install your system's libgomp1 package"
        state: State = "ok" if openmp else "missing"
        checks.append(_check("OpenMP (llamacpp)", state, openmp or "no libgomp", remedy))
    mirror = ", ".join(sorted(pip_settings())) or "none"
    checks.append(_check("pip settings handed to uv", "ok", mirror))
    return checks


def _places() -> list[Check]:
    checks = []
    for name, folder, variable in (
        ("store", store_folder(), "PHIBUILD_STORE"),
        ("toolchains", toolchains_folder(), "PHIBUILD_TOOLCHAINS"),
    ):
        existing = _existing_parent(folder)
        free = shutil.disk_usage(existing).free
        if not os.access(existing, os.W_OK):
            found = f"{folder} cannot be written"
            checks.append(_check(name, "bad", found, f"set {variable}"))
        elif free < _MIN_DISK:
            found = f"{folder}: {format_decimal(free)} free"
            checks.append(_check(name, "missing", found, f"free some space, or set {variable}"))
        else:
            checks.append(_check(name, "ok", f"{folder}: {format_decimal(free)} free"))
    return checks


def _existing_parent(folder: Path) -> Path:
    while not folder.exists():
        folder = folder.parent
    return folder


def _toolchains() -> list[Check]:
    checks = []
    for name in BACKENDS:
        try:
            backend(name)
            problem = toolchain(name).problem()
        except BackendError as error:
            checks += [_unusable(name, one) for one in error.problems]
            continue
        remedy = f"phibuild toolchain install {name} (a build does it by itself)"
        state: State = "ok" if problem is None else "missing"
        found = problem or "complete"
        checks.append(_check(f"toolchain {name}", state, found, remedy if problem else ""))
    return [*checks, *(_unusable(name, one) for name, one in shadowed())]


def _unusable(name: str, problem: Problem) -> Check:
    """Return what is said of a package that is no backend: it is in the way of its own builds
    alone."""
    found = f"{problem.where}: {problem.what}"
    return _check(f"backend {name}", "missing", found, problem.remedy or "")
