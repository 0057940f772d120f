"""Where configuration lies: devices, models, backends' defaults and recipes, by name.

Roots are searched in order; the first that has a name wins: `--config-dir`, then the working
directory's own `conf/` and `recipes/`, then what phibuild ships, then a backend's own folder.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated, TypeVar

from pydantic import BaseModel, Field, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from phibuild.config.yamlfile import KeyPath, YamlFile, show_path
from phibuild.errors import ConfigError, Problem, suggest
from phibuild.schema import PRECISIONS, Device, Frozen, Options, Size
from phibuild.system.plugins import plugin
from phibuild.worker.json_values import JsonDict

_PACKAGE = Path(__file__).resolve().parents[1]
DATA = _PACKAGE / "data"
M = TypeVar("M", bound=BaseModel)
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


class ModelEntry(Frozen):
    """A model of the catalogue: a folder that ships with phibuild (`builtin`) or a Hub repository.

    `config` holds the published config.json's figures, so that a plan needs no network;
    `tokenizer_bytes` the size of its tokenizer files.
    """

    name: str
    title: str
    builtin: str | None = None
    repo: str | None = None
    revision: str | None = None
    license: str
    config: JsonDict = Field(default_factory=dict)
    tokenizer_bytes: Annotated[Size, Field(gt=0)] = 4_000_000


def shipped_root(name: str) -> Path:
    """Return phibuild's own `conf` or `recipes`: in the wheel, or at the repository's top."""
    inside = _PACKAGE / name
    return inside if inside.is_dir() else _PACKAGE.parent / name


@dataclass(frozen=True)
class Catalogue:
    """All named things, loaded on demand. `config_dir` is the user's `--config-dir`."""

    config_dir: Path | None = None

    @cached_property
    def conf_roots(self) -> tuple[Path, ...]:
        """Folders that hold model/, device/ and backend/, the user's first."""
        own = [self.config_dir, self.config_dir / "conf"] if self.config_dir else []
        return _existing([*own, Path.cwd() / "conf", shipped_root("conf")])

    @cached_property
    def recipe_roots(self) -> tuple[Path, ...]:
        """Folders that hold recipes, the user's first."""
        own = [self.config_dir / "recipes"] if self.config_dir else []
        return _existing([*own, Path.cwd() / "recipes", shipped_root("recipes")])

    def files(self, group: str) -> dict[str, YamlFile]:
        """Return the YAML files of a group ("device", "model", "backend", "recipe") by name."""
        folders = (
            self.recipe_roots if group == "recipe" else [root / group for root in self.conf_roots]
        )
        found: dict[str, YamlFile] = {}
        for folder in folders:
            if folder.is_dir():
                for path in sorted(folder.glob("*.yaml")):
                    name = unicodedata.normalize("NFC", path.stem)
                    found.setdefault(name, YamlFile(path, show_path(path)))
        return found

    @cached_property
    def device_files(self) -> dict[str, YamlFile]:
        return self.files("device")

    @cached_property
    def model_files(self) -> dict[str, YamlFile]:
        return self.files("model")

    @cached_property
    def backend_files(self) -> dict[str, YamlFile]:
        return self.files("backend")

    @cached_property
    def recipe_files(self) -> dict[str, YamlFile]:
        return self.files("recipe")

    def device(self, name: str) -> Device:
        return _load(self.device_files[name], Device, name)

    def model(self, name: str) -> ModelEntry:
        return _load(self.model_files[name], ModelEntry, name)

    def backend_file(self, name: str) -> YamlFile | None:
        """Return the file with a backend's defaults: conf/backend/<name>.yaml, or conf.yaml in the
        backend's folder; None if there is neither. Raises BackendError if it has no folder."""
        if name not in self.backend_files:
            path = plugin(name).folder / "conf.yaml"
            if not path.is_file():
                return None
            self.backend_files[name] = YamlFile(path, show_path(path))
        return self.backend_files[name]

    def backend_defaults(self, name: str) -> dict[str, Options]:
        """Return precision -> options of a backend's file. Raises BackendError as above."""
        file = self.backend_file(name)
        if file is None:
            return {}
        problems = file.check()
        data = file.data() if not problems else {}
        for key, value in data.items():
            where = locate([file], (key,))
            if key not in PRECISIONS:
                near = suggest(key, PRECISIONS)
                problems.append(Problem(f"unknown precision {key!r}", where, near))
            elif value is not None and not isinstance(value, dict):
                problems.append(Problem(f"options of {key} must be a mapping", where))
        if problems:
            raise ConfigError(*problems)
        return {key: dict(value or {}) for key, value in data.items()}


def _existing(folders: Iterable[Path]) -> tuple[Path, ...]:
    resolved = [folder.resolve() for folder in folders]
    return tuple(dict.fromkeys(folder for folder in resolved if folder.is_dir()))


def _load(file: YamlFile, kind: type[M], name: str) -> M:
    problems = file.check()
    if problems:
        raise ConfigError(*problems)
    data = file.data()
    if "name" in data:
        where, remedy = locate([file], ("name",)), "the file's name is the name; remove it"
        raise ConfigError(Problem("unknown key 'name'", where, remedy))
    try:
        return kind.model_validate({**data, "name": name})
    except ValidationError as error:
        first = f"{file.shown}:1"
        problems = validation_problems(error, kind, lambda path: locate([file], path) or first)
        raise ConfigError(*problems) from error


def validation_problems(
    error: ValidationError, kind: type[BaseModel], where: Callable[[KeyPath], str | None]
) -> list[Problem]:
    """Turn pydantic's errors into problems; `where` says where a path of the data was written."""
    problems = []
    for detail in error.errors(include_url=False):
        # A union's branches stand in the location under their type names; one line is enough.
        path = tuple(part for part in detail["loc"] if not _is_branch(str(part)))
        value = detail["input"]
        if isinstance(value, dict) and path:
            # A check of the whole mapping that found fault with one of its keys, or with two that
            # do not go together: then the later is the one that was added.
            path += tuple(key for key in value if repr(key) in detail["msg"])[-1:]
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


def locate(files: Iterable[YamlFile], path: KeyPath) -> str | None:
    """Return file:line of the deepest part of `path` that one of the files has."""
    best: tuple[int, str] | None = None
    for file in files:
        depth, line = file.line_of(path)
        if best is None or depth > best[0]:
            best = (depth, f"{file.shown}:{line}")
    return best[1] if best and (best[0] or not path) else None
