"""Where phibuild keeps things on this machine."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from phibuild.errors import ConfigError, Problem


def cache_folder() -> Path:
    """Return phibuild's folder in the user's cache (XDG_CACHE_HOME or the system's place)."""
    if os.environ.get("XDG_CACHE_HOME"):
        return Path(os.environ["XDG_CACHE_HOME"]) / "phibuild"
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "phibuild"
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA", str(Path.home()))) / "phibuild"
    return Path.home() / ".cache" / "phibuild"


def store_folder() -> Path:
    return Path(os.environ.get("PHIBUILD_STORE") or cache_folder() / "store").expanduser().resolve()


def toolchains_folder() -> Path:
    given = os.environ.get("PHIBUILD_TOOLCHAINS")
    return Path(given or cache_folder() / "toolchains").expanduser().resolve()


def user_path(text: str, flag: str) -> Path:
    """Return a path that the user gave, `~` expanded; raises ConfigError for an unknown home."""
    try:
        return Path(text).expanduser()
    except RuntimeError as error:
        raise ConfigError(
            Problem(f"no such home folder: {text!r}", f"command line: {flag}")
        ) from error


def as_path(reference: str) -> Path:
    """Return the path that a model reference is; raises RuntimeError for ~nobody."""
    path = Path(reference)  # which takes ./ away, also from ./~x
    return path.expanduser() if reference.startswith("~") else path


def is_folder(reference: str) -> bool:
    """Say whether a model reference means a folder that is there."""
    try:
        return as_path(reference).is_dir()
    except (OSError, RuntimeError, ValueError):
        return False  # a name too long, ~nobody, a NUL
