"""The jobs that were submitted for a store, so that none is submitted twice.

`<store>/jobs/<key>.json` is a job that was submitted and not yet seen to have ended, `<key>` being
the digest of what it makes. A record is written before sbatch is called: whatever kills phibuild,
a job without a record cannot be. Every phibuild that waits for jobs holds a lock of its own
(`<store>/jobs/<id>.waiter`), by which the others see that it lives.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from phibuild.store.store import Store, content_key
from phibuild.system.locks import held, is_held

_KEEP_SECONDS = 86400.0


@dataclass(frozen=True)
class Record:
    """A submitted job. `makes`: keys in the store; `job` is None until sbatch has answered;
    `waiters`: the phibuilds that wait for it, dead ones too."""

    step: str
    makes: tuple[str, ...]
    name: str
    folder: str
    user: int
    submitted: float
    waiters: tuple[str, ...]
    job: str | None = None

    @property
    def key(self) -> str:
        return content_key({"makes": sorted(self.makes)})


class Records:
    """The records of a store, for one phibuild that waits: `me`. All but `lock` and `forget` need
    the lock to be held."""

    def __init__(self, store: Store) -> None:
        self.me = uuid.uuid4().hex
        self.folder = store.root / "jobs"
        self._store = store
        self.folder.mkdir(exist_ok=True)

    @property
    def waiter(self) -> Path:
        """The lock that is held while this phibuild waits."""
        return self._waiter(self.me)

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """Let the others see that this phibuild waits for jobs."""
        try:
            with held(self.waiter):
                yield
        finally:
            self.waiter.unlink(missing_ok=True)

    def lock(
        self, cancelled: Callable[[], bool] = lambda: False
    ) -> contextlib.AbstractContextManager[None]:
        """Hold all records against the other phibuilds. Raises StoreError if `cancelled` says so
        while another one holds them."""
        return self._store.lock("jobs", cancelled)

    def new(self, step: str, makes: Iterable[str]) -> Record:
        """Write the record of a job that is about to be submitted, and make its folder."""
        unique = uuid.uuid4().hex[:8]
        record = Record(
            step=step,
            makes=tuple(sorted(makes)),
            name=f"phibuild.{step}.{unique}",
            folder=f"{step}.{unique}",
            user=os.getuid(),
            submitted=time.time(),
            waiters=(self.me,),
        )
        self.path(record).mkdir()
        self.write(record)
        return record

    def path(self, record: Record) -> Path:
        """Return the folder of a job."""
        return self.folder / record.folder

    def write(self, record: Record) -> None:
        self._store.write(self.folder / f"{record.key}.json", json.dumps(asdict(record), indent=1))

    def wait_for(self, record: Record) -> Record:
        """Note that this phibuild waits for a job, too."""
        living = [name for name in record.waiters if name != self.me and self._lives(name)]
        record = replace(record, waiters=(*living, self.me))
        self.write(record)
        return record

    def leave(self, record: Record) -> bool:
        """Note that this phibuild no longer waits for a job; return whether none does."""
        known = next((one for one in self.all() if one.folder == record.folder), record)
        living = [name for name in known.waiters if name != self.me and self._lives(name)]
        if living:
            self.write(replace(known, waiters=tuple(living)))
        return not living

    def all(self) -> list[Record]:
        """Return this user's records: jobs of others cannot be asked for nor cancelled."""
        found = []
        for path in sorted(self.folder.glob("*.json")):
            try:
                data = json.loads(path.read_text(encoding="utf-8"))
                lists = {key: tuple(data[key]) for key in ("makes", "waiters")}
                record = Record(**{**data, **lists})
            except (OSError, ValueError, TypeError, KeyError):
                continue  # just removed by another, or not a record
            if record.user == os.getuid():
                found.append(record)
        return found

    def remove(self, record: Record) -> None:
        """Remove the record of a job that has ended, unless it is of another job by now."""
        if any(one.folder == record.folder for one in self.all() if one.key == record.key):
            (self.folder / f"{record.key}.json").unlink(missing_ok=True)

    def forget(self, record: Record) -> None:
        """As `remove`, taking the lock."""
        with self.lock():
            self.remove(record)

    def sweep(self) -> None:
        """Remove folders of jobs that ended a day ago, and what dead phibuilds left."""
        used = {record.folder for record in self.all()}
        for path in self.folder.iterdir():
            with contextlib.suppress(OSError):  # another phibuild was faster
                old = time.time() - path.stat().st_mtime > _KEEP_SECONDS
                if path.is_dir() and path.name not in used and old:
                    shutil.rmtree(path)
                elif path.suffix == ".waiter" and not self._lives(path.stem):
                    path.unlink()

    def _waiter(self, name: str) -> Path:
        return self.folder / f"{name}.waiter"

    def _lives(self, name: str) -> bool:
        return name == self.me or is_held(self._waiter(name))
