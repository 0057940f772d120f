"""Programs in a Python that has imported its libraries already.

A test run starts a thousand processes, of which most of the time goes into the same imports. What
a program does is its own: it has its process, streams, environment, folder and cores, and all that
the imports left is shared until it writes there. `warm_server.py` is the other side. Where a start
itself is what is tested, or memory, or the environment that Python reads when it starts,
`subprocess` is the way.
"""

from __future__ import annotations

import atexit
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from functools import cache
from pathlib import Path
from select import select

from phibuild.toolchains.environment import Toolchain, toolchain

ROOT = Path(__file__).resolve().parents[2]
_SERVER = Path(__file__).with_name("warm_server.py")
_PHIBUILD = [str(Path(__file__).with_name("warm_phibuild.py"))]


def _modules_of(backend: str, *names: str) -> tuple[str, ...]:
    return tuple(f"phibuild.backends.{backend}.{name}" for name in names)


_IMPORTS = {
    "pytorch": ("transformers.models.phi3.modeling_phi3",),
    "executorch": _modules_of("executorch", "worker", "convert", "runtime"),
    "ort_genai": (*_modules_of("ort_genai", "worker", "convert"), "onnxruntime_genai"),
    "openvino": _modules_of("openvino", "worker", "convert", "tokenizer"),
}
"""What takes their runners a second or more to import, by backend."""
_VENDORS = {
    "executorch": (
        "executorch.backends.xnnpack.operators.node_visitor",
        "executorch.examples.models.llama.source_transformation.quantize",
        "executorch.exir._serialize._program",
    ),
}
"""The same of vendors' environments."""
_OWN = (
    "PYTEST_CURRENT_TEST", "PHIBUILD_STORE", "PHIBUILD_TOOLCHAINS", "PHIBUILD_FAULT",
    "PHIBUILD_FAULTS_MARK", "HF_HUB_OFFLINE",
)  # fmt: skip
"""Variables that differ from program to program, and that no import of phibuild's looks at. Those
of a toolchain are made without the Hub, and the server sees to PYTHONPATH."""
_QUIET = {"HF_HUB_OFFLINE": "1", "ORT_DISABLE_TELEMETRY": "1", "TQDM_DISABLE": "1"}
"""What runners set before they import anything (phibuild/worker/entry.py)."""
_HUB = ("HF_", "HUGGINGFACE_")
"""What variables begin with that huggingface_hub reads, which phibuild imports when it has to."""


def _modules(python: str) -> list[str]:
    """Return what the programs of an interpreter import: phibuild's own, the toolchains of
    _IMPORTS and vendors' environments of _VENDORS; [] of others."""
    if python == sys.executable:
        return _PHIBUILD
    for name, modules in _IMPORTS.items():
        if python == str(toolchain(name).python):
            return [f"lean={ROOT}", *modules]
    for name, modules in _VENDORS.items():
        if python == str(Toolchain(f"vendor-{name}", ROOT / f"tests/vendors/{name}.txt").python):
            return list(modules)
    return []


@cache
def _server(python: str) -> tuple[socket.socket, Mapping[str, str]]:
    """Return the connection to a server of this process, and the environment that it began with."""
    environ = _seen(python, os.environ)
    here, there = socket.socketpair()
    with there:
        process = subprocess.Popen(
            [python, "-P", str(_SERVER), str(there.fileno()), *_modules(python)],
            env={**environ, **_QUIET}, pass_fds=[there.fileno()],
            stdin=subprocess.DEVNULL,
        )  # fmt: skip

    def end() -> None:
        here.close()
        process.wait()

    atexit.register(end)
    return here, environ


def _seen(python: str, environ: Mapping[str, str]) -> dict[str, str]:
    """Return what of an environment the imports of an interpreter look at."""
    is_phibuild = python == sys.executable
    own = _OWN if is_phibuild else (*_OWN, "PYTHONPATH")
    return {
        name: text
        for name, text in environ.items()
        if name not in own and not (is_phibuild and name.startswith(_HUB))
    }


def run(
    words: Sequence[str | Path],
    *,
    input: str = "",
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    timeout: float = 900,
) -> subprocess.CompletedProcess[str]:
    """Do what `subprocess.run(words, capture_output=True, text=True, check=False)` does: where
    `words` are a Python that has imported its libraries and what it is to run, there. If the
    program's environment is not what the imports saw, it is started as ever."""
    python, *program = map(str, words)
    environ = dict(os.environ if env is None else env)
    if not _modules(python) or _seen(python, environ) != _server(python)[1]:
        return subprocess.run(
            [python, *program], input=input, env=environ, cwd=cwd, timeout=timeout,
            capture_output=True, text=True, check=False,
        )  # fmt: skip
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
    request = json.dumps(
        {"words": program, "environ": environ, "cwd": str(cwd or Path.cwd()), "cores": cores}
    )
    with ExitStack() as stack:
        asked, given, out, said = (
            stack.enter_context(tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace"))
            for _ in range(4)
        )
        for file, text in ((asked, request), (given, input)):
            file.write(text)
            file.seek(0)
        ended, theirs = os.pipe()
        stack.callback(os.close, ended)
        files = [file.fileno() for file in (asked, given, out, said)]
        socket.send_fds(_server(python)[0], [b" "], [*files, theirs])
        os.close(theirs)
        if not select([ended], [], [], timeout)[0]:
            raise subprocess.TimeoutExpired(program, timeout)
        code = int(os.read(ended, 20) or -signal.SIGKILL)
        out.seek(0)
        said.seek(0)
        return subprocess.CompletedProcess(program, code, out.read(), said.read())
