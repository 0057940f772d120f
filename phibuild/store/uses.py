"""Which runs use what in the store, so that removals can tell.

`<store>/runs/<name>.json` says what a run needs and where its folder is; it is written before the
run's first step. The build holds a lock on `<name>.lock` for as long as it lives. A run whose
folder has gone, or whose build was killed before its report, is forgotten, but for one whose jobs
may go on without it on a cluster.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import socket
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from phibuild.store.store import ARTIFACTS, MEASURES, REFERENCES, Store
from phibuild.system.locks import held, is_held


@dataclass(frozen=True)
class Use:
    """One run's use of the store: `keys` by kind of entry, `time` in seconds since 1970. `alive`
    says that its build goes on, `gone` that nothing is left of the run."""

    entry: Path
    folder: Path
    keys: dict[str, frozenset[str]]
    time: float
    alive: bool
    gone: bool


def removals_lock(store: Store) -> Path:
    """Return the lock that whoever removes entries holds alone, and that builds share from looking
    at what is there until it is said to be in use."""
    return store.root / "locks" / "removals.lock"


@contextlib.contextmanager
def nothing_removed(store: Store) -> Iterator[None]:
    """Hold off removals."""
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(OSError):  # what cannot be written to has nothing removed either
            stack.enter_context(held(removals_lock(store), shared=True))
        yield


class Using:
    """What a living build says of its run's use of the store."""

    def __init__(self, store: Store, folder: Path, keys: Mapping[str, Sequence[str]]) -> None:
        self._store, self._keys = store, keys
        self.entry = self._entry(folder)

    def _entry(self, folder: Path) -> Path:
        run = f"{socket.gethostname()}\n{folder}"
        name = hashlib.sha256(run.encode("utf-8", "surrogateescape")).hexdigest()[:16]
        return self._store.root / "runs" / f"{name}.json"

    def say(self, folder: Path) -> None:
        """Say that the run in `folder` uses the entries, now. Raises OSError."""
        text = {"folder": str(folder), "host": socket.gethostname(), **self._keys}
        self._store.write(self._entry(folder), json.dumps(text))

    def hand_over(self, folder: Path) -> None:
        """Say it of the run in `folder`, in the place of this build's, which leaves none."""
        with contextlib.suppress(OSError):
            self.say(folder)
            self.entry.unlink(missing_ok=True)


@contextlib.contextmanager
def in_use(store: Store, folder: Path, keys: Mapping[str, Sequence[str]]) -> Iterator[Using]:
    """Say that the run in `folder` uses entries, `keys` by kind, and keep it until the end; what is
    said stays for as long as the run's report does."""
    with contextlib.ExitStack() as stack:
        using = Using(store, folder, keys)
        with contextlib.suppress(OSError):  # a store that cannot be written has its reader too
            lock = using.entry.with_suffix(".lock")
            stack.callback(_remove, lock)
            stack.enter_context(held(lock))
            using.say(folder)
        yield using


def _remove(path: Path) -> None:
    with contextlib.suppress(OSError):  # it could not be made
        path.unlink()


def read_uses(store: Store) -> list[Use]:
    """Return all runs that the store knows of. Those of other machines' folders, which cannot be
    seen from here, count as there."""
    uses = []
    jobs = any((store.root / "jobs").glob("*.json"))  # submitted, not yet seen to have ended
    for entry in sorted((store.root / "runs").glob("*.json")):
        try:
            data = json.loads(entry.read_text(encoding="utf-8"))
            folder, here = Path(data["folder"]), data["host"] == socket.gethostname()
            keys = {kind: frozenset(data[kind]) for kind in (ARTIFACTS, MEASURES, REFERENCES)}
            time = entry.stat().st_mtime
        except (OSError, ValueError, KeyError, TypeError):
            continue  # removed in this instant, or not what phibuild writes
        reported = (folder / "report.json").is_file()
        alive = is_held(entry.with_suffix(".lock")) or (jobs and not reported)
        gone = not alive and here and not reported
        uses.append(Use(entry, folder, keys, time, alive, gone))
    return uses
