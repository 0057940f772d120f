"""Text in Markdown as GitHub reads it (GFM): whatever it holds, it shows as it is.

Names stand in code, where nothing has a meaning. In other text, signs that could have one are HTML
entities, which no reader of Markdown takes for a sign of its own (CommonMark 6.2: entities cannot
be used in place of symbols that indicate structure).
"""

from __future__ import annotations

import html
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

_SIGNS = re.compile(r"[\\`*\[\]<>&|~$]|(?<![^\W_])_|_(?![^\W_])")
_SPACE = re.compile(r"\s+")
_OPENS_A_BLOCK = re.compile(r"([#+\-=:>])|(\d{1,9})([.)])(?= |$)")
_LINKS = re.compile(r":(?=//)|(?<=www)\.", re.IGNORECASE)
_MENTIONS = re.compile(r"(?<!\w)@")


def visible(text: str) -> str:
    """Return a text on one line, without signs that have no shape."""
    words = _SPACE.sub(" ", text).strip()
    return "".join(sign if sign.isprintable() else "\ufffd" for sign in words)


def escape(text: str) -> str:
    """Return a text that shows as it is, on one line, wherever Markdown has words: in a table, in
    a list. It mentions nobody, and links nowhere."""
    escaped = _SIGNS.sub(_entity, visible(text))
    escaped = _MENTIONS.sub("<code>@</code>", _LINKS.sub(_entity, escaped))
    match = _OPENS_A_BLOCK.match(escaped)
    if match is None:
        return escaped
    if match[1]:
        return _entity(match) + escaped[1:]
    return f"{match[2]}&#{ord(match[3])};{escaped[match.end() :]}"


def _entity(match: re.Match[str]) -> str:
    sign = match[0]
    return {"<": "&lt;", ">": "&gt;", "&": "&amp;"}.get(sign, f"&#{ord(sign[0])};")


def code(text: str) -> str:
    """Return a name as code, on one line."""
    name = visible(text)
    if not name:
        return ""
    if "`" in name or "|" in name:
        entities = "".join(sign if sign.isalnum() else f"&#{ord(sign)};" for sign in name)
        return f"<code>{entities}</code>"
    return f"`{name}`"


def block(text: str) -> list[str]:
    """Return the lines of a block of text as it is, with its line ends."""
    lines = (visible_line(line) for line in text.splitlines())
    return ["<pre>", *(html.escape(line, quote=False) for line in lines), "</pre>"]


def visible_line(line: str) -> str:
    return "".join(sign if sign.isprintable() else "\ufffd" for sign in line.expandtabs())


def row(cells: Sequence[str]) -> str:
    """Return a row of a table; its cells are Markdown already."""
    return f"| {' | '.join(cells)} |"


def table_head(headers: Sequence[str], right: Sequence[str] = ()) -> list[str]:
    """Return the first two lines of a table; the columns `right` hold figures."""
    return [row(headers), row(["---:" if name in right else "---" for name in headers])]


@dataclass(frozen=True)
class Section:
    """A part of a page: its rows can be cut off, and `more` says then how many are missing. Rows of
    a section with the smaller `priority` are kept first."""

    before: Sequence[str]
    rows: Sequence[str]
    after: Sequence[str] = ()
    priority: int = 0
    more: Callable[[int], str] = lambda count: f"{count} more: report.json has them"

    def lines(self, count: int) -> Iterator[str]:
        yield from self.before
        yield from self.rows[:count]
        if count < len(self.rows):
            yield ""
            yield self.more(len(self.rows) - count)
        yield from self.after


def fold(summary: str, section: Section) -> Section:
    """Return a section that opens when it is asked for; `summary` is plain text."""
    return Section(
        ["<details>", f"<summary>{html.escape(visible(summary))}</summary>", "", *section.before],
        section.rows,
        [*section.after, "", "</details>", ""],
        section.priority,
        section.more,
    )


def fitted(sections: Sequence[Section], limit: int) -> str:
    """Return a page of so many bytes of UTF-8 at most, but for what no section can do without: rows
    that do not fit are left out, and counted."""
    left = limit - sum(_size([*s.lines(0), s.more(len(s.rows)), ""]) for s in sections)
    kept = [0] * len(sections)
    for number in sorted(range(len(sections)), key=lambda n: sections[n].priority):
        for line in sections[number].rows:
            left -= _size([line])
            if left < 0:
                break
            kept[number] += 1
        if left < 0:
            break
    parts = (section.lines(count) for section, count in zip(sections, kept, strict=True))
    return "\n".join(line for lines in parts for line in lines) + "\n"


def _size(lines: Sequence[str]) -> int:
    return sum(len(line.encode("utf-8", "replace")) + 1 for line in lines)
