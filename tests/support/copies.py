"""Copies of phibuild's own code, for tests that change it."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path

from phibuild.config.catalogue import DATA
from phibuild.planning.code import PACKAGE

ONE_MORE = ("import annotations", "import annotations\n_added = 1")
"""A change of any module: a statement that it did not have."""


def copy_package(folder: Path) -> Path:
    """Return a copy of phibuild in `folder`, its data and configuration linked."""
    ignore = shutil.ignore_patterns("__pycache__", "data")
    package = Path(shutil.copytree(PACKAGE, folder / "phibuild", ignore=ignore))
    (package / "data").symlink_to(DATA)
    for name in ("conf", "recipes"):
        (folder / name).symlink_to(PACKAGE.parent / name)
    return package


@contextlib.contextmanager
def edited(package: Path, changes: Mapping[str, tuple[str, str]]) -> Iterator[None]:
    """Replace a piece of each of these files by another while the block runs."""
    texts = {package / file: (package / file).read_text(encoding="utf-8") for file in changes}
    for (path, text), change in zip(texts.items(), changes.values(), strict=True):
        assert change[0] in text, path
        path.write_text(text.replace(*change, 1), encoding="utf-8")
    try:
        yield
    finally:
        for path, text in texts.items():
            path.write_text(text, encoding="utf-8")
