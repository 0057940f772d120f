"""What every device must say, for those that tests make up; the devices of the quickstart."""

from __future__ import annotations

from pathlib import Path

import yaml

SOURCES = dict.fromkeys(("memory", "budget", "context_length"), "made up for a test")
_QUICKSTART = Path(__file__).resolve().parents[2] / "recipes" / "quickstart.yaml"


def quickstart_device(backend: str) -> str:
    """Return the device that the quickstart builds a backend's artifacts for."""
    devices = yaml.safe_load(_QUICKSTART.read_text(encoding="utf-8"))["devices"]
    (device,) = (name for name, backends in devices.items() if backend in backends)
    return str(device)
