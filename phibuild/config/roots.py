"""Folders of configuration, in the order in which they are looked at. Standard library alone: the
completion of a word has no time for more."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

_PACKAGE = Path(__file__).resolve().parents[1]


def shipped_root(name: str) -> Path:
    """Return phibuild's own `conf` or `recipes`: in the wheel, or at the repository's top."""
    inside = _PACKAGE / name
    return inside if inside.is_dir() else _PACKAGE.parent / name


@dataclass(frozen=True)
class Roots:
    """`config_dir` is the user's `--config-dir`; with `shipped_alone` nothing is the user's."""

    config_dir: Path | None = None
    shipped_alone: bool = False

    @cached_property
    def conf(self) -> tuple[Path, ...]:
        """Folders that hold model/, device/ and backend/, the user's first."""
        own = [self.config_dir, self.config_dir / "conf"] if self.config_dir else []
        return self._roots(own, "conf")

    @cached_property
    def recipes(self) -> tuple[Path, ...]:
        """Folders that hold recipes, the user's first."""
        return self._roots([self.config_dir / "recipes"] if self.config_dir else [], "recipes")

    def _roots(self, own: Iterable[Path], name: str) -> tuple[Path, ...]:
        if self.shipped_alone:
            return _existing([shipped_root(name)])
        return _existing([*own, Path.cwd() / name, shipped_root(name)])

    def files(self, group: str) -> Iterator[tuple[str, Path]]:
        """Yield the YAML files of a group ("device", "model", "backend", "recipe") with their
        names; the first of a name is the one that counts."""
        folders = self.recipes if group == "recipe" else [root / group for root in self.conf]
        for folder in folders:
            if folder.is_dir():
                for path in sorted(folder.glob("*.yaml")):
                    yield unicodedata.normalize("NFC", path.stem), path


def _existing(folders: Iterable[Path]) -> tuple[Path, ...]:
    resolved = [folder.resolve() for folder in folders]
    return tuple(dict.fromkeys(folder for folder in resolved if folder.is_dir()))
