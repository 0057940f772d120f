"""Distributions that bring a backend, as pip leaves them: a package and its metadata."""

from __future__ import annotations

import os
from pathlib import Path

SPEC = """\
from phibuild.backends.llamacpp.spec import LlamaCppSpec

class Spec(LlamaCppSpec):
    name = "{name}"
    title = "a relative of llama.cpp"

SPEC = Spec()
"""
WORKER = """\
REFERENCE = "logits"

def build(request, report):
    raise NotImplementedError

def prepare():
    pass

def load(folder, threads):
    raise NotImplementedError
"""
CONF = "int4: {type: Q5_K_M}\nint8:\nfp16:\nfp32:\n"
LOCK = "iniconfig==2.1.0\n"


def with_site(site: Path) -> str:
    """Return the PYTHONPATH of processes that import from a folder of packages too."""
    return os.pathsep.join(filter(None, (str(site), os.environ.get("PYTHONPATH"))))


def add_backend(
    site: Path,
    name: str,
    *,
    package: str | None = None,
    distribution: str | None = None,
    files: dict[str, str | None] | None = None,
) -> Path:
    """Add a distribution with a backend `name` to a folder of packages and return the backend's
    folder. `files` takes the place of its files, or takes them away (None)."""
    package = package or f"{name}_package"
    distribution = distribution or f"{name}-distribution"
    info = site / f"{distribution.replace('-', '_')}-1.5.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(
        f"Metadata-Version: 2.1\nName: {distribution}\nVersion: 1.5\n", encoding="utf-8"
    )
    (info / "entry_points.txt").write_text(
        f"[phibuild.backends]\n{name} = {package}\n", encoding="utf-8"
    )
    folder = site.joinpath(*package.split("."))
    folder.mkdir(parents=True, exist_ok=True)
    contents = {
        "__init__.py": "",
        "spec.py": SPEC.format(name=name),
        "worker.py": WORKER,
        "conf.yaml": CONF,
        "requirements.txt": LOCK,
        **(files or {}),
    }
    for file, text in contents.items():
        if text is not None:
            (folder / file).write_text(text, encoding="utf-8")
    return folder
