"""A recipe of all that a backend has: every precision for every target, on devices that have all
accelerators."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from support.quickstart import devices_of
from support.support_table import PRECISIONS

DEVICE = """\
title: a device that has everything
class: ai_pc
memory: 64 GiB
budget: 64 GiB
accelerators: [cpu, cuda, directml, webgpu, metal, openvino_gpu, openvino_npu]
context_length: 512
sources: {memory: assumed, budget: assumed, context_length: assumed}
"""
RECIPE = "all"
DEVICE_RECIPES = ("mobile", "iot", "ai_pc", "copilot_pc", "apple", "server")
"""The shipped recipes of the shelf, which together are edge_release."""
OPTION = {"ort_genai": "provider", "openvino": "target", "qnn": "soc"}
NPU = {"qnn": "hexagon_npu"}
"""What a device has for a backend alone: llamacpp has other defaults beside this one."""
SHORT = {"qnn": {"gate_tokens": 0}}
"""What shortens a build: Qualcomm's simulator takes most of one, and runs in others' tests:
test_qnn_vendor.py has the gate at its full length, docs/backends/qnn.md (test_page_commands.py)
too, with --every."""
SHORT_WORDS = tuple(f"+backends.qnn.{precision}.gate_tokens=0" for precision in ("int4", "int8"))
_TARGETS: Mapping[str, Sequence[str]] = {
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


def targets(backend: str) -> Sequence[str]:
    """Return what a backend is built for; of one that says nothing, the devices of the recipe that
    has it."""
    return _TARGETS.get(backend) or tuple(devices_of(backend))


def some_targets(backend: str, shape: str) -> Sequence[str]:
    """Return the targets that a shape has its turn with if not all have: of the shapes besides the
    first the CPU, which has a type that others have not, and every other one."""
    found = targets(backend)
    if shape == "phi3":
        return found
    return found[0::2] if shape == "phi4mini" else (found[0], *found[1::2])


def some_precisions(shape: str) -> Sequence[str]:
    """Return the precisions that a shape has its turn with if not all have: of the shapes besides
    the first the one that shows what the graph computes, and the one that loses most."""
    return PRECISIONS if shape == "phi3" else ("int4", "fp32")


def write_recipe(
    folder: Path, backend: str, some: Sequence[str], precisions: Sequence[str] = PRECISIONS
) -> tuple[str, ...]:
    """Write the recipe RECIPE into a working folder, with a device for each target of `some`;
    return words for the command line."""
    devices = {}
    (folder / "conf" / "device").mkdir(parents=True)
    for number, target in enumerate(targets(backend)):
        if target not in some:
            continue
        own = f", {NPU[backend]}]" if backend in NPU else "]"
        text = DEVICE.replace("npu]", f"npu{own}")
        (folder / "conf" / "device" / f"d{number}.yaml").write_text(text, encoding="utf-8")
        options = {OPTION[backend]: target, **SHORT.get(backend, {})} if backend in OPTION else None
        devices[f"d{number}"] = {backend: dict.fromkeys(precisions, options)}
    (folder / "recipes").mkdir()
    path = folder / "recipes" / f"{RECIPE}.yaml"
    path.write_text(json.dumps({"devices": devices}), encoding="utf-8")
    return "--config-dir", "conf"


def target_of(backend: str, device: str) -> str:
    """Return the target of a device of the recipe."""
    return targets(backend)[int(device.removeprefix("d"))]
