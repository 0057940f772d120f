"""The cells of a recipe: variants of each place, told apart by name."""

from __future__ import annotations

import hashlib
import json
import re
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from pydantic import BaseModel

from phibuild.backends.quality import make_variant
from phibuild.backends.registry import backend
from phibuild.checkpoints.facts import Checkpoint
from phibuild.config.edits import COMMAND_LINE
from phibuild.planning.cell_requests import CellRequest
from phibuild.planning.mixing import with_target
from phibuild.planning.options import Answer, Expansion
from phibuild.schema import Calibration, Cell, Misfit, Options, Skip, Variant

# In names of files on every system, and with no meaning in a glob.
_UNSAFE = re.compile(r"[^\w.,=+-]")
_MAX_VALUE, _MAX_LABEL = 40, 100
"""Letters of a value, bytes of a label: file systems have room for so many bytes of a name."""


@dataclass(frozen=True)
class Asked:
    """A variant that was asked for, and what becomes of it with one model."""

    request: CellRequest
    answer: Answer

    @property
    def name(self) -> str | None:
        """The variant's, None of one that is skipped."""
        return self.answer.variant.name if self.answer.variant else None


def make_cells(
    combinations: Sequence[Sequence[CellRequest]], checkpoint: Checkpoint, state: Expansion
) -> Iterator[tuple[Cell, CellRequest]]:
    """Yield the cells of a recipe with one model; `combinations` are its requests, for each
    combination of what is swept. Notes variants that a recipe names twice at a place."""
    places: dict[tuple[str, ...], dict[str, Asked]] = {}
    for requests in combinations:
        entries: dict[tuple[str, ...], CellRequest] = {}
        for request in requests:
            asked = _ask(request, checkpoint, state)
            if asked is None:
                continue
            identity = asked.answer.identity
            first = entries.setdefault((*request.place, identity), request)
            if first is not request:
                _note_twice(first, asked, state)
            places.setdefault(request.place, {}).setdefault(identity, asked)
    for found in places.values():
        some = list(found.values())
        for asked, label in zip(some, labels(some), strict=True):
            yield _cell(asked, checkpoint.name, label), asked.request


def _ask(request: CellRequest, checkpoint: Checkpoint, state: Expansion) -> Asked | None:
    """Ask the backend what to build; None if the options are wrong."""
    if request.options is None:
        return None
    key = (checkpoint.name, *request.place, request.options.model_dump_json())
    if key not in state.answers:
        state.answers[key] = _answer(request, request.options, checkpoint, state)
    answer = state.answers[key]
    return None if answer is None else Asked(request, answer)


def _answer(
    request: CellRequest, options: BaseModel, checkpoint: Checkpoint, state: Expansion
) -> Answer | None:
    spec, device = backend(request.backend), state.devices[request.device]
    made = make_variant(spec, request.precision, options, device, checkpoint.architecture)
    match made:
        case Variant(sensitivity=Calibration()):
            made = with_target(spec, checkpoint, made)
    match made:
        case Variant():
            return Answer(made, None, made.model_dump_json())
        case Skip():  # its options cannot have the form of a variant
            return Answer(None, made.reason, options.model_dump_json())
        case Misfit():
            what = f"option {made.option!r} of {request.backend} does not suit {checkpoint.name}"
            state.note(f"{what}: {made.reason}", request.where(made.option), made.remedy)
            return None


def _note_twice(first: CellRequest, asked: Asked, state: Expansion) -> None:
    request, what = asked.request, asked.name or "one that is skipped"
    recipe, (other, here) = request.recipe, (first.path, request.path)
    words = (
        f"{COMMAND_LINE}: {word}"
        for path, word in recipe.overrides.items()
        if path[: len(here)] in (other, here)
    )
    state.note(
        f"{here[-2]}: two variants are the same, {what}",
        next(words, recipe.where(here)),  # whoever changed one of them made it so
        f"take one out; the first is {recipe.where(other)}",
    )


def _cell(asked: Asked, model: str, label: str) -> Cell:
    request = asked.request
    return Cell(
        id=".".join(filter(None, (model, *request.place, label))),
        model=model,
        device=request.device,
        backend=request.backend,
        precision=request.precision,
        label=label,
        variant=asked.answer.variant,
        skip=asked.answer.skip,
        gates=request.recipe.config.gates,
    )


def labels(asked: Sequence[Asked]) -> list[str]:
    """Return what tells the variants of a place from one another: nothing where there is one, else
    their names, with the given options in which those of one name differ; of one that is skipped,
    the given options."""
    if len(asked) == 1:
        return [""]
    given = _given([one.request for one in asked])
    names = [one.name for one in asked]
    found = []
    for name, options in zip(names, given, strict=True):
        if name is not None:
            same = [other for other, whose in zip(given, names, strict=True) if whose == name]
            options = {key: options[key] for key in _differing(same) if key in options}
        texts = [f"{key}={_text(value)}" for key, value in options.items()]
        found.append(_short(",".join([*([_safe(name)] if name else []), *texts]) or "default"))
    return found


def _given(requests: Sequence[CellRequest]) -> list[Options]:
    """Return the options that a recipe gives to each variant of a place: its own, and of those for
    the whole recipe what was swept."""
    swept = _differing([request.wide for request in requests])
    return [
        {key: value for key, value in {**one.wide, **one.own}.items()
         if key in one.own or key in swept}
        for one in requests
    ]  # fmt: skip


def _differing(some: Sequence[Options]) -> list[str]:
    """Return the options, sorted, that not all of some have, or not with the same value."""
    keys = sorted({key for options in some for key in options})
    return [
        key
        for key in keys
        if len({repr(options[key]) if key in options else None for options in some}) > 1
    ]


def _text(value: object) -> str:
    match value:
        case list():
            return "+".join(_text(entry) for entry in value)
        case str():
            return _safe(value)
    return _safe(json.dumps(value, default=str))


def _safe(text: str) -> str:
    """Return a text for names of files and for globs; one that had to be changed has a digest."""
    text = unicodedata.normalize("NFC", text)
    safe = _UNSAFE.sub("_", text)[:_MAX_VALUE]
    return safe if safe == text else f"{safe}-{_digest(text)}"


def _short(label: str) -> str:
    data = label.encode()
    if len(data) <= _MAX_LABEL:
        return label
    return f"{data[:_MAX_LABEL].decode(errors='ignore')}-{_digest(label)}"


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:6]
