"""The source as every step sees it: a folder of links to the files that are the source.

Nothing else of the user's folder is in it, so that nobody's code can read what was not digested.
Its config.json is the source's own, or, where that says something another way than the vendors'
tools read it, one that says the same in their words.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path

from phibuild.checkpoints.config_file import CONFIG
from phibuild.checkpoints.facts import Checkpoint
from phibuild.store.store import Store
from phibuild.worker.safetensors import INDEX

WEIGHTS = "weights"
"""The folder of a source step's result that holds weights, where they are not the source's own."""


@contextlib.contextmanager
def source_view(store: Store, checkpoint: Checkpoint, facts: Path | None) -> Iterator[Path]:
    """Give the view of a checkpoint for as long as the block runs. `facts` is the result of its
    source step (None: in that step itself, which makes the weights that are not there)."""
    with store.workspace() as folder:
        weights = facts / WEIGHTS if facts is not None and (facts / WEIGHTS).is_dir() else None
        make_view(checkpoint, folder, weights)
        yield folder


def is_weight_file(name: str) -> bool:
    """Return whether a file of a view is one of its weights, or their index."""
    return "/" not in name and (name.endswith(".safetensors") or name == INDEX)


def make_view(checkpoint: Checkpoint, folder: Path, weights: Path | None = None) -> None:
    """Fill an empty folder with links to the checkpoint's files; weights are those in the folder
    `weights` if it is given."""
    for name, path in checkpoint.links.items():
        if weights is not None and is_weight_file(name):
            continue
        place = folder / name
        place.parent.mkdir(parents=True, exist_ok=True)
        if name == CONFIG and checkpoint.config is not None:
            text = json.dumps(checkpoint.config, indent=2, ensure_ascii=False)
            place.write_text(text + "\n", encoding="utf-8")
        else:
            place.symlink_to(path.absolute())
    for path in sorted(weights.iterdir()) if weights is not None else ():
        (folder / path.name).symlink_to(path.absolute())
