"""ExecuTorch's flatbuffers as JSON: written and read by its own compiler, flatc, and schemas."""

from __future__ import annotations

import json
import subprocess
import tempfile
from collections.abc import Sequence
from functools import cache
from importlib.util import find_spec
from pathlib import Path

from phibuild.worker.json_values import JsonDict
from phibuild.worker.protocol import WorkerError

PROGRAM, XNNPACK = "schema/program.fbs", "backends/xnnpack/serialization/schema.fbs"
"""The schemas of a program, and of a graph that XNNPACK computes."""


@cache
def package() -> Path:
    """Return the folder of ExecuTorch's package, which takes seconds to import."""
    spec = find_spec("executorch")
    if spec is None or not spec.submodule_search_locations:
        raise WorkerError("the package executorch is not installed")
    return Path(next(iter(spec.submodule_search_locations)))


def write(schema: str, documents: Sequence[JsonDict]) -> list[bytes]:
    """Return a flatbuffer for each document."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        paths = [folder / f"{number}.json" for number in range(len(documents))]
        for path, document in zip(paths, documents, strict=True):
            path.write_text(json.dumps(document, allow_nan=False))
        _run("--binary", "-o", scratch, str(package() / schema), *map(str, paths))
        made = {path.stem: path for path in folder.iterdir() if path.suffix != ".json"}
        return [made[path.stem].read_bytes() for path in paths]


def read(schema: str, data: bytes) -> JsonDict:
    """Return a flatbuffer's document, with defaults as they are. Raises WorkerError if it is not
    one of the schema."""
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / "document.bin"
        path.write_bytes(data)
        words = ("--json", "--strict-json", "--defaults-json", "--raw-binary", "-o", scratch)
        _run(*words, str(package() / schema), "--", str(path))
        document: JsonDict = json.loads(path.with_suffix(".json").read_text("utf-8"))
        return document


def _run(*words: str) -> None:
    done = subprocess.run(
        [str(package() / "data" / "bin" / "flatc"), *words], capture_output=True, text=True
    )
    if done.returncode:
        raise WorkerError(f"flatc: {(done.stdout + done.stderr).strip()[-500:]}")
