"""Building OpenVINO artifacts for real: the embedded model, same bytes, weights beyond fp16."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from support.openvino_build import OPTIONS, RunWorker, build

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]


def test_embedded_model_continues_code(run_worker: RunWorker, tmp_path: Path) -> None:
    source = ROOT / "phibuild" / "data" / "phi3-tiny-trained"
    events = build(source, tmp_path, ["int8-asym"], run_worker)
    assert [event["event"] for event in events if event["event"] != "stage"] == ["item", "end"]
    request = {
        "verb": "generate",
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
