"""Stands in for a toolchain's interpreter: misbehaves for one verb, else becomes the real one.

PHIBUILD_FAULT is JSON: {"verb", "what", "times", "folder", "command"}. `times` is how often it
misbehaves (files in `folder` count that); `command` is what the shell does for "damage".
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, NoReturn

REAL = "@real@"


def main() -> None:
    ctypes.CDLL(None).prctl(1, signal.SIGKILL, 0, 0, 0)  # as phibuild's own workers do
    data = sys.stdin.buffer.read()
    request = json.loads(data)
    fault = json.loads(os.environ["PHIBUILD_FAULT"])
    if request["verb"] == fault["verb"]:
        tried = len(list(Path(fault["folder"]).glob("misbehaved-*")))
        if tried < fault["times"]:
            (Path(fault["folder"]) / f"misbehaved-{tried}").touch()
            misbehave(fault["what"], request, fault)
    with tempfile.TemporaryFile() as file:
        file.write(data)
        file.seek(0)
        os.dup2(file.fileno(), 0)
        os.execv(REAL, [REAL, *sys.argv[1:]])


def misbehave(what: str, request: dict[str, Any], fault: dict[str, Any]) -> None:
    """Do what was asked for; returns if the real interpreter shall go on."""
    item = request["items"][0]["item"] if "items" in request else request["item"]
    if what == "damage":
        subprocess.run(fault["command"], shell=True, check=True)
        return
    if what == "hangs":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        wait()
    if what == "is stopped":
        os.kill(os.getpid(), signal.SIGSTOP)
        wait()
    if what.startswith("leaves a child"):
        if os.fork() == 0:
            if "session" in what:
                os.setsid()
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            wait()
        return
    says: dict[str, bytes] = {
        "says nothing": b"",
        "says only that it is done": b'{"event": "end", "cpu_seconds": 1, "loading_seconds": 0}\n',
        "prints text": b"Segmentation fault (core dumped)\n",
        "prints bytes": bytes(range(256)),
        "prints half an event": b'{"event": "it',
        "prints a list": b"[1, 2]\n",
        "prints brackets": b"[" * 200_000 + b"\n",
        "prints a stage without a name": b'{"event": "stage"}\n',
        "prints a result of the wrong shape": _event(event="item", item=item, result=[1]),
        "prints a result without figures": _event(event="item", item=item, result={}),
        "prints an error that is no text": _event(event="failed", item=item, error=[1]),
        "prints an item that is no key": _event(event="item", item=[1], result={}),
        "prints a line without an end": b"x" * (64 << 20),
    }
    sys.stdout.buffer.write(says[what])
    sys.stdout.buffer.flush()
    os._exit(0)


def _event(**event: Any) -> bytes:
    return json.dumps(event).encode() + b"\n"


def wait() -> NoReturn:
    while True:
        time.sleep(60)


if __name__ == "__main__":
    main()
