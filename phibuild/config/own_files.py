"""Files that people write: which there are, and what kind each is of."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, get_args

from phibuild.config.catalogue import Catalogue
from phibuild.config.yamlfile import YamlFile, show_path
from phibuild.errors import ConfigError, Place, Problem

Group = Literal["recipe", "device", "model", "evaluation", "executor", "backend"]
GROUPS: tuple[Group, ...] = get_args(Group)
"""Kinds of files; those of a kind lie in conf/KIND, recipes in recipes/."""
_SCHEMA = re.compile(r"^#\s*yaml-language-server:\s*\$schema=\S*?([a-z]+)(?:-\w+)?\.json\s*$", re.M)
_KEYS: dict[Group, set[str]] = {
    "recipe": {"devices", "defaults", "gates", "evaluation", "executor", "allow_nonfinite"},
    "device": {"class", "memory", "budget", "accelerators", "context_length", "sources"},
    "model": {"repo", "builtin", "revision", "license", "tokenizer_bytes", "config"},
    "evaluation": {"enabled", "adaptive", "windows", "window_tokens", "decode_tokens",
                   "max_reference_bytes"},
    "executor": {"kind", "cores", "timeout", "partition", "account", "qos", "sbatch", "setup"},
    "backend": {"int4", "int8", "fp16", "fp32"},
}  # fmt: skip
"""Keys that files of one kind have, by which one that lies elsewhere is known."""


@dataclass(frozen=True)
class OwnFile:
    """A file, what kind it is of, and the folder whose recipes/ or conf/ it lies in; None if it
    lies elsewhere."""

    path: Path
    group: Group
    root: Path | None = None

    @property
    def name(self) -> str:
        return unicodedata.normalize("NFC", self.path.stem)


def files_below(root: Path) -> Iterator[OwnFile]:
    """Yield the files of a folder's recipes/ and conf/, or of a `--config-dir`."""
    for group in GROUPS:
        folders = [root / "recipes"] if group == "recipe" else [root / "conf" / group, root / group]
        for folder in folders:
            for path in sorted([*folder.glob("*.yaml"), *folder.glob("*.yml")]):
                yield OwnFile(path, group, root)


def own_file(path: Path) -> OwnFile:
    """Return what kind a file is of: by its place, by the schema that it names, or by its keys.
    Raises ConfigError if none says it."""
    absolute = path.absolute()
    folder = absolute.parent
    if folder.name == "recipes":
        return OwnFile(path, "recipe", folder.parent)
    if placed := _group(folder.name):
        above = folder.parent
        return OwnFile(path, placed, above.parent if above.name == "conf" else above)
    file = YamlFile(path, show_path(path))
    if problems := file.check():
        raise ConfigError(*problems)
    named = _SCHEMA.search(path.read_text(encoding="utf-8"))
    if named and (group := _group(named[1])):
        return OwnFile(path, group)
    keys = file.data().keys()
    best = max(GROUPS, key=lambda group: len(_KEYS[group] & keys))
    if not _KEYS[best] & keys:
        what = "neither its place nor its keys say what kind of file it is"
        remedy = "put it into recipes/, or into conf/device, conf/model, ..."
        raise ConfigError(Problem(what, file.start, remedy))
    return OwnFile(path, best)


def _group(name: str) -> Group | None:
    return next((group for group in GROUPS if group == name), None)


def not_read(file: OwnFile) -> Problem | None:
    """Return why phibuild would not find a file that lies where it looks; None if it would."""
    if file.path.suffix == ".yaml":
        return None
    where = Place(show_path(file.path), 1, 1)
    what = f"phibuild reads files that end in .yaml, not in {file.path.suffix or 'nothing'}"
    return Problem(what, where, f"rename it to {file.path.stem}.yaml")


def catalogues(files: Sequence[OwnFile]) -> Iterator[tuple[Catalogue, list[OwnFile]]]:
    """Yield the files in groups that one catalogue can hold, and that catalogue: each file's own
    folder comes first in it, and the file itself before others of its name."""
    here = Path.cwd().resolve()
    left = list(files)
    while left:
        root = left[0].root
        given: dict[str, dict[str, Path]] = {}
        some = []
        for file in left:
            names = given.setdefault(file.group, {})
            if file.root == root and file.name not in names:
                names[file.name] = file.path
                some.append(file)
        left = [file for file in left if file not in some]
        own = root if root is not None and root.resolve() != here else None
        yield replace(Catalogue(own), given=given), some
