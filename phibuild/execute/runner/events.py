"""What a runner says: lines of JSON, read with limits and checked before anyone relies on them.

phibuild/worker/protocol.py documents the events. A runner is another program with large libraries
in it: whatever it writes, it must not take phibuild down.
"""

from __future__ import annotations

import json
import math
import os
import select
import subprocess
import time
from collections.abc import Iterator, Mapping
from typing import Annotated, Literal, Self, TypeVar

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    FiniteFloat,
    NonNegativeInt,
    PositiveInt,
    TypeAdapter,
    model_validator,
)

from phibuild.schema import Document
from phibuild.store.documents import Seconds, TokenizerComparison

_LONGEST = 1 << 20
"""Bytes of a line, at most."""
_LINGER_SECONDS = 1.0
"""How long the stream is read when the runner has ended, but a child of it holds it open."""
_BLOCK = 1 << 16


class _Event(BaseModel):
    model_config = ConfigDict(strict=True, extra="ignore")


class Stage(_Event):
    event: Literal["stage"]
    stage: str
    fraction: FiniteFloat | None = None
    item: str | None = None


class Item(_Event):
    event: Literal["item"]
    item: str
    result: dict[str, object]


class Failed(_Event):
    event: Literal["failed"]
    item: str
    error: str


class Text(_Event):
    event: Literal["text"]
    text: str


class End(_Event):
    event: Literal["end"]
    cpu_seconds: Seconds
    loading_seconds: Seconds


Event = Stage | Item | Failed | Text | End
_ADAPTER: TypeAdapter[Event] = TypeAdapter(Annotated[Event, Field(discriminator="event")])


class NoEvent(Exception):
    """A line that is no event."""


def parse_event(line: bytes) -> Event:
    """Return the event of a line. Raises NoEvent, with the line's start, if it is none."""
    try:
        return _ADAPTER.validate_python(json.loads(line))
    except (ValueError, RecursionError):  # ValidationError and UnicodeDecodeError are ValueErrors
        start = line[:80].decode("utf-8", "replace")
        raise NoEvent(f"the runner wrote something that is no event: {start!r}") from None


def read_lines(process: subprocess.Popen[bytes]) -> Iterator[bytes]:
    """Yield the lines of a process's standard output until it ends: soon after the process has,
    even if a child of it still holds the stream. A line that is too long comes in parts."""
    assert process.stdout is not None  # opened as a pipe
    stream = process.stdout.fileno()
    rest = b""
    last: float | None = None
    while True:
        ready, _, _ = select.select([stream], [], [], 0.2)
        if ready:
            block = os.read(stream, _BLOCK)
            if not block:
                break
            *lines, rest = (rest + block).split(b"\n")
            yield from lines
            if len(rest) > _LONGEST:
                yield rest
                rest = b""
        elif process.poll() is not None:
            last = last or time.monotonic()
            if time.monotonic() - last > _LINGER_SECONDS:
                break
    if rest:
        yield rest


class BuildResult(Document):
    """The result of a build's item. `own_seconds` is what was done for it alone, `shared_seconds`
    its equal share of what was done for all items of a pass; a backend gives both or neither."""

    types: Annotated[dict[str, PositiveInt], Field(min_length=1)]
    weight_bytes: PositiveInt
    seconds: Seconds
    own_seconds: Seconds | None = None
    shared_seconds: Seconds | None = None
    peak_rss_bytes: NonNegativeInt
    tokenizer: TokenizerComparison

    @model_validator(mode="after")
    def _adds_up(self) -> Self:
        own, shared = self.own_seconds, self.shared_seconds
        if (own is None) != (shared is None):
            raise ValueError("own_seconds and shared_seconds go together")
        if own is None or shared is None:
            return self
        if not math.isclose(own + shared, self.seconds, rel_tol=1e-6, abs_tol=1e-6):
            raise ValueError("seconds are not own_seconds and shared_seconds together")
        return self


class GenerateResult(Document):
    """The result of a text that was generated."""

    prompt_tokens: NonNegativeInt
    tokens: NonNegativeInt
    generation_seconds: Seconds


class BadResult(Exception):
    """A result that is not what it should be."""


D = TypeVar("D", bound=Document)


def read_result(result: Mapping[str, object], shape: type[D]) -> D:
    """Return the result of an item. Raises BadResult, in words for people, if it is not one."""
    try:
        return shape.read(result)
    except ValueError as error:
        raise BadResult(f"the runner's result is not what it should be: {error}") from None
