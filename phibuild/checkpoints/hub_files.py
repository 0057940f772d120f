"""The small files of a Hub repository that a build reads, and which of them a snapshot in the Hub's
cache lacks, as far as that is known without the Hub.

Other programs fetch what they read themselves: Transformers no licence, `hf download --include`
what it is told. A folder alone does not show what the repository has besides.
"""

from __future__ import annotations

import fnmatch
import json
from collections.abc import Collection
from pathlib import Path

from phibuild.checkpoints.facts import LICENSE_NAMES
from phibuild.worker.companions import GENERATION_FILES, TEMPLATES, TOKENIZER_FILES

_UNREAD = ("vocab.json", "merges.txt")  # tokenizer.json has what is in them
_SMALL = (
    "config.json",
    *(name for name in TOKENIZER_FILES if name not in _UNREAD),
    *GENERATION_FILES,
    *LICENSE_NAMES,
)
_TREE_FORMAT = 1


def small_files(files: Collection[str]) -> list[str]:
    """Return those of a repository's files that a build reads besides weights."""
    return [name for name in _SMALL if name in files] + fnmatch.filter(
        files, f"{TEMPLATES}/*.jinja"
    )


def lacking(folder: Path) -> tuple[str, ...]:
    """Return the small files that a snapshot in the Hub's cache lacks.

    Where the client keeps no list of the commit's files, these are all that may be missing: those
    that are not there, without those that it was told do not exist; of the names that a licence may
    have the first, if there is none of them.
    """
    listed = _tree(folder)
    if listed is not None:
        return tuple(name for name in small_files(listed) if not (folder / name).exists())
    no_such = folder.parents[1] / ".no_exist" / folder.name
    licences = set(LICENSE_NAMES[1:])
    if any((folder / name).exists() for name in LICENSE_NAMES):
        licences = set(LICENSE_NAMES)
    return tuple(
        name
        for name in (*_SMALL, TEMPLATES)
        if name not in licences and not (folder / name).exists() and not (no_such / name).exists()
    )


def _tree(folder: Path) -> set[str] | None:
    """Return the names of all files of a snapshot's commit, None if the cache does not have them.

    huggingface_hub keeps the list since 1.22 (_tree_cache.py), of what it fetches as a snapshot. It
    is read here: its own reader comes with the whole client, which takes half a second to import.
    """
    path = folder.parents[1] / "trees" / f"{folder.name}.json"
    try:
        tree = json.loads(path.read_text(encoding="utf-8"))
        return set(tree["files"]) if tree["format_version"] == _TREE_FORMAT else None
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None
