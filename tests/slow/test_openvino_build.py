"""Building OpenVINO artifacts for real: the embedded model, same bytes, weights beyond fp16."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from support.openvino_build import OPTIONS, RunWorker, build

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]
WITH_SAVE_MODEL = """
import json, sys
from phibuild.backends.openvino import files, telemetry, worker
from phibuild.worker.protocol import Report
import openvino as ov
files.save = lambda model, xml: ov.save_model(model, xml, compress_to_fp16=False)
worker.build(json.load(sys.stdin), Report(sys.stdout))
"""


def test_embedded_model_continues_code(run_worker: RunWorker, tmp_path: Path) -> None:
    source = ROOT / "phibuild" / "data" / "phi3-tiny-trained"
    events = build(source, tmp_path, ["int8-asym"], run_worker)
    assert [event["event"] for event in events if event["event"] != "stage"] == ["item", "end"]
    request = {
        "verb": "generate",
        "system": None,
        "template": None,
        "raw": True,
        "folder": str(tmp_path / "int8-asym"),
        "prompt": "    def __init__(self",
        "max_tokens": 24,
        "threads": 2,
    }
    text = "".join(e["text"] for e in run_worker("openvino", request) if e["event"] == "text")
    assert "self" in text


def test_same_bytes_whatever_is_built_before(
    checkpoint: Callable[..., Path], run_worker: RunWorker, tmp_path: Path
) -> None:
    source = checkpoint("phi4mini", layers=2)
    names = list(OPTIONS)
    build(source, tmp_path / "a", names, run_worker)
    build(source, tmp_path / "elsewhere" / "b", names[::-1], run_worker)
    for path in sorted((tmp_path / "a").rglob("*.*")):
        twin = tmp_path / "elsewhere" / "b" / path.relative_to(tmp_path / "a")
        assert path.read_bytes() == twin.read_bytes(), path


def test_graphs_are_saved_as_openvino_saves_them(
    checkpoint: Callable[..., Path],
    facts: Callable[[Path], Path],
    run_worker: RunWorker,
    toolchain_python: Callable[[str], Path],
    tmp_path: Path,
) -> None:
    def run(backend: str, request: dict[str, Any]) -> list[dict[str, Any]]:
        done = subprocess.run(
            [toolchain_python(backend), "-c", WITH_SAVE_MODEL],
            input=json.dumps({**request, "facts": str(facts(source))}),
            env={"PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            check=True,
        )
        return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]

    source = checkpoint("phi3", layers=2)
    names = list(OPTIONS)
    build(source, tmp_path / "ours", names, run_worker)
    build(source, tmp_path / "theirs", names, run)
    for name in names:
        own, other = (tmp_path / who / name / "openvino_model.xml" for who in ("ours", "theirs"))
        assert b"OpenVINO Runtime" in other.read_bytes()
        assert own.read_bytes() == other.read_bytes()


def test_weights_outside_of_fp16_fail_fp16_alone(
    checkpoint: Callable[..., Path], run_worker: RunWorker, tmp_path: Path
) -> None:
    source = tmp_path / "source"
    source.mkdir()
    for path in checkpoint("phi4", layers=1, dtype="fp32").iterdir():
        (source / path.name).write_bytes(path.read_bytes())
    weights = source / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-4:] = bytes.fromhex("00008847")  # 69632.0, above fp16's 65504
    weights.write_bytes(data)
    events = build(source, tmp_path / "out", ["fp16", "fp32"], run_worker)
    (failed,) = [event for event in events if event["event"] == "failed"]
    assert failed["item"] == "fp16"
    assert "outside of fp16" in failed["error"]
    assert [event["item"] for event in events if event["event"] == "item"] == ["fp32"]
