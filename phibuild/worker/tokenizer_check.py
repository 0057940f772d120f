"""What a format's own tokenizer makes of the probes, compared with what Transformers makes of them.

Standard library only: every backend's worker uses it, inside its toolchain.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypedDict

from phibuild.worker.protocol import WorkerError
from phibuild.worker.tokenizer_probes import Probe

TOKENIZER, PROBES = "tokenizer.json", "probes.json"
AROUND, STOPS = "around", "stops"
_SHOWN = 12  # ids of a list, in the message of an error


@dataclass(frozen=True)
class Facts:
    """What Transformers makes of a checkpoint's tokenizer.

    `ids` has those of each probe, without what is put around a text by itself: `start` and `end`.
    `stops` are the ids that end generation, `special` has the id of each role (bos, eos, unk, sep,
    pad, cls, mask) or None, `templates` the chat templates by name ("default" among them, if any).
    `tokenizer` is the tokenizer.json that gives these ids.
    """

    probes: tuple[Probe, ...]
    ids: tuple[list[int], ...]
    start: list[int]
    end: list[int]
    stops: list[int]
    special: Mapping[str, int | None]
    templates: Mapping[str, str]
    tokenizer: Path


def read_facts(folder: Path) -> Facts:
    """Return what `write_tokenizer_facts` of the pytorch backend wrote into a folder."""
    document = json.loads((folder / PROBES).read_text(encoding="utf-8"))
    return Facts(
        probes=tuple(Probe(entry["kind"], entry["text"]) for entry in document["probes"]),
        ids=tuple(entry["ids"] for entry in document["probes"]),
        start=document["start"],
        end=document["end"],
        stops=document["stops"],
        special=document["special"],
        templates=document["templates"],
        tokenizer=folder / TOKENIZER,
    )


class OwnTokenizer(Protocol):
    """The tokenizer of an artifact, in its own runtime."""

    def encode(self, text: str, *, around: bool) -> list[int]:
        """Return the ids of a text; `around`: with what is put before and after it."""

    def stops(self) -> list[int]:
        """Return the ids that end generation."""


@dataclass(frozen=True)
class Difference:
    """One that was found: of what kind of probe, its text, the right ids and those found."""

    kind: str
    text: str
    expected: list[int]
    found: list[int]


class ExplainedDifference(TypedDict):
    """A Difference as JSON, and `why` the runtime cannot do what is right."""

    kind: str
    text: str
    expected: list[int]
    found: list[int]
    why: str


class TokenizerCheck(TypedDict):
    """How many probes an artifact's tokenizer was tried with, and where it differs."""

    probes: int
    differences: list[ExplainedDifference]


Explain = Callable[[Difference], str | None]
"""Says why the runtime cannot do what is right, in a sentence for people; None if it could."""


def check_tokenizer(facts: Facts, own: OwnTokenizer, explain: Explain) -> TokenizerCheck:
    """Compare an artifact's own tokenizer with the facts. Raises WorkerError with the differences
    that `explain` has no sentence for."""
    differences = [
        Difference(probe.kind, probe.text, ids, found)
        for probe, ids in zip(facts.probes, facts.ids, strict=True)
        if (found := own.encode(probe.text, around=False)) != ids
    ]
    text, ids = _word(facts)
    whole = own.encode(text, around=True)
    if whole != [*facts.start, *ids, *facts.end]:
        expected = [*facts.start, *ids, *facts.end]
        differences.append(Difference(AROUND, text, expected, whole))
    stops = sorted(own.stops())
    if stops != sorted(facts.stops):
        differences.append(Difference(STOPS, "", sorted(facts.stops), stops))
    explained: list[ExplainedDifference] = []
    unexplained: list[Difference] = []
    for one in differences:
        why = explain(one)
        if why is None:
            unexplained.append(one)
        else:
            kind, text, expected, found = one.kind, one.text, one.expected, one.found
            explained.append(
                {"kind": kind, "text": text, "expected": expected, "found": found, "why": why}
            )
    if unexplained:
        raise WorkerError(_message(unexplained, len(facts.probes)))
    return {"probes": len(facts.probes), "differences": explained}


def nothing_to_explain(difference: Difference) -> str | None:
    """Return None: for runtimes that can do all that Transformers does."""
    return None


def _word(facts: Facts) -> tuple[str, list[int]]:
    """Return the first probe that has a token and no special one in it, and its ids."""
    return next(
        (probe.text, ids)
        for probe, ids in zip(facts.probes, facts.ids, strict=True)
        if probe.kind == "script"
    )


def _message(differences: Sequence[Difference], probes: int) -> str:
    first = differences[0]
    if first.kind == STOPS:
        what = f"generation ends at ids {_some(first.found)}, not {_some(first.expected)}"
    else:
        what = (
            f"{first.text!r} ({first.kind}) becomes {_some(first.found)}, "
            f"not {_some(first.expected)} as in Transformers"
        )
    rest = f"; {len(differences) - 1} more of {probes} probes differ" if differences[1:] else ""
    return f"the artifact's tokenizer is not the checkpoint's: {what}{rest}"


def _some(ids: Sequence[int]) -> str:
    shown = ", ".join(map(str, ids[:_SHOWN]))
    return f"[{shown}, ...]" if len(ids) > _SHOWN else f"[{shown}]"
