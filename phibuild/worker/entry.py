"""Entry of every runner: `python entry.py BACKEND [PACKAGE FOLDER]` in that backend's toolchain.

Request JSON on standard input; events, one JSON object a line, on standard output
(`phibuild.worker.protocol`); everything that a library prints goes to standard error, the cell's
log. Standard library only. The core's own site-packages must not leak into a toolchain, so the
package is made importable by its folder alone (`_mount`), not by a path that holds other packages
too; so is PACKAGE, in FOLDER, of a backend that is not phibuild's own.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import json
import os
import signal
import sys
import types
from pathlib import Path
from typing import TextIO

PACKAGE = Path(__file__).resolve().parents[1]
# A runner reads folders: nothing of it may use the network, or tell anybody of its use. Set before
# any library is loaded, since they look when they are. ONNX Runtime and onnxruntime-genai write a
# device id and two databases into the user's cache and look for mobile.events.data.microsoft.com,
# unless they are told not to (Privacy.md in the package). openvino_telemetry has no such variable:
# see phibuild/backends/openvino/telemetry.py.
_QUIET = {
    "ORT_DISABLE_TELEMETRY": "1",
    "HF_HUB_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "DO_NOT_TRACK": "1",
    "TOKENIZERS_PARALLELISM": "false",
}
# What a verb takes of a backend's module (phibuild/worker/interface.py: Worker); the original's
# verbs are functions of the module themselves.
_NEEDED = {
    "build": ("build",),
    "judge": ("REFERENCE", "prepare", "load"),
    "generate": ("load",),
}


def _mount(name: str, folder: Path) -> None:
    """Make the package `name` importable from its folder; of those that it lies in, nothing."""
    parts = name.split(".")
    for count in range(1, len(parts) + 1):
        package = types.ModuleType(".".join(parts[:count]))
        package.__path__ = [str(folder)] if count == len(parts) else []
        sys.modules[package.__name__] = package


def _events_stream() -> TextIO:
    """Keep standard output for events alone: what libraries print to it goes to the log."""
    private = os.dup(1)
    os.dup2(2, 1)
    sys.stdout = sys.stderr
    return os.fdopen(private, "w", encoding="utf-8")


def _die_with_parent() -> None:
    """Have the kernel end this process when phibuild is killed (Linux: PR_SET_PDEATHSIG)."""
    if sys.platform == "linux":
        parent = os.getppid()
        ctypes.CDLL(None).prctl(1, signal.SIGKILL, 0, 0, 0)
        if os.getppid() != parent:  # it died before the call
            sys.exit(1)


def _be_ended_first() -> None:
    """Have the kernel choose this process when memory runs out, not the user's others (Linux)."""
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("500", encoding="ascii")


def main() -> None:
    _die_with_parent()
    _be_ended_first()
    stream = _events_stream()
    backend, *mount = sys.argv[1:]
    package = f"phibuild.backends.{backend}"
    _mount("phibuild", PACKAGE)
    if mount:
        package = mount[0]
        _mount(package, Path(mount[1]))
    from phibuild.worker.lean import import_lean
    from phibuild.worker.protocol import Report, WorkerError

    import_lean()
    report = Report(stream)
    from phibuild.worker.requests import check_request, item_names

    request = json.load(sys.stdin)
    check_request(request)
    os.environ.update(_QUIET)
    with report.loading():
        runner = importlib.import_module(f"{package}.worker")
    verb = request["verb"]
    lacking = [name for name in _NEEDED.get(verb, (verb,)) if not hasattr(runner, name)]
    if lacking:
        error = WorkerError(f"the backend's module {package}.worker lacks {', '.join(lacking)}")
        for item in item_names(request):
            report.failed(item, error)
    elif verb == "build":
        runner.build(request, report)
    elif verb == "judge":
        importlib.import_module("phibuild.worker.judge").judge(runner, request, report)
    elif verb in ("source", "reference", "activations", "quantize", "sensitivity"):
        getattr(runner, verb)(request, report)
    elif verb == "generate":
        importlib.import_module("phibuild.worker.generation").generate(runner, request, report)
    report.end()
    sys.stderr.flush()
    os._exit(0)  # all is written, and large libraries take a second to take themselves down


if __name__ == "__main__":
    main()
