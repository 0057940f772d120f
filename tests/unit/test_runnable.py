"""What `phibuild run` takes for what: files and folders without a manifest, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from conftest import CommandLine
from phibuild.errors import ConfigError
from phibuild.report.runnable import find_runnable
from support.documents import some_facts

GGUF = b"GGUF\x03\0\0\0"


def fill(folder: Path, files: dict[str, bytes]) -> Path:
    for name, data in files.items():
        (folder / name).write_bytes(data)
    return folder


def config(**keys: object) -> bytes:
    return json.dumps({"model_type": "phi3", **keys}).encode()


def manifest(changes: dict[str, object] | None) -> bytes:
    """Return a manifest.json of one file that is not there: of an artifact, or (None) of what the
    original left."""
    file = {"path": "a", "size": 1, "sha256": "", "mtime_ns": 1}
    data: dict[str, object] = {"key": "k", "artifact_digest": "", "files": [file]}
    if changes is not None:
        data |= some_facts().model_dump(mode="json") | changes
    return json.dumps(data).encode()


@pytest.mark.parametrize(
    ("files", "backend", "name"),
    [
        ({"genai_config.json": b"{}", "config.json": config()}, "ort_genai", ""),
        ({"openvino_model.xml": b"", "config.json": config()}, "openvino", ""),
        ({"any.gguf": GGUF}, "llamacpp", "any.gguf"),
        ({"a-00002-of-00002.gguf": GGUF, "a-00001-of-00002.gguf": GGUF}, "llamacpp",
         "a-00001-of-00002.gguf"),
        ({"config.json": config(quantization={"bits": 4})}, "mlx", ""),
        ({"config.json": config(quantization_config={"quant_method": "compressed-tensors"})},
         "pytorch", ""),
    ],
)  # fmt: skip
def test_formats(tmp_path: Path, files: dict[str, bytes], backend: str, name: str) -> None:
    found = find_runnable(str(fill(tmp_path, files)), tmp_path)
    assert (found.backend, found.path) == (backend, tmp_path / name)


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, "no phibuild artifact"),
        ({"a.gguf": GGUF, "b.gguf": GGUF}, "2 GGUF files here: a.gguf, b.gguf"),
        ({"a.gguf": b"GG"}, "not a GGUF file"),
        ({"config.json": config()}, "a checkpoint, or an artifact without its manifest.json"),
        ({"config.json": config(quantization_config={"quant_method": "gptq"})}, "a checkpoint"),
        ({"config.json": b"["}, "no phibuild artifact"),
        ({"manifest.json": b"["}, "its manifest.json is damaged"),
        ({"manifest.json": b"[" * 100_000}, "its manifest.json is damaged"),
        ({"manifest.json": b'{"files": []}'}, "is damaged, or of no artifact: key: field required"),
        ({"manifest.json": manifest(None)}, "or of no artifact: model: field required"),
        ({"manifest.json": manifest({"backend": ["mlx"]})}, "artifact: backend: input should be"),
        ({"manifest.json": manifest({"backend": "tflite"})}, "that is not here: 'tflite'"),
        ({"manifest.json": manifest({})}, "the artifact is damaged: a: missing"),
    ],
)  # fmt: skip
def test_refusals(tmp_path: Path, files: dict[str, bytes], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        find_runnable(str(fill(tmp_path, files)), tmp_path)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["no.gguf", "hello"], "no.gguf: no such file"),
        (["a.gguf", ""], "command line: the prompt is empty\n    --raw starts from nothing"),
        (["a.gguf", "--raw", "--system", "x", "hello"], "there is no place for --system"),
        (["a.gguf", "--raw", "--template", "x", "hello"], "there is no place for --template"),
        (["a.gguf", "\udcff"], "command line: the prompt is not UTF-8"),
        (["a.gguf", "hello", "--system", "\udcff"], "command line: --system is not UTF-8"),
        (["../a.txt", "hello"], "../a.txt: not a GGUF file"),
    ],
)
def test_wrong_usage(phibuild: CommandLine, words: list[str], message: str) -> None:
    (phibuild.folder / "a.gguf").write_bytes(GGUF)
    (phibuild.folder.parent / "a.txt").write_bytes(b"text")
    done = phibuild("run", *words)
    assert (done.returncode, done.stdout) == (2, "")
    assert message in done.stderr
    assert "Traceback" not in done.stderr
