"""What is said of an environment before it is installed: which one, and what it takes."""

from __future__ import annotations

from phibuild.backends.registry import backend
from phibuild.toolchains.environment import NOT_INSTALLED
from phibuild.units import format_decimal


def with_size(name: str) -> str:
    """Return a backend's name, and what its environment takes on disk where its spec says so."""
    size = backend(name).toolchain_bytes
    return f"{name} ({format_decimal(size)})" if size else name


def what_to_set_up(name: str, problem: str) -> str:
    """Return what is about to be installed, by the `problem` that its environment has: one that
    was never there with its size."""
    if problem == NOT_INSTALLED:
        return f"the environment of {with_size(name)}"
    return f"the environment of {name} again: {problem}"
