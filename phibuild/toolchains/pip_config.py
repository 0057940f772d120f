"""What pip is configured to do on this machine, in uv's words.

uv does not read pip's configuration, and companies mirror packages that way. Files and their order
are those of pip's documentation ("Configuration"): global, user, environment, then PIP_* variables.
"""

from __future__ import annotations

import configparser
import os
import sys
from collections.abc import Mapping
from pathlib import Path

_KEYS = (
    "index-url",
    "extra-index-url",
    "find-links",
    "no-index",
    "cert",
    "proxy",
    "trusted-host",
)
_YES = ("1", "true", "yes", "y", "t", "on")
_SYSTEM_FILE = Path("/etc/pip.conf")


def pip_settings(environ: Mapping[str, str] = os.environ) -> dict[str, list[str]]:
    """Return pip's effective settings for the keys that choose where packages come from."""
    # [install] of any file stands above [global] of all of them.
    sections: dict[str, dict[str, list[str]]] = {"global": {}, "install": {}}
    for path in _files(environ):
        parser = configparser.RawConfigParser()
        try:
            parser.read(path, encoding="utf-8")
        except (OSError, configparser.Error, UnicodeDecodeError):
            continue  # pip itself will complain about it; uv's defaults still work
        for name, found in sections.items():
            if parser.has_section(name):
                found |= {_normal(key): text.split() for key, text in parser.items(name)}
    variables = {
        _normal(name.removeprefix("PIP_")): text.split()
        for name, text in environ.items()
        if name.startswith("PIP_")
    }
    merged = {**_set(sections["global"]), **_set(sections["install"]), **_set(variables)}
    return {key: merged[key] for key in _KEYS if key in merged}


def _normal(key: str) -> str:
    return key.lower().replace("_", "-").removeprefix("--")


def _set(settings: Mapping[str, list[str]]) -> dict[str, list[str]]:
    return {key: value for key, value in settings.items() if value}


def _files(environ: Mapping[str, str]) -> list[Path]:
    own = environ.get("PIP_CONFIG_FILE")
    if own == os.devnull:
        return []
    home = Path(environ.get("HOME") or Path.home())
    folders = [Path(folder) for folder in environ.get("XDG_CONFIG_DIRS", "/etc/xdg").split(":")]
    files = [folder / "pip" / "pip.conf" for folder in folders]
    files.append(_SYSTEM_FILE)
    if not (own and Path(own).exists()):  # pip leaves the user's files out then
        files.append(home / ".pip" / "pip.conf")
        files.append(Path(environ.get("XDG_CONFIG_HOME", home / ".config")) / "pip" / "pip.conf")
        if sys.platform == "darwin":
            files.append(home / "Library" / "Application Support" / "pip" / "pip.conf")
    files.append(Path(sys.prefix) / "pip.conf")
    return [*files, Path(own)] if own else files


def uv_environment(environ: Mapping[str, str] = os.environ) -> dict[str, str]:
    """Return the UV_* variables that make uv take packages from where pip would; variables that
    the user has set already win."""
    settings = pip_settings(environ)
    wanted: dict[str, str] = {}
    if "index-url" in settings:
        wanted["UV_DEFAULT_INDEX"] = settings["index-url"][-1]
    if "extra-index-url" in settings:
        wanted["UV_INDEX"] = " ".join(settings["extra-index-url"])
        wanted["UV_INDEX_STRATEGY"] = "unsafe-best-match"  # pip looks at all indexes
    if "find-links" in settings:
        wanted["UV_FIND_LINKS"] = ",".join(settings["find-links"])
    if "trusted-host" in settings:
        wanted["UV_INSECURE_HOST"] = " ".join(settings["trusted-host"])
    if "cert" in settings:
        wanted["SSL_CERT_FILE"] = settings["cert"][-1]
    if "proxy" in settings:
        wanted["ALL_PROXY"] = settings["proxy"][-1]
    return {key: value for key, value in wanted.items() if key not in environ}


def no_index(environ: Mapping[str, str] = os.environ) -> bool:
    """Say whether pip uses find-links alone; uv has an option for it but no variable."""
    return pip_settings(environ).get("no-index", ["no"])[-1].lower() in _YES


def has_local_torch(environ: Mapping[str, str] = os.environ) -> bool:
    """Say whether find-links offers a torch wheel (a mirror's CPU build); remote ones count."""
    links = environ.get("UV_FIND_LINKS", "").split(",") + pip_settings(environ).get(
        "find-links", []
    )
    for link in filter(None, links):
        if "://" in link and not link.startswith("file://"):
            return True
        folder = Path(link.removeprefix("file://"))
        if folder.is_dir() and any(folder.glob("torch-*.whl")):
            return True
    return False
