"""A YAML file as data with line numbers, checked before anything composes it.

Recipes and configuration files are data: syntax errors, duplicate keys, `_target_` and resolvers
that would run code or read the environment are refused here, all of a file's at once.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml

from phibuild.errors import ConfigError, Place, Problem

# The C loader reads the same grammar ten times faster where PyYAML was built with libyaml.
_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
PLAIN_INTERPOLATION = r"\$\{[\w.\[\]-]+\}"
"""The one interpolation that is understood: another key of the configuration."""
_PLAIN = re.compile(PLAIN_INTERPOLATION)
_RESOLVER = re.compile(r"\$\{\s*([A-Za-z_][\w.]*)\s*:")
_INSTANTIATION = ("_target_", "_partial_", "_convert_", "_recursive_", "_args_")
_REMEDY = "recipes are data: write the value itself"
_TAG = "tag:yaml.org,2002:"
_TAGS = tuple(
    _TAG + name
    for name in ("null", "bool", "int", "float", "str", "timestamp", "seq", "map", "merge", "value")
)
_MAX_DEPTH = 50
_MAX_ENTRIES = 100_000

KeyPath = tuple[str | int, ...]
"""Where a value lies: keys of mappings and numbers of list entries, from the root on."""
Data = dict[str, Any]
"""Configuration as it was read or composed, before it is validated."""


@dataclass(frozen=True)
class YamlFile:
    """One file, parsed to nodes; `shown` is its path as the user would write it, `prefix` where
    in the configuration its content lies."""

    path: Path
    shown: str
    prefix: KeyPath = ()

    @cached_property
    def root(self) -> yaml.Node | None:
        """The document's root node, None if it is empty. Raises ConfigError on bad syntax."""
        data = self._read()
        try:
            text = data.decode("utf-8")
        except UnicodeDecodeError as error:
            what = f"is not UTF-8 text (byte 0x{data[error.start]:02x})"
            where = self._line_at(data, error.start)
            raise ConfigError(Problem(what, where, "save it as UTF-8")) from error
        try:
            return yaml.compose(text, Loader=_LOADER)
        except yaml.MarkedYAMLError as error:
            mark = error.problem_mark or error.context_mark
            place = self._place(mark) if mark else self.start
            detail = " ".join(part for part in (error.context, error.problem) if part)
            raise ConfigError(
                Problem(f"not valid YAML: {detail}", place, "check the indentation and quotes here")
            ) from error
        except yaml.reader.ReaderError as error:
            what, where = f"not valid YAML: {error.reason}", self._line_at(data, error.position)
            raise ConfigError(Problem(what, where, "remove the character")) from error
        except yaml.YAMLError as error:
            reason = str(error).splitlines()[0]
            raise ConfigError(Problem(f"not valid YAML: {reason}", self.shown)) from error

    def _read(self) -> bytes:
        try:
            return self.path.read_bytes()
        except OSError as error:
            raise ConfigError(Problem(f"cannot be read: {error.strerror}", self.shown)) from error

    def _line_at(self, data: bytes, position: int) -> Place:
        before = data[:position]
        column = len(before[before.rfind(b"\n") + 1 :].decode("utf-8", "replace")) + 1
        return Place(self.shown, before.count(b"\n") + 1, column)

    def _place(self, mark: yaml.Mark) -> Place:
        return Place(self.shown, mark.line + 1, mark.column + 1)

    @property
    def start(self) -> Place:
        """Where the file begins."""
        return Place(self.shown, 1, 1)

    def find(self, path: KeyPath) -> tuple[int, Place]:
        """Return how many keys of `path` were found, and where the deepest is."""
        start = len(self.prefix)
        if path[:start] != self.prefix:
            return 0, self.start
        node, depth, place = self.root, start, self.start
        for key in path[start:]:
            found: yaml.Node | None = None
            match node:
                case yaml.MappingNode():
                    found, place = self._keys(node).get(str(key), (None, place))
                case yaml.SequenceNode(value=children):
                    numbered = enumerate(children)
                    found = next((one for n, one in numbered if key in (n, _text(one))), None)
                    place = self._place(found.start_mark) if found else place
                case yaml.ScalarNode(value=text) if text == str(key):
                    return depth + 1, self._place(node.start_mark)
            if found is None:
                break
            node, depth = found, depth + 1
        return depth, place

    def _keys(self, node: yaml.Node | None) -> dict[str, tuple[yaml.Node, Place]]:
        """Return key -> value and place of a mapping, {} of anything else; large recipes are asked
        thousands of times."""
        if not isinstance(node, yaml.MappingNode):
            return {}
        index = self._indexes.get(id(node))
        if index is None:
            index = self._indexes[id(node)] = {
                key: (value, self._place(name.start_mark))
                for name, value in node.value
                if (key := _text(name)) is not None
            }
        return index

    @cached_property
    def _indexes(self) -> dict[int, dict[str, tuple[yaml.Node, Place]]]:
        return {}

    def check(self) -> list[Problem]:
        """Return what is wrong with the file as data, whatever its keys mean."""
        root = self.root
        if root is None:
            return [Problem("the file is empty", self.start)]
        if not isinstance(root, yaml.MappingNode):
            return [Problem("must be a mapping of keys to values", self.start)]
        problems = list(self._walk(root, {}, ()))
        if not problems:
            try:
                self.data()
            except (yaml.YAMLError, ValueError, TypeError, LookupError, AttributeError) as error:
                mark = getattr(error, "problem_mark", None)
                where = self._place(mark) if mark else self.start
                reason = getattr(error, "problem", None) or error
                problems.append(Problem(f"a value is malformed: {reason}", where))
        return problems

    def _walk(
        self, node: yaml.Node, sizes: dict[yaml.Node, int], above: tuple[yaml.Node, ...]
    ) -> Iterator[Problem]:
        """Yield the problems of a node that is met for the first time; `sizes` has the number of
        entries of each node seen, with aliases written out, `above` the nodes that hold it."""
        where = self._place(node.start_mark)
        if node in sizes:
            return
        if node in above:
            yield Problem("an alias refers to what it stands in", where, "write the value itself")
            return
        if len(above) >= _MAX_DEPTH:
            yield Problem(f"nested more than {_MAX_DEPTH} deep", where)
            return
        if node.tag not in _TAGS:
            tag = node.tag.replace(_TAG, "!!")
            yield Problem(f"the tag {tag!r} is refused", where, _REMEDY)
        children: list[yaml.Node] = []
        match node:
            case yaml.MappingNode(value=pairs):
                yield from self._check_keys(node)
                children = [value for _, value in pairs]
            case yaml.SequenceNode():
                children = node.value
            case yaml.ScalarNode(value=text) if refused := refused_interpolation(text):
                yield Problem(refused, where, _REMEDY)
        for child in children:
            yield from self._walk(child, sizes, (*above, node))
        parts = [sizes.get(child, 0) for child in children]
        sizes[node] = 1 + sum(parts)
        if sizes[node] > _MAX_ENTRIES >= max(parts, default=0):
            yield Problem(f"aliases make more than {_MAX_ENTRIES:,} entries of this", where)

    def _check_keys(self, node: yaml.MappingNode) -> Iterator[Problem]:
        seen: set[str] = set()
        for name, _ in node.value:
            line = self._place(name.start_mark)
            key = _text(name)
            if key is None:
                yield Problem("a key must be a plain word", line)
                continue
            what = f"a key must be a plain word, not {key!r}"
            if name.tag not in (_TAG + "str", _TAG + "merge"):
                yield Problem(what, line, "quote it to mean text")
            elif not key.isprintable():
                yield Problem(what, line, "remove the character")
            if key in seen:
                yield Problem(f"key {key!r} stands twice", line, "keep one of them")
            seen.add(key)
            if key in _INSTANTIATION:
                yield Problem(f"{key!r} is refused", line, _REMEDY)

    def entries(self, key: str) -> list[tuple[str | None, Place]] | None:
        """Return the entries of a top-level list with their places, None for one that is not a
        scalar; [] if there is no such key, None if it is not a list."""
        pairs = self.root.value if isinstance(self.root, yaml.MappingNode) else ()
        match next((value for name, value in pairs if name.value == key), None):
            case None:
                return []
            case yaml.SequenceNode(value=children):
                return [(_text(child), self._place(child.start_mark)) for child in children]
        return None

    def text_at(self, path: KeyPath, value: object) -> object:
        """Return the text of the scalar at `path` as it was written, whatever YAML takes it for;
        `value` where it is null, or no scalar stands there."""
        node = self.root
        for key in path[len(self.prefix) :]:
            node, _ = self._keys(node).get(str(key), (None, 0))
        text = _text(node)
        return value if node is None or text is None or node.tag == _TAG + "null" else text

    def data(self) -> Data:
        """Return the file as plain Python data: a mapping, where `check` finds nothing wrong."""
        data: Data = yaml.load(self._read(), Loader=_LOADER)
        return data


def _text(node: yaml.Node | None) -> str | None:
    """Return the text of a scalar as it is written, None of anything else."""
    return node.value if isinstance(node, yaml.ScalarNode) else None


def refused_interpolation(text: str) -> str | None:
    """Return why a value is refused that holds more than `${key}`: resolvers run code."""
    if "${" not in _PLAIN.sub("", text):
        return None
    resolver = _RESOLVER.search(text)
    if resolver:
        return f"the resolver '${{{resolver[1]}:...}}' is refused"
    return f"the interpolation in {text!r} is refused"


def show_path(path: Path) -> str:
    """Return a path as a user would write it: relative where it lies below the current folder."""
    try:
        return str(path.resolve().relative_to(Path.cwd().resolve()))
    except ValueError:
        return str(path)
