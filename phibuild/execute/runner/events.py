"""What a runner says: lines of JSON, read with limits and checked before anyone relies on them.

phibuild/worker/protocol.py documents the events. A runner is another program with large libraries
in it: whatever it writes, it must not take phibuild down.
"""

from __future__ import annotations

import json
import os
import select
import subprocess
import time
from collections.abc import Iterator
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, TypeAdapter, ValidationError

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
    result: dict[str, Any]


class Failed(_Event):
    event: Literal["failed"]
    item: str
    error: str


class Text(_Event):
    event: Literal["text"]
    text: str


class End(_Event):
    event: Literal["end"]
    cpu_seconds: Annotated[FiniteFloat, Field(ge=0)]
    loading_seconds: Annotated[FiniteFloat, Field(ge=0)]


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


class TokenizerDifference(_Event):
    """What an artifact's tokenizer makes of a text in another way than the source's, and why its
    runtime cannot do better."""

    kind: str
    text: str
    expected: list[int]
    found: list[int]
    why: Annotated[str, Field(min_length=1)]


class TokenizerResult(_Event):
    """The comparison of an artifact's tokenizer with the source's over a number of probes."""

    probes: Annotated[int, Field(gt=0)]
    differences: list[TokenizerDifference]


class BuildResult(_Event):
    """The result of a build's item."""

    types: Annotated[dict[str, Annotated[int, Field(gt=0)]], Field(min_length=1)]
    weight_bytes: Annotated[int, Field(gt=0)]
    seconds: Annotated[FiniteFloat, Field(ge=0)]
    peak_rss_bytes: Annotated[int, Field(ge=0)]
    tokenizer: TokenizerResult


class Speed(_Event):
    load_seconds: FiniteFloat
    prefill_tokens_per_second: FiniteFloat
    decode_tokens_per_second: FiniteFloat


class Quality(_Event):
    model_config = ConfigDict(strict=True, extra="allow")
    __pydantic_extra__: dict[str, FiniteFloat]
    kl_mean: FiniteFloat
    kl_p99: FiniteFloat
    perplexity: FiniteFloat
    reference_perplexity: FiniteFloat
    top1: FiniteFloat


class JudgeResult(_Event):
    """The result of a judging's item."""

    quality: Quality
    speed: Speed
    peak_rss_bytes: Annotated[int, Field(ge=0)]


def problem(result: dict[str, Any], shape: type[BaseModel]) -> str | None:
    """Return what is wrong with a result, None if it is what it should be."""
    try:
        shape.model_validate(result)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = ".".join(map(str, first["loc"])) or "it"
        return f"the runner's result is not what it should be: {place}: {first['msg'].lower()}"
    return None
