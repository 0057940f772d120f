"""The values of an axis as they stand on the command line: plain text, before Hydra types them.

Hydra's grammar would read a recipe called 2024.10 as a number, and stop at the `=` of a path. So
names are text here: `1.10`, `1e5`, `null`, `./my phi (2)=a`. Hydra reads what is written for it: a
quoted value, and the functions of its grammar (glob, choice, range, ...). In a mapping, as in
`{name: kiosk, path: ./a}`, the values are text too.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass

from phibuild.config.grammar import FUNCTIONS, NotAnOverride, parse

_QUOTED = re.compile(r"""'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*\"""", re.DOTALL)
_PLAIN = re.compile(r"(?:\\.|[^,\\]|\\\Z)*", re.DOTALL)
_BLANKS = re.compile(r"[ \t]*")
# The characters that Hydra's grammar lets a backslash stand before, outside quotes.
_ESCAPED = re.compile(r"\\([\\()\[\]{}:=, \t])")
_FUNCTION = re.compile(rf"(?:{'|'.join(FUNCTIONS)})[ \t]*\(.*\)", re.DOTALL)
_CHOICE = re.compile(r"choice[ \t]*\(([^()]*[^()\s][^()]*)\)", re.DOTALL)
_OPENING, _CLOSING = "[{", "]}"


@dataclass(frozen=True)
class Element:
    """One value as it was written: `kind` is "text" (quoted or not), "list" or "mapping"; `text`
    is the value of a text, the source of the others."""

    kind: str
    text: str


def is_function(text: str) -> bool:
    """Say whether a value is a call of one of Hydra's functions, a plain `choice` not counted:
    that is a sweep over names."""
    return bool(_FUNCTION.fullmatch(text)) and not _CHOICE.fullmatch(text)


def read_elements(text: str) -> list[Element]:
    """Return the values that stand between the commas of a text, or in its `choice(...)`.

    Commas in quotes, in a list or mapping, and after a backslash divide nothing. Raises
    NotAnOverride for a quoted value that Hydra does not understand.
    """
    return [_element(part) for part in _split(chosen_text(text))]


def chosen_text(text: str) -> str:
    """Return what stands in a plain `choice(...)`, other texts as they are."""
    chosen = _CHOICE.fullmatch(text)
    return chosen[1] if chosen else text


def read_mapping(text: str) -> dict[str, str]:
    """Return `{key: value, ...}` with its values as text; raises NotAnOverride."""
    found: dict[str, str] = {}
    for part in _split(text[1:-1]) if text[1:-1].strip(" \t") else ():
        key, colon, value = part.partition(":")
        key, element = key.strip(" \t"), _element(value.strip(" \t"))
        if not colon or not key:
            raise NotAnOverride(f"a mapping is {{key: value, ...}}, not {text!r}")
        if key in found:
            raise NotAnOverride(f"key {key!r} stands twice in {text!r}")
        if element.kind != "text":
            raise NotAnOverride(f"the value of {key!r} must be text, not a {element.kind}")
        found[key] = element.text
    return found


def forbidden_character(word: str) -> str | None:
    """Return a character that no name may have: a control character, a line's end, a byte that is
    not UTF-8 text; None if there is none."""
    categories = ("Cc", "Cs", "Zl", "Zp")
    return next((letter for letter in word if unicodedata.category(letter) in categories), None)


def _element(part: str) -> Element:
    if part and _QUOTED.fullmatch(part):
        return Element("text", str(parse(f"x={part}").value()))
    if part[:1] in ("[", "{") and _container_end(part, 0) == len(part):
        return Element("list" if part[0] == "[" else "mapping", part)
    return Element("text", _ESCAPED.sub(r"\1", part))


def _split(text: str) -> Iterator[str]:
    """Yield the parts between the commas, without the blanks around them."""
    start = 0
    while True:
        start = _end(_BLANKS, text, start)
        end = start
        if text[start : start + 1] in ("'", '"'):
            end = _end(_QUOTED, text, start)
        elif text[start : start + 1] in ("[", "{"):
            end = _container_end(text, start)
        after = _end(_BLANKS, text, end)
        if end == start or text[after : after + 1] not in ("", ","):
            end = after = _end(_PLAIN, text, start)  # a plain text, whatever it starts with
        yield text[start:end].rstrip(" \t")
        if after >= len(text):
            return
        start = after + 1


def _end(pattern: re.Pattern[str], text: str, start: int) -> int:
    match = pattern.match(text, start)
    return match.end() if match else start


def _container_end(text: str, start: int) -> int:
    """Return where the list or mapping that opens at `start` has closed; `start` if it has not."""
    depth, position = 0, start
    while position < len(text):
        letter = text[position]
        quoted = _end(_QUOTED, text, position) if letter in "'\"" else position
        position = quoted if quoted > position else position + 1
        depth += (letter in _OPENING) - (letter in _CLOSING)
        if not depth:
            return position
    return start
