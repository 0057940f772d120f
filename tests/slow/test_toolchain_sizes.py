"""Toolchains take about what is said before they are installed."""

from __future__ import annotations

import platform
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from phibuild.backends.registry import SHIPPED, backend
from phibuild.toolchains.environment import size_bytes

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        (sys.platform, platform.machine()) != ("linux", "x86_64"), reason="sizes are of x86-64"
    ),
]


@pytest.mark.parametrize("name", SHIPPED)
def test_size(name: str, toolchain_python: Callable[[str], Path]) -> None:
    folder = toolchain_python(name).parents[1]
    assert size_bytes(folder) == pytest.approx(backend(name).toolchain_bytes, rel=0.15)
