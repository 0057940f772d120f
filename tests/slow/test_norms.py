"""A norm's weight that fp16 cannot hold fails the cell of a format that is computed in fp16."""

from __future__ import annotations

import shutil
import struct
from collections.abc import Callable
from pathlib import Path

import pytest

from phibuild.worker.safetensors import read_header
from support.written_build import RunWorker, build


@pytest.mark.parametrize(
    ("name", "options", "remedy"),
    [("coreai", {}, "build fp32"), ("qnn", {"form": "onnx", "context": 128}, "another backend")],
)
def test_it_is_not_made_infinite(
    name: str,
    options: dict[str, object],
    remedy: str,
    checkpoint: Callable[..., Path],
    run_worker: RunWorker,
    tmp_path: Path,
) -> None:
    source = tmp_path / "source"
    shutil.copytree(checkpoint("phi3", dtype="fp32", layers=1), source)
    norm = read_header(source / "model.safetensors")["model.norm.weight"]
    with norm.path.open("r+b") as file:
        file.seek(norm.offset)
        file.write(struct.pack("<f", 1e5))
    events = build(name, source, tmp_path / "made", ["int4-b32"], run_worker, **options)
    (failed,) = [event for event in events if event["event"] == "failed"]
    assert "model.norm.weight holds values outside of fp16 (largest 100000" in failed["error"]
    assert remedy in failed["error"]
