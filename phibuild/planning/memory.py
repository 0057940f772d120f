"""How much memory a step is given: the backend's bound, corrected by what earlier runs took.

What runs of one kind took (same backend, code, shape, variants, evaluation) is kept in the store,
`usage/<key>.json`: the last peaks, and the memory that was not enough, if one was killed for it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass

from phibuild.store.store import Store, content_key

_KEPT = 5
_SPARE = 64 << 20
"""Bytes that a run may take more than those before it, besides an eighth."""


@dataclass(frozen=True)
class MemoryNeed:
    """Anonymous memory of a step in bytes: the backend's `bound`, and what the runs before took
    (`measured`, None: there were none). `key` names its kind in the store."""

    key: str
    bound: int
    measured: int | None = None

    @property
    def bytes(self) -> int:
        """Bytes that the step is admitted by."""
        if self.measured is None:
            return self.bound
        return self.measured + self.measured // 8 + _SPARE


def memory_need(store: Store, kind: Mapping[str, object], bound: int) -> MemoryNeed:
    """Return the demand of a step of this kind, by what the store knows."""
    key = content_key(kind)
    peaks, lacked = _read(store, key)
    measured = max(peaks) if peaks else None
    if lacked:
        # Killed for memory: what it had reached then was not its peak.
        measured = max(lacked + lacked // 2, measured or bound)
    return MemoryNeed(key, bound, measured)


def note_peak(store: Store, need: MemoryNeed, peak: int) -> None:
    """Remember what a step took that did all that it had to."""
    peaks, _ = _read(store, need.key)
    _write(store, need.key, [*peaks, peak][-_KEPT:], 0)


def note_lack(store: Store, need: MemoryNeed, peak: int) -> None:
    """Remember what a step had reached when it was killed for memory."""
    peaks, lacked = _read(store, need.key)
    _write(store, need.key, peaks, max(lacked, peak))


def _read(store: Store, key: str) -> tuple[list[int], int]:
    try:
        data = json.loads((store.root / "usage" / f"{key}.json").read_text("utf-8"))
        return [int(peak) for peak in data["peaks"]], int(data["lacked"])
    except (OSError, ValueError, TypeError, KeyError):
        return [], 0  # never ran, or the file is damaged: the bound holds


def _write(store: Store, key: str, peaks: list[int], lacked: int) -> None:
    text = json.dumps({"peaks": peaks, "lacked": lacked})
    store.write(store.root / "usage" / f"{key}.json", text)
