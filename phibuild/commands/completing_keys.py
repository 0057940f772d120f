"""Overrides that a half-typed word may become: keys of a recipe, by its JSON Schema, and values.

Standard library alone: a Tab has 0.2 s.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from functools import cached_property
from typing import Any

from phibuild.config.roots import Roots, shipped_root
from phibuild.worker.json_values import as_text, object_or_empty

Schema = Mapping[str, Any]
Words = dict[str, str]
"""Words with what is said of them."""
_AXES = {
    "recipe": "what to build",
    "model": "the checkpoint",
    "device": "of the recipe's devices",
    "backend": "of the recipe's backends",
    "precision": "of the recipe's precisions",
    "evaluation": "a file of conf/evaluation",
    "executor": "a file of conf/executor",
}
_SWEPT = ("recipe", "model", "device", "backend", "precision")
_NO_KEYS = ("defaults", "description")


class Overrides:
    """What overrides there are, with the names of the user's own folders. `several` is `-m`."""

    def __init__(self, roots: Roots, *, several: bool) -> None:
        self._roots = roots
        self._several = several

    @cached_property
    def _schema(self) -> Schema:
        """The schema of recipes: that of the user's folder, which knows more, or phibuild's own."""
        for root in (*self._roots.conf, shipped_root("conf")):
            try:
                text = (root / "schema" / "recipe.json").read_text(encoding="utf-8")
                found: Schema = json.loads(text)
            except (OSError, ValueError):
                continue
            match found:
                case {"$defs": {}}:
                    return found
        return {}

    def names(self, group: str) -> list[str]:
        """Return the names of a group of files, or of what the schema names."""
        match group:
            case "backend":
                return list(self._part("device").get("properties", {}))
            case "precision":
                options: Schema = next((self._part(name) for name in self.names("backend")), {})
                return list(options.get("properties", {}))
        return sorted({name for name, _ in self._roots.files(group)})

    def complete(self, prefix: str) -> Words:
        """Return the overrides that begin with a word."""
        key, equals, value = prefix.partition("=")
        if equals:
            return {f"{key}={word}": text for word, text in self._values(key, value).items()}
        bare = key.lstrip("+~")
        sign = key[: len(key) - len(bare)]
        found = {f"{name}=": text for name, text in _AXES.items() if name.startswith(bare)}
        if sign:
            found = {}
        end = "" if sign == "~" else "="
        found |= self._keys(self._schema, "", bare, end)
        return {sign + word: text for word, text in found.items()}

    def _keys(self, part: Schema, above: str, rest: str, end: str) -> Words:
        """Return the keys below a part of the schema that begin with `rest`; where there is one
        alone that has keys itself, these: no shell is left with half a key."""
        children = dict(self._children(part))
        for name, child in children.items():
            if rest.startswith(f"{name}.") and self._has_keys(child):
                return self._keys(child, f"{above}{name}.", rest[len(name) + 1 :], end)
        found = {name: child for name, child in children.items() if name.startswith(rest)}
        if len(found) == 1:
            ((name, child),) = found.items()
            if self._is_inner(child):
                return self._keys(child, f"{above}{name}.", "", end)
        return {
            f"{above}{name}" + ("." if self._is_inner(child) else end): _told(child)
            for name, child in found.items()
        }

    def _children(self, part: Schema) -> Iterator[tuple[str, Schema]]:
        for branch in self._branches(part):
            for name, child in branch.get("properties", {}).items():
                if name not in _NO_KEYS and "doNotSuggest" not in child:
                    yield name, child
            others = object_or_empty(branch.get("additionalProperties"))
            if others.get("$ref") == "#/$defs/device":
                yield from ((name, others) for name in self.names("device"))

    def _has_keys(self, part: Schema) -> bool:
        return next(self._children(part), None) is not None

    def _is_inner(self, part: Schema) -> bool:
        """Say whether a part has keys, and is never a value itself, as a limit may be."""
        scalars = any(
            branch.get("type") in ("number", "integer", "string") for branch in self._branches(part)
        )
        return self._has_keys(part) and not scalars

    def _branches(self, part: Schema) -> Iterator[Schema]:
        """Yield a part, or all that it may be, with what it refers to."""
        if "$ref" in part:
            part = self._part(part["$ref"].rsplit("/", 1)[-1])
        yield part
        for branch in part.get("anyOf", ()):
            yield from self._branches(branch)

    def _part(self, name: str) -> Schema:
        found: Schema = self._schema.get("$defs", {}).get(name, {})
        return found

    def _values(self, key: str, value: str) -> Words:
        """Return the values that begin with a text, of an axis after its last comma."""
        before = ""
        if self._several and key in _SWEPT:
            before, comma, value = value.rpartition(",")
            before += comma
        known = dict.fromkeys(self.names(key), "") if key in _AXES else self._of(key.lstrip("+"))
        taken = before.split(",")
        return {
            before + word: text
            for word, text in known.items()
            if word.startswith(value) and word not in taken
        }

    def _of(self, key: str) -> Words:
        """Return the values of a key that can be counted."""
        part, rest = self._schema, key
        while rest:
            for name, child in self._children(part):
                if rest == name or rest.startswith(f"{name}."):
                    part, rest = child, rest[len(name) + 1 :]
                    break
            else:
                return {}
        found: Words = {}
        for branch in self._branches(part):
            values = list(branch.get("enum", ()))
            values += [branch["const"]] if "const" in branch else []
            match branch.get("type"):
                case "boolean":
                    values = values or [True, False]
                case "null":
                    values = [None]
            found.update({as_text(one): "" for one in values})
        if "default" in part:
            found = {word: "the default" if word == as_text(part["default"]) else ""
                     for word in found}  # fmt: skip
        return found


def _told(part: Schema) -> str:
    """Return the first sentence of what a part says of itself."""
    return str(part.get("description", "")).partition(". ")[0].partition("; ")[0]
