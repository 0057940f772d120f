"""Where configuration lies: devices, models, backends' defaults and recipes, by name.

Roots are searched in order; the first that has a name wins: `--config-dir`, then the working
directory's own `conf/` and `recipes/`, then what phibuild ships, then a backend's own folder.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel, Field, ValidationError

from phibuild.config.roots import Roots
from phibuild.config.validation import locate, validation_problems
from phibuild.config.yamlfile import YamlFile, show_path
from phibuild.errors import ConfigError, Problem, suggest
from phibuild.schema import ONE_VARIANT, PRECISIONS, Device, Frozen, Options, PositiveSize
from phibuild.system.plugins import plugin
from phibuild.worker.json_values import JsonDict

_PACKAGE = Path(__file__).resolve().parents[1]
DATA = _PACKAGE / "data"
M = TypeVar("M", bound=BaseModel)


class ModelEntry(Frozen):
    """A model of the catalogue: a folder that ships with phibuild (`builtin`) or a Hub
    repository."""

    name: str
    title: str
    """What people call the model."""
    builtin: str | None = None
    """A folder that ships with phibuild."""
    repo: str | None = None
    """The Hub's repository: org/name."""
    revision: str | None = None
    """A branch, a tag or a commit of it; null: its default branch."""
    license: str
    """Its licence, as SPDX has it."""
    config: JsonDict = Field(default_factory=dict)
    """The figures of the published config.json, so that a plan needs no network."""
    tokenizer_bytes: PositiveSize = 4_000_000
    """Size of its tokenizer files."""


@dataclass(frozen=True)
class Catalogue:
    """All named things, loaded on demand. `config_dir` is the user's `--config-dir`; with
    `shipped_alone` nothing is of the user's; `given` files, by group and name, come before all."""

    config_dir: Path | None = None
    shipped_alone: bool = False
    given: Mapping[str, Mapping[str, Path]] = field(default_factory=dict)

    @cached_property
    def _roots(self) -> Roots:
        return Roots(self.config_dir, self.shipped_alone)

    def files(self, group: str) -> dict[str, YamlFile]:
        """Return the YAML files of a group ("device", "model", "backend", "recipe") by name."""
        return {name: files[0] for name, files in self.layers(group).items()}

    def layers(self, group: str) -> dict[str, list[YamlFile]]:
        """Return all YAML files of a group by name: the first of a name hides the others."""
        found = {
            name: [YamlFile(path, show_path(path))]
            for name, path in self.given.get(group, {}).items()
        }
        for name, path in self._roots.files(group):
            layers = found.setdefault(name, [])
            if all(layer.path != path for layer in layers):
                layers.append(YamlFile(path, show_path(path)))
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
            what, remedy = f"options of {key} must be a mapping", None
            match value:
                case _ if key not in PRECISIONS:
                    what, remedy = f"unknown precision {key!r}", suggest(key, PRECISIONS)
                case dict() | None:
                    continue
                case list():
                    remedy = ONE_VARIANT
            problems.append(Problem(what, locate([file], (key,)), remedy))
        if problems:
            raise ConfigError(*problems)
        return {key: dict(value or {}) for key, value in data.items()}


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
        problems = validation_problems(error, kind, lambda path: locate([file], path) or file.start)
        raise ConfigError(*problems) from error
