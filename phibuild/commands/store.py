"""`phibuild store`: what is in the store, what it takes, and keeping it in bounds."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial

from tabulate import tabulate

from phibuild.commands.answers import FolderUse, StoreEntry, StoreList, StoreRemoval, StoreUse
from phibuild.errors import EXIT_OK
from phibuild.schema import document_text
from phibuild.store.inventory import Entry, entries, usage
from phibuild.store.removal import Removal, plan_removal, remove
from phibuild.store.store import Store
from phibuild.system.places import store_folder
from phibuild.units import format_age, format_decimal

_KEY_LETTERS = 12


def run(arguments: argparse.Namespace) -> int:
    """List entries, tell bytes by kind, or remove what is not needed."""
    store = Store(store_folder())
    if arguments.action == "list":
        _list(store, json_wanted=arguments.json)
    elif arguments.action == "du":
        _du(store, json_wanted=arguments.json)
    else:
        _gc(store, arguments)
    return EXIT_OK


def _list(store: Store, *, json_wanted: bool) -> None:
    found = entries(store)
    if json_wanted:
        print(document_text(StoreList([_answer(entry) for entry in found])))
    elif found:
        print(_table(found))
    else:
        print(f"nothing in {store.root}")


def _table(found: Sequence[Entry]) -> str:
    now = time.time()
    rows = [
        (
            entry.kind,
            entry.key[:_KEY_LETTERS],
            entry.what,
            format_decimal(entry.size_bytes),
            format_decimal(entry.freed_bytes),
            format_age(now - entry.used) if entry.used else "unknown",
            entry.state,
            f"{entry.runs[-1]}" + (f" and {len(entry.runs) - 1} more" if entry.runs[1:] else "")
            if entry.runs
            else "no run",
        )
        for entry in found
    ]
    headers = ("kind", "key", "what", "size", "would free", "used", "state", "used by")
    align = ("left", "left", "left", "right", "right", "right", "left", "left")
    return tabulate(rows, headers, colalign=align, disable_numparse=True)


def _answer(entry: Entry) -> StoreEntry:
    runs = [str(run) for run in entry.runs]
    return StoreEntry(**{**asdict(entry), "path": str(entry.path), "runs": runs})


def _du(store: Store, *, json_wanted: bool) -> None:
    sizes = usage(store)
    if json_wanted:
        use = {name: FolderUse(bytes=size, freed_bytes=freed) for name, (size, freed) in
               sizes.items()}  # fmt: skip
        print(document_text(StoreUse(use)))
        return
    total = [sum(column) for column in zip(*sizes.values(), strict=True)] or [0, 0]
    rows = [
        (name, format_decimal(size), format_decimal(freed))
        for name, (size, freed) in [*sizes.items(), ("all", total)]
    ]
    align = ("left", "right", "right")
    headers = (str(store.root), "size", "would free")
    print(tabulate(rows, headers, colalign=align, disable_numparse=True))
    print("files that runs hold hard links to are not freed until those runs are removed too")


def _gc(store: Store, arguments: argparse.Namespace) -> None:
    sweep = plan_removal if arguments.dry_run else partial(remove, waiting=_tell_waiting)
    removal = sweep(
        store,
        now=time.time(),
        older_than=arguments.older_than,
        max_bytes=arguments.max_size,
    )
    if arguments.json:
        answer = StoreRemoval(
            removed=[_answer(entry) for entry in removal.entries],
            others=removal.others,
            left_bytes=removal.left_bytes,
            dry_run=arguments.dry_run,
        )
        print(document_text(answer))
        return
    if removal.entries:
        print(_table(removal.entries))
    print(_summary(removal, dry_run=arguments.dry_run))
    if arguments.max_size is not None and removal.left_bytes > arguments.max_size:
        print(
            f"note: {format_decimal(removal.left_bytes)} are left: the rest is in use",
            file=sys.stderr,
        )


def _tell_waiting() -> None:
    print("waiting for a build that looks at the store", file=sys.stderr)


def _summary(removal: Removal, *, dry_run: bool) -> str:
    size = format_decimal(sum(entry.size_bytes for entry in removal.entries))
    freed = format_decimal(sum(entry.freed_bytes for entry in removal.entries))
    others = [f"{count} {name}" for name, count in removal.others.items() if count]
    first = (
        f"{'would remove' if dry_run else 'removed'} {len(removal.entries)} entries, {size} "
        f"({freed} freed on disk)"
    )
    also = [", ".join(others)] if others else []
    return "; ".join([first, *also, f"{format_decimal(removal.left_bytes)} left"])
