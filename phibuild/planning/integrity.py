"""Trusting nothing that is remembered: what `phibuild build --verify` reads again before reuse."""

from __future__ import annotations

import os
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor

from phibuild.checkpoints.facts import Checkpoint
from phibuild.planning.plan import Plan
from phibuild.store.store import ARTIFACTS, REFERENCES, Store


def forget_sources(checkpoints: Iterable[Checkpoint], store: Store) -> None:
    """Have all files of the checkpoints hashed again by the next plan."""
    for checkpoint in checkpoints:
        for path in checkpoint.links.values():
            store.forget_digest(path)


def set_damaged_aside(plan: Plan, store: Store, checked: set[tuple[str, str]]) -> bool:
    """Hash every file of what a plan would reuse, but for what is `checked` already, and set aside
    what is not as it was written; say whether anything was: the next plan has more to build, and
    may reuse what this one did without."""
    reused = {(REFERENCES, key) for step in plan.originals if step.cached for key in step.makes}
    reused |= {(ARTIFACTS, artifact.key) for artifact in plan.artifacts if artifact.cached}
    wanted = sorted(reused - checked)
    checked |= reused
    with ThreadPoolExecutor(os.cpu_count()) as pool:  # hashing leaves Python's lock
        return any(list(pool.map(lambda entry: store.set_aside_if_damaged(*entry), wanted)))
