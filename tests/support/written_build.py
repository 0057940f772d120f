"""Variants of the formats whose graph phibuild writes down, by name, and how tests build them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from phibuild.backends.registry import backend
from phibuild.schema import Device, Precision, Variant
from phibuild.worker.architecture import Architecture, read_architecture
from support.devices import SOURCES

RunWorker = Callable[[str, dict[str, Any]], list[dict[str, Any]]]

OPTIONS: dict[str, tuple[Precision, dict[str, Any]]] = {
    "int4-b32": ("int4", {}),
    "int4-b64": ("int4", {"group_size": 64}),
    "int4-b128": ("int4", {"group_size": 128}),
    "int8": ("int8", {}),
    "fp16": ("fp16", {}),
    "fp32": ("fp32", {}),
}


def device(context: int = 4096) -> Device:
    return Device.model_validate(
        {
            "name": "phone",
            "title": "Phone",
            "class": "mobile",
            "memory": "8 GiB",
            "budget": "5 GiB",
            "accelerators": ["cpu", "hexagon_npu"],
            "context_length": context,
            "sources": SOURCES,
        }
    )


def variant(name: str, of: str, arch: Architecture, **options: Any) -> Variant:
    """Return a variant of `OPTIONS` of the backend `name`, with more options."""
    precision, own = OPTIONS[of]
    spec = backend(name)
    made = spec.variant(precision, spec.options(**own, **options), device(), arch)
    assert isinstance(made, Variant), made
    return made


def build(
    name: str,
    source: Path,
    output: Path,
    variants: list[str],
    run_worker: RunWorker,
    **options: Any,
) -> list[dict[str, Any]]:
    """Build variants into `output`/<variant> in one request; return its events."""
    arch = read_architecture(json.loads((source / "config.json").read_text()))
    items = []
    for of in variants:
        (output / of).mkdir(parents=True)
        made = variant(name, of, arch, **options)
        items.append({"item": of, "variant": made.model_dump(), "output": str(output / of)})
    return run_worker(
        name,
        {
            "verb": "build",
            "source": str(source),
            "architecture": arch.to_json(),
            "model": "test",
            "threads": 2,
            "items": items,
        },
    )
