"""Variants of the openvino backend by the names that optimum-intel's are compared under, and
how tests build them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from phibuild.backends.openvino.options import OpenVinoOptions
from phibuild.backends.openvino.spec import SPEC
from phibuild.schema import Device, Precision, Variant
from phibuild.worker.architecture import read_architecture
from support.devices import SOURCES

RunWorker = Callable[[str, dict[str, Any]], list[dict[str, Any]]]

OPTIONS: dict[str, tuple[Precision, dict[str, Any]]] = {
    "int4-asym-g64": ("int4", {}),
    "int4-asym-g32": ("int4", {"group_size": 32}),
    "int4-sym-g128": ("int4", {"target": "npu"}),
    "int4-sym-cw": ("int4", {"mode": "int4_sym", "group_size": -1}),
    "int8-asym": ("int8", {}),
    "int8-sym": ("int8", {"mode": "int8_sym"}),
    "fp16": ("fp16", {}),
    "fp32": ("fp32", {}),
}


def variants(source: Path) -> dict[str, Variant]:
    """Return the variants of `OPTIONS` for a checkpoint, on a device that has everything."""
    arch = read_architecture(json.loads((source / "config.json").read_text()))
    device = Device.model_validate(
        {
            "name": "pc",
            "title": "PC",
            "class": "copilot_pc",
            "memory": "16 GiB",
            "budget": "8 GiB",
            "accelerators": ["cpu", "openvino_gpu", "openvino_npu"],
            "context_length": 4096,
            "sources": SOURCES,
        }
    )
    chosen = {}
    for name, (precision, options) in OPTIONS.items():
        variant = SPEC.variant(precision, OpenVinoOptions(**options), device, arch)
        assert isinstance(variant, Variant)
        assert variant.name == name
        chosen[name] = variant
    return chosen


def build(
    source: Path, output: Path, names: list[str], run_worker: RunWorker
) -> list[dict[str, Any]]:
    """Build the variants `names` into `output`/<name> in one request; return its events."""
    arch = read_architecture(json.loads((source / "config.json").read_text()))
    chosen = variants(source)
    items = []
    for name in names:
        (output / name).mkdir(parents=True)
        items.append(
            {"item": name, "variant": chosen[name].model_dump(), "output": str(output / name)}
        )
    return run_worker(
        "openvino",
        {
            "verb": "build",
            "source": str(source),
            "architecture": arch.to_json(),
            "model": "test",
            "threads": 2,
            "items": items,
        },
    )
