"""What `phibuild run` runs: artifacts, and files of the same formats without a manifest."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path

from phibuild.backends.registry import BACKENDS
from phibuild.errors import ConfigError, Problem
from phibuild.report.runs import COPY_AGAIN, find_artifact
from phibuild.store.manifest import MANIFEST, StoredArtifact, damage
from phibuild.worker.json_values import JsonObject, object_or_empty

_GGUF_MAGIC = b"GGUF"
_FIRST_PART = re.compile(r"-0*1-of-\d+\.gguf$")
_LITERT = ("model.litertlm", "model.tflite")
_GIVE = "give the folder of an artifact, a GGUF file or a cell id"


@dataclass(frozen=True)
class Runnable:
    """A file or folder, and the backend whose runtime reads it."""

    path: Path
    backend: str


def find_runnable(what: str, output: Path) -> Runnable:
    """Return what a word of the command line names: a cell id of a run in `output`, an artifact's
    folder, a GGUF file, or a folder that holds one format without a manifest.

    Raises ConfigError if it names nothing, or nothing that can be run.
    """
    path = Path(what)
    if path.is_file():
        return Runnable(_gguf(path, what), "llamacpp")
    if path.is_dir() and not (path / MANIFEST).exists():
        return _recognized(path, what)
    if what.endswith(".gguf"):
        raise ConfigError(Problem("no such file", what))
    artifact = find_artifact(what, output)
    return Runnable(artifact.folder, _backend(artifact))


def _backend(artifact: StoredArtifact) -> str:
    backend = artifact.manifest.backend
    if backend not in BACKENDS:
        what = f"its {MANIFEST} is of a backend that is not here: {backend!r}"
        raise ConfigError(Problem(what, str(artifact.folder), f"backends: {', '.join(BACKENDS)}"))
    problem = damage(artifact)
    if problem:
        what = f"the artifact is damaged: {problem}"
        raise ConfigError(Problem(what, str(artifact.folder), COPY_AGAIN))
    return backend


def _recognized(folder: Path, what: str) -> Runnable:
    """Return what a folder without a manifest holds, by the files that each format has alone."""
    if (folder / "genai_config.json").is_file():
        return Runnable(folder, "ort_genai")
    if (folder / "openvino_model.xml").is_file():
        return Runnable(folder, "openvino")
    if any((folder / name).is_file() for name in _LITERT):
        return Runnable(folder, "litert")
    if (folder / "model.aimodel").is_dir():
        return Runnable(folder, "coreai")
    if (folder / "model.pte").is_file():
        return Runnable(folder, "executorch")
    files = sorted(folder.glob("*.gguf"))
    first = [path for path in files if _FIRST_PART.search(path.name)]
    if len(files) == 1 or len(first) == 1:
        return Runnable(_gguf((first or files)[0], what), "llamacpp")
    if files:
        names = ", ".join(path.name for path in files)
        raise ConfigError(Problem(f"{len(files)} GGUF files here: {names}", what, "name one"))
    config = _config(folder)
    match config:
        case {"quantization": dict()}:  # mlx-lm's key
            return Runnable(folder, "mlx")
        case {"quantization_config": {"quant_method": "compressed-tensors"}}:
            return Runnable(folder, "pytorch")
    if config:
        found = f"a checkpoint, or an artifact without its {MANIFEST}: its format cannot be told"
        remedy = f"'phibuild build model={what}' makes artifacts of a checkpoint"
        raise ConfigError(Problem(found, what, remedy))
    raise ConfigError(Problem(f"no phibuild artifact (no {MANIFEST})", what, _GIVE))


def _config(folder: Path) -> JsonObject:
    try:
        data = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return object_or_empty(data)


def _gguf(path: Path, what: str) -> Path:
    with path.open("rb") as file:
        start = file.read(len(_GGUF_MAGIC))
    if start != _GGUF_MAGIC:
        raise ConfigError(Problem("not a GGUF file", what, _GIVE))
    return path
