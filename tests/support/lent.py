"""What tests lend each other: the originals that one of them computed, by their keys.

A store's `references/` hold what Transformers makes of a checkpoint and its tokenizer, and logits.
Most tests are about what comes after; without these each would begin with 10 s of them.
"""

from __future__ import annotations

import os
import shutil
import uuid
from dataclasses import dataclass
from functools import partial
from pathlib import Path

_FOLDER = "references"
_ORIGINALS = ("witness.json", "logits.npy")
"""Files by which an original is known: what else is there (weights on a grid, activations) is what
tests are about."""
_link = partial(shutil.copytree, copy_function=os.link)


@dataclass(frozen=True)
class Pool:
    """A folder that all processes of a test run share. Its files are linked: a test that damages
    originals in its store takes no part (`@pytest.mark.cold`)."""

    folder: Path

    def lend(self, store: Path) -> None:
        """Give a store that is not there yet all that there is."""
        if self.folder.is_dir() and not store.exists():
            for path in self.folder.iterdir():
                if not path.name.startswith("."):
                    _link(path, store / _FOLDER / path.name)

    def keep(self, store: Path) -> None:
        """Keep what a store has and the pool has not."""
        if not (store / _FOLDER).is_dir():
            return
        self.folder.mkdir(exist_ok=True)
        for path in (store / _FOLDER).iterdir():
            target, room = self.folder / path.name, self.folder / f".{uuid.uuid4().hex}"
            if target.exists() or not any((path / name).is_file() for name in _ORIGINALS):
                continue
            _link(path, room)
            try:
                room.rename(target)
            except OSError:  # another process was first
                shutil.rmtree(room)
