"""Entry of every runner: `python worker.py BACKEND` inside that backend's toolchain.

Request JSON on standard input; events, one JSON object a line, on standard output; everything
that a library prints goes to standard error, the cell's log. Standard library only. The core's
own site-packages must not leak into a toolchain, so the package is made importable by its folder
alone (`_mount`), not by a path that holds other packages too.

Events: {"event": "stage", "item", "stage", "fraction"}, {"event": "item", "item", "result"},
{"event": "failed", "item", "error"}, and at the end {"event": "end", "cpu_seconds"}; a worker that
stops without "end" has crashed.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import json
import os
import re
import resource
import signal
import sys
import time
import traceback
import types
from pathlib import Path
from typing import Any, TextIO

PACKAGE = Path(__file__).resolve().parent
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


class Report:
    """What a runner says while it works. An item is one variant or one artifact, by its key."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._started = time.monotonic()

    def _send(self, **event: Any) -> None:
        print(json.dumps(event), file=self._stream, flush=True)

    def stage(self, stage: str, fraction: float | None = None, item: str | None = None) -> None:
        """Say what is being done, and how much of it is done (0 to 1) where that is known."""
        self._send(event="stage", stage=stage, fraction=fraction, item=item)

    def item(self, item: str, result: dict[str, Any]) -> None:
        """Say that an item is complete. `result` gets the seconds since the last item and the
        peak memory since then, unless it has its own."""
        now = time.monotonic()
        result.setdefault("seconds", now - self._started)
        result.setdefault("peak_rss_bytes", peak_rss_bytes())
        reset_peak_rss()
        self._started = now
        self._send(event="item", item=item, result=result)

    def failed(self, item: str, error: BaseException | str) -> None:
        """Say that an item failed, and why; the traceback goes to the log."""
        if isinstance(error, BaseException):
            traceback.print_exception(error)
            name, text = type(error).__name__, str(error).strip()
            error = text if isinstance(error, WorkerError) else f"{name}: {text or 'no message'}"
        self._send(event="failed", item=item, error=error)

    def text(self, text: str) -> None:
        """Pass on generated text."""
        self._send(event="text", text=text)

    def end(self) -> None:
        """Say that all is done, and what CPU time it took, children included."""
        usage = [
            resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
        ]
        self._send(event="end", cpu_seconds=sum(one.ru_utime + one.ru_stime for one in usage))


class WorkerError(Exception):
    """A failure whose message is written for the user."""


def peak_rss_bytes() -> int:
    """Return the largest resident memory of this process since `reset_peak_rss`, in bytes."""
    try:
        status = Path("/proc/self/status").read_text(encoding="ascii")
        found = re.search(r"VmHWM:\s+(\d+) kB", status)
        if found:
            return int(found[1]) * 1024
    except OSError:
        pass  # not Linux
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def reset_peak_rss() -> None:
    """Start the peak anew, so that each item has its own (Linux; elsewhere it goes on rising)."""
    with contextlib.suppress(OSError):  # not Linux, or not allowed
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def _mount() -> None:
    package = types.ModuleType("phibuild")
    package.__path__ = [str(PACKAGE)]
    sys.modules["phibuild"] = package
    # This file runs as __main__; runners import it by its name and must get the same classes.
    sys.modules["phibuild.worker"] = sys.modules["__main__"]


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
    report = Report(_events_stream())
    _mount()
    request = json.load(sys.stdin)
    os.environ.update(_QUIET)
    runner = importlib.import_module(f"phibuild.backends.{sys.argv[1]}.worker")
    verb = request["verb"]
    if verb == "build":
        runner.build(request, report)
    elif verb == "judge":
        importlib.import_module("phibuild.evaluate.judge").judge(runner, request, report)
    elif verb in ("source", "reference", "activations"):
        getattr(runner, verb)(request, report)
    elif verb == "generate":
        importlib.import_module("phibuild.backends.generation").generate(runner, request, report)
    report.end()
    sys.stderr.flush()
    os._exit(0)  # all is written, and large libraries take a second to take themselves down


if __name__ == "__main__":
    main()
