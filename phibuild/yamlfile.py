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

import yaml

from phibuild.errors import ConfigError, Problem

# The C loader reads the same grammar ten times faster where PyYAML was built with libyaml.
_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_RESOLVER = re.compile(r"\$\{\s*([A-Za-z_][\w.]*)\s*:")
_INSTANTIATION = ("_target_", "_partial_", "_convert_", "_recursive_", "_args_")
_REMEDY = "recipes are data: write the value itself"

Path_ = tuple[str | int, ...]


@dataclass(frozen=True)
class YamlFile:
    """One file, parsed to nodes; `shown` is its path as the user would write it."""

    path: Path
    shown: str

    @cached_property
    def root(self) -> yaml.Node | None:
        """The document's root node, None if it is empty. Raises ConfigError on bad syntax."""
        try:
            text = self.path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(Problem(f"cannot be read: {error}", self.shown)) from error
        try:
            return yaml.compose(text, Loader=_LOADER)
        except yaml.MarkedYAMLError as error:
            mark = error.problem_mark or error.context_mark
            where = f"{self.shown}:{mark.line + 1}" if mark else self.shown
            detail = " ".join(part for part in (error.context, error.problem) if part)
            raise ConfigError(
                Problem(f"not valid YAML: {detail}", where, "check the indentation and quotes here")
            ) from error
        except yaml.YAMLError as error:
            raise ConfigError(Problem(f"not valid YAML: {error}", self.shown)) from error

    def line_of(self, path: Path_) -> tuple[int, int]:
        """Return (how many keys of `path` were found, line of the deepest), lines from 1."""
        node, depth, line = self.root, 0, 1
        for key in path:
            found = None
            if isinstance(node, yaml.MappingNode):
                for name, value in node.value:
                    if isinstance(name, yaml.ScalarNode) and name.value == str(key):
                        found, line = value, name.start_mark.line + 1
            elif isinstance(node, yaml.SequenceNode):
                position = next(
                    (
                        number
                        for number, child in enumerate(node.value)
                        if number == key
                        or (isinstance(child, yaml.ScalarNode) and child.value == key)
                    ),
                    None,
                )
                if position is not None:
                    found = node.value[position]
                    line = found.start_mark.line + 1
            elif isinstance(node, yaml.ScalarNode) and node.value == str(key):
                return depth + 1, node.start_mark.line + 1
            if found is None:
                break
            node, depth = found, depth + 1
        return depth, line

    def check(self) -> list[Problem]:
        """Return what is wrong with the file as data, whatever its keys mean."""
        root = self.root
        if root is None:
            return [Problem("the file is empty", f"{self.shown}:1", "name at least one device")]
        if not isinstance(root, yaml.MappingNode):
            return [Problem("must be a mapping of keys to values", f"{self.shown}:1")]
        return list(self._walk(root))

    def _walk(self, node: yaml.Node) -> Iterator[Problem]:
        where = f"{self.shown}:{node.start_mark.line + 1}"
        if isinstance(node, yaml.MappingNode):
            seen: set[str] = set()
            for name, value in node.value:
                line = f"{self.shown}:{name.start_mark.line + 1}"
                if not isinstance(name, yaml.ScalarNode):
                    yield Problem("a key must be a plain word", line)
                    continue
                if name.value in seen:
                    yield Problem(f"key {name.value!r} stands twice", line, "keep one of them")
                seen.add(name.value)
                if name.value in _INSTANTIATION:
                    yield Problem(f"{name.value!r} is refused", line, _REMEDY)
                yield from self._walk(value)
        elif isinstance(node, yaml.SequenceNode):
            for child in node.value:
                yield from self._walk(child)
        elif isinstance(node, yaml.ScalarNode):
            resolver = _RESOLVER.search(node.value)
            if resolver:
                yield Problem(f"the resolver '${{{resolver[1]}:...}}' is refused", where, _REMEDY)

    def entries(self, key: str) -> list[tuple[str, int]]:
        """Return the scalar entries of a top-level list with their lines."""
        if isinstance(self.root, yaml.MappingNode):
            for name, value in self.root.value:
                if name.value == key and isinstance(value, yaml.SequenceNode):
                    return [
                        (str(child.value), child.start_mark.line + 1)
                        if isinstance(child, yaml.ScalarNode)
                        else ("", child.start_mark.line + 1)
                        for child in value.value
                    ]
        return []

    def data(self) -> object:
        """Return the file as plain Python data."""
        return yaml.load(self.path.read_text(encoding="utf-8"), Loader=_LOADER)


def show_path(path: Path) -> str:
    """Return a path as a user would write it: relative where it lies below the current folder."""
    try:
        return str(path.resolve().relative_to(Path.cwd().resolve()))
    except ValueError:
        return str(path)
