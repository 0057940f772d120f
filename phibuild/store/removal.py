"""Keeping the store in bounds: what goes first, and what never goes.

What no run names goes before what runs do, least recently used first; what a living build names, or
somebody has locked, stays. An entry leaves the store in one rename and is deleted after that.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from phibuild.store.inventory import Entry, entries, usage
from phibuild.store.store import PARTIAL, Store, unwritable
from phibuild.store.uses import read_uses, removals_lock
from phibuild.system.locks import held, held_if_free, is_held
from phibuild.system.workspaces import dead, sweep

_DISCARDED = ("damaged", "tmp")


@dataclass(frozen=True)
class Removal:
    """What was removed, or would be: entries, and how many other things by what they are;
    `left_bytes` is what the store holds afterwards."""

    entries: tuple[Entry, ...]
    others: dict[str, int]
    left_bytes: int


def choose(
    found: Sequence[Entry], *, now: float, older_than: float, excess: float
) -> tuple[Entry, ...]:
    """Return what to remove of what is not in use: damaged entries, all that have not been used for
    `older_than` seconds, then more until their bytes make up the `excess`."""
    free = [entry for entry in found if entry.state != "in use"]
    free.sort(key=lambda entry: (bool(entry.runs), entry.used))
    chosen: list[Entry] = []
    recent: list[Entry] = []
    for entry in free:
        useless = entry.state == "damaged" or now - entry.used > older_than
        (chosen if useless else recent).append(entry)
    excess -= sum(entry.size_bytes for entry in chosen)
    for entry in recent:
        if excess <= 0:
            break
        chosen.append(entry)
        excess -= entry.size_bytes
    return tuple(chosen)


def plan_removal(store: Store, *, now: float, older_than: float, max_bytes: int | None) -> Removal:
    """Return what `remove` would remove; changes nothing. `now` is in seconds since 1970."""
    sizes = {name: size for name, (size, _) in usage(store).items() if name not in _DISCARDED}
    total = sum(sizes.values())
    excess = 0 if max_bytes is None else total - max_bytes
    chosen = choose(entries(store), now=now, older_than=older_than, excess=excess)
    others = {
        "set aside": len(_children(store, "damaged")),
        "leftovers": len(dead(store.root / "tmp")),
        "forgotten": len(_useless(store, now - older_than)) - len(_children(store, "damaged")),
        "locks": sum(not is_held(path) for path in _locks(store)),
    }
    return Removal(chosen, others, total - sum(entry.size_bytes for entry in chosen))


def remove(
    store: Store,
    *,
    now: float,
    older_than: float,
    max_bytes: int | None,
    waiting: Callable[[], None] = lambda: None,
) -> Removal:
    """Remove what has not been used for `older_than` seconds, more if the store then is larger than
    `max_bytes`, and what is of no use: damaged entries, leftovers, locks that nobody holds.

    `waiting` is called if a build that is about to start has to be waited for. Raises StoreError if
    the store cannot be written.
    """
    if not store.root.exists():  # nothing was built yet
        return plan_removal(store, now=now, older_than=older_than, max_bytes=max_bytes)
    store.make_folders()  # some may have gone
    try:
        with store.workspace() as bin, _alone(store, waiting):
            wanted = plan_removal(store, now=now, older_than=older_than, max_bytes=max_bytes)
            removed = tuple(entry for entry in wanted.entries if _take(store, entry, bin))
            for number, path in enumerate(_useless(store, now - older_than)):
                with contextlib.suppress(FileNotFoundError):
                    os.rename(path, bin / str(number))
            for path in _locks(store):
                with held_if_free(path) as fd:
                    if fd is not None:
                        path.unlink()
            sweep(store.root / "tmp")
            missed = sum(entry.size_bytes for entry in {*wanted.entries} - {*removed})
            return Removal(removed, wanted.others, wanted.left_bytes + missed)
    except OSError as error:
        raise unwritable(store.root, error) from error


@contextlib.contextmanager
def _alone(store: Store, waiting: Callable[[], None]) -> Iterator[None]:
    """Hold the lock that builds share while they look at what is there."""
    path = removals_lock(store)
    if is_held(path):
        waiting()
    with held(path):
        yield


def _take(store: Store, entry: Entry, bin: Path) -> bool:
    """Move an entry out of the store unless somebody builds it; say whether it has gone."""
    lock = store.root / "locks" / f"{entry.key}.lock"
    with held_if_free(lock) as fd:
        if fd is None:
            return False
        with contextlib.suppress(FileNotFoundError):
            os.rename(entry.path, bin / f"{entry.kind}-{entry.key}")
        lock.unlink()
    return True


def _useless(store: Store, before: float) -> list[Path]:
    """Return entries that were set aside, what is known of runs that have gone, and checkpoints'
    digests and beginnings of steps not touched since `before`."""
    gone = [use.entry for use in read_uses(store) if use.gone]
    old = [path for path in _children(store, "digests") if path.stat().st_mtime < before]
    for path in _children(store, PARTIAL):
        times = (file.stat().st_mtime for file in (path, *path.glob("*")))
        if max(times) < before and not is_held(store.root / "locks" / f"{path.name}.lock"):
            old.append(path)
    return [*_children(store, "damaged"), *gone, *old]


def _locks(store: Store) -> list[Path]:
    """Return the locks of entries and of runs, but for those that removals need themselves."""
    kept = {use.entry.with_suffix(".lock") for use in read_uses(store)} | {removals_lock(store)}
    found = [*_children(store, "locks"), *_children(store, "runs")]
    return [path for path in found if path.suffix == ".lock" and path not in kept]


def _children(store: Store, folder: str) -> list[Path]:
    return sorted((store.root / folder).glob("*"))
