"""What tests lend each other: the originals that one of them computed, by their keys.

A store's `references/` hold what Transformers makes of a checkpoint and its tokenizer, and logits.
Most tests are about what comes after; without these each would begin with 10 s of them. Its
`digests/code.json` holds what was counted of phibuild's modules by their content, which every
command would otherwise take half a second for.
"""

from __future__ import annotations

import os
import shutil
import uuid
from dataclasses import dataclass
from functools import partial
from itertools import product
from pathlib import Path

from phibuild.backends.registry import SHIPPED
from phibuild.planning.code import KINDS, step_digest
from phibuild.store.store import Store
from phibuild.system.locks import held

_FOLDER = "references"
_ORIGINALS = ("witness.json", "logits.npy")
"""Files by which an original is known: what else is there (weights on a grid, activations) is what
tests are about."""
_CODE = Path("digests") / "code.json"
_link = partial(shutil.copytree, copy_function=os.link)


def make_pool(folder: Path) -> None:
    """Make the folder of pools, with the code of all steps of all backends counted."""
    with held(folder.with_suffix(".lock")):
        store = Store(folder)
        if not (folder / _CODE).exists():
            store.prepare()
            for kind, backend in product(KINDS, SHIPPED):
                step_digest(kind, backend, store)


@dataclass(frozen=True)
class Pool:
    """A folder that all processes of a test run share (`make_pool`). Its files are linked: a test
    that damages originals in its store takes no part (`@pytest.mark.cold`)."""

    folder: Path
    originals: bool = True
    """Whether originals are lent. What was counted of code always is."""

    def lend(self, store: Path) -> None:
        """Give a store that is not there yet all that there is."""
        if store.exists():
            return
        (store / _CODE).parent.mkdir(parents=True)
        os.link(self.folder / _CODE, store / _CODE)
        if self.originals and (self.folder / _FOLDER).is_dir():
            for path in (self.folder / _FOLDER).iterdir():
                if not path.name.startswith("."):
                    _link(path, store / _FOLDER / path.name)

    def keep(self, store: Path) -> None:
        """Keep what a store has and the pool has not."""
        if not self.originals or not (store / _FOLDER).is_dir():
            return
        folder = self.folder / _FOLDER
        folder.mkdir(exist_ok=True)
        for path in (store / _FOLDER).iterdir():
            target, room = folder / path.name, folder / f".{uuid.uuid4().hex}"
            if target.exists() or not any((path / name).is_file() for name in _ORIGINALS):
                continue
            _link(path, room)
            try:
                room.rename(target)
            except OSError:  # another process was first
                shutil.rmtree(room)
