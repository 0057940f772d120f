"""uv.lock: what pyproject.toml asks for, of PyPI alone; the hooks run its versions."""

from __future__ import annotations

import os
import subprocess
import tomllib
from collections.abc import Iterator
from typing import Any

import yaml
from uv import find_uv_bin

from conftest import ROOT

PACKAGES: list[dict[str, Any]] = tomllib.loads((ROOT / "uv.lock").read_text())["package"]


def texts(value: object) -> Iterator[str]:
    """Yield every text in a TOML value."""
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list):
        for item in value:
            yield from texts(item)
    elif isinstance(value, str):
        yield value


def test_the_lock_is_what_pyproject_asks_for() -> None:
    environ = {name: text for name, text in os.environ.items() if not name.startswith("UV_")}
    done = subprocess.run(
        [find_uv_bin(), "lock", "--check", "--offline", "--no-config"],
        cwd=ROOT,
        env=environ,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, f"{done.stderr}run 'make lock'"


def test_everything_locked_comes_from_pypi() -> None:
    sources = [package["source"] for package in PACKAGES if package["name"] != "phibuild"]
    assert sources
    assert all(source == {"registry": "https://pypi.org/simple"} for source in sources)
    places = [text for text in texts(PACKAGES) if "/" in text and text != "https://pypi.org/simple"]
    assert places
    assert [text for text in places if not text.startswith("https://files.pythonhosted.org/")] == []


def test_hooks_run_what_is_locked() -> None:
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"][0]["hooks"]
    pins = [pin for hook in hooks for pin in hook["additional_dependencies"]]
    assert {pin.split("==")[0] for pin in pins} == {"ruff", "mypy", "pydantic"}
    locked = {
        f"{package['name']}=={package['version']}" for package in PACKAGES if "version" in package
    }
    assert [pin for pin in pins if pin not in locked] == []
