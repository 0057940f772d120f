"""Variants of the coreai backend by name, and how tests build them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from phibuild.backends.coreai.options import CoreAiOptions
from phibuild.backends.coreai.spec import SPEC
from phibuild.schema import Precision, Variant
from phibuild.worker.architecture import Architecture, read_architecture
from support.litert_build import device

RunWorker = Callable[[str, dict[str, Any]], list[dict[str, Any]]]

OPTIONS: dict[str, tuple[Precision, dict[str, Any]]] = {
    "int4-b32": ("int4", {}),
    "int4-b64": ("int4", {"group_size": 64}),
    "int4-b128": ("int4", {"group_size": 128}),
    "int8": ("int8", {}),
    "fp16": ("fp16", {}),
    "fp32": ("fp32", {}),
}


def variant(name: str, arch: Architecture, **options: Any) -> Variant:
    """Return a variant of `OPTIONS`, with more options."""
    precision, own = OPTIONS[name]
    made = SPEC.variant(precision, CoreAiOptions(**own, **options), device(), arch)
    assert isinstance(made, Variant), made
    return made


def build(
    source: Path, output: Path, names: list[str], run_worker: RunWorker, **options: Any
) -> list[dict[str, Any]]:
    """Build the variants `names` into `output`/<name> in one request; return its events."""
    arch = read_architecture(json.loads((source / "config.json").read_text()))
    items = []
    for name in names:
        (output / name).mkdir(parents=True)
        made = variant(name, arch, **options)
        items.append({"item": name, "variant": made.model_dump(), "output": str(output / name)})
    return run_worker(
        "coreai",
        {
            "verb": "build",
            "source": str(source),
            "architecture": arch.to_json(),
            "model": "test",
            "threads": 2,
            "items": items,
        },
    )
