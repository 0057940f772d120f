"""What pydantic finds wrong with data, in the words of people who write YAML, with its place."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from phibuild.config.yamlfile import KeyPath, YamlFile
from phibuild.errors import Place, Problem, suggest
from phibuild.worker.json_values import object_or_empty

# pydantic's error types, by how they start, in the words of people who write YAML.
_PLAIN = {
    "dict_type": "must be a mapping",
    "model_type": "must be a mapping",
    "string_type": "must be text",
    "int_": "must be a whole number",
    "float_": "must be a number",
    "bool_": "must be true or false",
    "tuple_type": "must be a list",
    "list_type": "must be a list",
    "too_short": "must not be empty",
}


def validation_problems(
    error: ValidationError, kind: type[BaseModel], where: Callable[[KeyPath], str | None]
) -> list[Problem]:
    """Turn pydantic's errors into problems; `where` says where a path of the data was written."""
    problems = []
    for detail in error.errors(include_url=False):
        # A union's branches stand in the location under their type names; one line is enough.
        path = tuple(part for part in detail["loc"] if not _is_branch(str(part)))
        value = detail["input"]
        if path:
            # A check of the whole mapping that found fault with one of its keys, or with two that
            # do not go together: then the later is the one that was added.
            path += tuple(key for key in object_or_empty(value) if repr(key) in detail["msg"])[-1:]
        name = ".".join(str(part) for part in path)
        remedy: str | None = None
        if detail["type"] == "extra_forbidden":
            known = nested_fields(kind, path[:-1]) or _keys(kind)
            inside = ".".join(str(part) for part in path[:-1])
            what = f"unknown key {str(path[-1])!r}" + (f" in {inside}" if inside else "")
            remedy = suggest(str(path[-1]), known)
        elif detail["type"] == "missing":
            what = f"key {name!r} is missing"
        else:
            reason, remedy = explain(detail)
            what = f"{name}: {reason}"
        problem = Problem(what, where(path), remedy)
        if problem not in problems:
            problems.append(problem)
    return problems


def explain(detail: ErrorDetails) -> tuple[str, str | None]:
    """Return one of pydantic's errors in plain words, and a suggestion where a name is near."""
    message = detail["msg"].removeprefix("Value error, ").replace("Input should be", "must be")
    kind, value = detail["type"], detail["input"]
    message = next((plain for start, plain in _PLAIN.items() if kind.startswith(start)), message)
    text = message[:1].lower() + message[1:]
    shown = repr(value)
    if not isinstance(value, dict) and len(shown) < 60 and not text.endswith(f"not {shown}"):
        text += f", not {shown}" if shown not in text or kind != "value_error" else ""
    remedy = None
    if kind == "literal_error":
        remedy = suggest(str(value), re.findall(r"'([^']+)'", message))
    return text, remedy if remedy and remedy.startswith("did") else None


def _is_branch(part: str) -> bool:
    types = ("[key]", "float", "int", "str", "bool")
    return part in types or part.startswith(("dict[", "constrained-"))


def nested_fields(kind: type[BaseModel], path: KeyPath) -> list[str]:
    """Return the field names of the model at `path` inside `kind`, [] if it is not a model."""
    current: object = kind
    for part in path:
        field = _fields(current).get(str(part))
        current = field.annotation if field else None
    return _keys(current)


def _keys(kind: object) -> list[str]:
    """Return the keys as they are written in a file; a name that must be is the file's own."""
    return [
        field.alias or key
        for key, field in _fields(kind).items()
        if key != "name" or not field.is_required()
    ]


def _fields(kind: object) -> dict[str, FieldInfo]:
    """Return the fields of a type that is a model, {} of any other."""
    return getattr(kind, "model_fields", {})


def locate(files: Iterable[YamlFile], path: KeyPath) -> Place | None:
    """Return where the deepest part of `path` that one of the files has."""
    best: tuple[int, Place] | None = None
    for file in files:
        depth, place = file.find(path)
        if best is None or depth > best[0]:
            best = (depth, place)
    return best[1] if best and (best[0] or not path) else None
