"""Every backend, precision and accelerator, over the three shapes of Phi: built and judged, or
refused with a reason."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import pytest

from conftest import CommandLine
from phibuild.backends.registry import SHIPPED
from support.support_table import MODELS, PRECISIONS, PROPERTY, square

pytestmark = pytest.mark.slow

DEVICE = """\
title: a device that has everything
class: ai_pc
memory: 64 GiB
budget: 64 GiB
accelerators: [cpu, cuda, directml, webgpu, metal, openvino_gpu, openvino_npu]
context_length: 2048
sources: {memory: assumed, budget: assumed, context_length: assumed}
"""
OPTION = {"ort_genai": "provider", "openvino": "target", "qnn": "soc"}
NPU = {"qnn": "hexagon_npu"}
"""What a device has for a backend alone: llamacpp has other defaults beside this one."""
TARGETS: Mapping[str, Sequence[str]] = {
    "llamacpp": ["CPU"],
    "ort_genai": ["cpu", "cuda", "dml", "webgpu", "trt_rtx"],
    "openvino": ["cpu", "gpu", "npu"],
    "mlx": ["Apple GPU"],
    "coreai": ["Apple GPU"],
    "litert": ["CPU"],
    "executorch": ["CPU"],
    "qnn": ["sc8380xp"],
    "pytorch": ["CPU"],
}
WORDS = ("evaluation.windows=2", "evaluation.window_tokens=64", "evaluation.decode_tokens=4")


@pytest.mark.parametrize("shape", MODELS)
@pytest.mark.parametrize("backend", SHIPPED)
def test_all_that_a_backend_has(
    backend: str,
    shape: str,
    checkpoint: Callable[..., Path],
    phibuild: CommandLine,
    record_property: Callable[[str, object], None],
) -> None:
    devices = {}
    for number, target in enumerate(TARGETS[backend]):
        path = phibuild.folder / "conf" / "device" / f"d{number}.yaml"
        path.parent.mkdir(parents=True, exist_ok=True)
        own = f", {NPU[backend]}]" if backend in NPU else "]"
        path.write_text(DEVICE.replace("npu]", f"npu{own}"), encoding="utf-8")
        options = {OPTION[backend]: target} if backend in OPTION else None
        devices[f"d{number}"] = {backend: dict.fromkeys(PRECISIONS, options)}
    recipes = phibuild.folder / "recipes"
    recipes.mkdir()
    (recipes / "all.yaml").write_text(json.dumps({"devices": devices}), encoding="utf-8")
    source = checkpoint(shape, layers=2)
    words = ("recipe=all", f"model={source}", "gates.kl=null", "gates.kl.fp32=0.000001")
    done = phibuild("build", *words, *WORDS, "--config-dir", "conf")
    assert done.returncode == 0, done.stdout + done.stderr
    cells = phibuild.report("all")["cells"]
    assert len(cells) == len(devices) * len(PRECISIONS)
    for cell in cells:
        target = TARGETS[backend][int(cell["device"].removeprefix("d"))]
        row = {"shape": shape, "backend": backend, "target": target, "square": square(cell)}
        record_property(PROPERTY, json.dumps({**row, "precision": cell["precision"]}))
