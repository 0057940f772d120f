"""The pages of docs/ that are made from the code: the command line, and the JSON documents.

python tools/pages.py           # write docs/cli.md and docs/contracts.md
python tools/pages.py --check   # exit code 1 if one of them is not what the code says
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from argparse import ArgumentParser
from collections.abc import Iterator
from pathlib import Path

from pydantic import JsonValue

from phibuild.commands.arguments import DEFAULT_VERB, VERBS, Verb
from phibuild.commands.schema import DOCUMENTS, schema_text

DOCS = Path(__file__).resolve().parents[1] / "docs"
MADE = "<!-- made by tools/pages.py: do not edit -->"
_WIDTH = 88
_WORD = re.compile(r"\[(?:[^\[\]]|\[[^\[\]]*\])*\]|\S+")
"""A word of a usage line: one in brackets, which may have others within, or a plain one."""


def cli_page() -> str:
    """Return the page of all verbs, as their parsers have them."""
    rows = [f"| [`{name}`](#{name}) | {_cell(verb.help)} |" for name, verb in VERBS.items()]
    parts = [
        f"# Command line\n\n{MADE}\n",
        "`phibuild [VERB] [options] [key=value ...]`; without a verb, it is "
        f"`{DEFAULT_VERB}`. `phibuild --help` and `phibuild VERB --help` say the same as this "
        "page.\n",
        "| verb | what it does |\n|---|---|\n" + "\n".join(rows) + "\n",
        *(_verb_section(name, verb) for name, verb in VERBS.items()),
        "## Exit codes\n\n| code | meaning |\n|---|---|\n"
        "| 0 | built, gates met |\n| 1 | a cell failed, or a check found damage |\n"
        "| 2 | wrong usage or input, or nothing that can be built |\n| 3 | a gate failed |\n"
        "| 130 | interrupted |\n",
    ]
    return "\n".join(parts)


def _verb_section(name: str, verb: Verb) -> str:
    parser = ArgumentParser(prog=f"phibuild {name}", add_help=False)
    verb.declare(parser)
    usage = _WORD.findall(" ".join(parser.format_usage().removeprefix("usage: ").split()))
    lines, line = [], ""
    for word in usage:
        if line and len(line) + 1 + len(word) > _WIDTH:
            lines.append(line)
            line = "   "
        line = f"{line} {word}".rstrip() if line else word
    lines.append(line)
    rows = []
    for action in parser._actions:
        value = action.metavar or ("|".join(map(str, action.choices)) if action.choices else None)
        words = ", ".join(action.option_strings) or str(value or action.dest)
        if action.option_strings and value and action.nargs != 0:
            words += f" {value}"
        shown = f"`{words}`".replace("|", "\\|")
        rows.append(f"| {shown} | {_cell(action.help or '')} |")
    table = "\n| argument | meaning |\n|---|---|\n" + "\n".join(rows) + "\n" if rows else ""
    usage_text = "\n".join(lines)
    return f"## {name}\n\n{_sentence(verb.help)}\n\n```text\n{usage_text}\n```\n{table}"


def contracts_page() -> str:
    """Return the page of all JSON documents: every key with its type and its meaning."""
    parts = [
        f"# JSON documents, key by key\n\n{MADE}\n",
        "What each document is for, and what may change: [documents.md](documents.md). A type in "
        "brackets is one part of the document, described below it. `?` marks a key that may be "
        "left out.\n",
    ]
    for name, (_, where) in DOCUMENTS.items():
        parts.append(f"## {name}\n\n{_cell(where)}. Schema: [{name}.json](schema/{name}.json).\n")
        schema = json.loads(schema_text(name))
        if description := schema.get("description"):
            parts.append(f"{description}\n")
        parts += _tables(schema)
    return "\n".join(parts)


def _tables(schema: JsonValue) -> Iterator[str]:
    """Yield the table of a schema's own keys, then those of its parts."""
    match schema:
        case {"properties": dict()}:
            yield _table(schema)
        case _:
            yield f"It is: {_type(schema)}.\n"
    match schema:
        case {"$defs": dict(parts)}:
            for name, part in sorted(parts.items()):
                match part:
                    case {"properties": dict()}:
                        yield f"**{name}**\n"
                        yield _table(part)


def _table(schema: JsonValue) -> str:
    match schema:
        case {"properties": dict(properties), **rest}:
            needed = rest.get("required") or []
            assert isinstance(needed, list)
            rows = [
                f"| `{key}`{'' if key in needed else ' ?'} | {_cell(_type(value))} | "
                f"{_cell(_description(value))} |"
                for key, value in properties.items()
            ]
            return "| key | type | meaning |\n|---|---|---|\n" + "\n".join(rows) + "\n"
    return ""


def _description(value: JsonValue) -> str:
    match value:
        case {"description": str(text)}:
            return text
    return ""


def _type(value: JsonValue) -> str:
    """Return a schema's type in words."""
    match value:
        case {"$ref": str(place)}:
            return f"[{place.rpartition('/')[2]}]"
        case {"anyOf": list(choices)}:
            return " or ".join(dict.fromkeys(_type(one) for one in choices))
        case {"const": constant}:
            return f"`{json.dumps(constant)}`"
        case {"enum": list(values)}:
            return ", ".join(f"`{one}`" for one in values)
        case {"type": "array", "items": items}:
            return f"list of {_type(items)}"
        case {"type": "object", "additionalProperties": dict(values)}:
            return f"mapping to {_type(values)}"
        case {"type": str(name)}:
            return name
    return "any"


def _cell(text: str) -> str:
    return " ".join(text.replace("|", "\\|").replace("%%", "%").replace("<", "&lt;").split())


def _sentence(text: str) -> str:
    text = text.replace("<", "&lt;")
    return text[:1].upper() + text[1:] + ("" if text.endswith(".") else ".")


PAGES = {"cli.md": cli_page, "contracts.md": contracts_page}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--check", action="store_true", help="write nothing")
    check = parser.parse_args().check
    stale = []
    for name, make in PAGES.items():
        path, text = DOCS / name, make()
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            stale.append(name)
            if not check:
                path.write_text(text, encoding="utf-8")
    print(f"{'stale' if check else 'written'}: {', '.join(stale) or 'nothing'}")
    sys.exit(bool(check and stale))


if __name__ == "__main__":
    main()
