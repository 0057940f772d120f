"""The backends' packages: what they are called, whose they are, where they lie.

A backend is a package that an entry point of the group `phibuild.backends` names, `name = package`;
phibuild's own are declared in the same way. Those of its own that its metadata does not list, as in
a source tree that was never installed or is newer than its editable install, are known by their
folders. Nothing of a package is imported to find it.
"""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache, cached_property
from importlib.metadata import Distribution, entry_points
from pathlib import Path

from phibuild.errors import BackendError, Problem

GROUP = "phibuild.backends"
_OWN = Path(__file__).resolve().parents[1] / "backends"
# Reports have had these in this order since there are any; others follow by name.
_FIRST = (
    "llamacpp", "ort_genai", "openvino", "mlx", "coreai", "litert", "executorch", "qnn", "pytorch",
)  # fmt: skip
_PACKAGE = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*")


@dataclass(frozen=True)
class Plugin:
    """One backend: `name` in recipes, the `package` that it is, and the distribution that brought
    it (None: a folder of phibuild that its metadata does not list)."""

    name: str
    package: str
    distribution: Distribution | None = field(default=None, compare=False)

    @property
    def is_own(self) -> bool:
        """Whether it ships with phibuild."""
        return self.package == f"{GROUP}.{self.name}"

    @cached_property
    def owner(self) -> str:
        """The distribution with its version, for messages."""
        if self.is_own or self.distribution is None:
            return "phibuild"
        return f"{self.distribution.name} {self.distribution.version}"

    @cached_property
    def folder(self) -> Path:
        """The package's folder. Raises BackendError if there is none."""
        if self.is_own:
            return _OWN / self.name
        if not (self.name.isascii() and self.name.isidentifier()):
            raise self.error("its name is no identifier", "letters, digits and _ make one")
        if not _PACKAGE.fullmatch(self.package):
            raise self.error(f"{self.package!r} is no package", f"{self.name} = package names one")
        try:
            spec = importlib.util.find_spec(self.package)
        except Exception as error:  # of a parent package, which is imported
            raise self.error(f"its package cannot be found: {told(error)}") from error
        if spec is None:
            raise self.error(f"there is no package {self.package!r}")
        for place in spec.submodule_search_locations or ():
            if Path(place).is_dir():
                return Path(place).resolve()
        raise self.error(f"{self.package!r} is no package that lies in a folder")

    @property
    def mount(self) -> tuple[str, ...]:
        """The package and its folder, as `worker/entry.py` takes those that are not phibuild's."""
        return () if self.is_own else (self.package, str(self.folder))

    def error(self, what: str, remedy: str | None = None) -> BackendError:
        """Return the error that the package is not what a backend has to be."""
        where = f"entry point of {self.owner}: {self.name} = {self.package}"
        help = f"install another version of {self.owner.split()[0]}, or take it away"
        return BackendError(
            Problem(f"the backend {self.name!r} cannot be used: {what}", where, remedy or help)
        )


def told(error: BaseException) -> str:
    """Return an error of somebody else's code in one line."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


@cache
def plugins() -> Mapping[str, tuple[Plugin, ...]]:
    """Return the backends by name, in the order of reports; more than one of a name is an error of
    whoever asks for it."""
    found: dict[str, list[Plugin]] = {}
    for entry in entry_points(group=GROUP):
        plugin = Plugin(entry.name, entry.value, entry.dist)
        if not plugin.is_own or (plugin.folder / "spec.py").is_file():
            found.setdefault(entry.name, []).append(plugin)
    for path in _OWN.glob("*/spec.py"):
        plugin = Plugin(path.parent.name, f"{GROUP}.{path.parent.name}")
        if plugin not in found.get(plugin.name, ()):
            found.setdefault(plugin.name, []).append(plugin)

    def place(name: str) -> tuple[int, bool, str]:
        first = _FIRST.index(name) if name in _FIRST else len(_FIRST)
        return first, not any(one.is_own for one in found[name]), name

    return {name: tuple(found[name]) for name in sorted(found, key=place)}


def plugin(name: str) -> Plugin:
    """Return a backend by its name, which must be one of `plugins`. phibuild's own cannot be
    replaced. Raises BackendError if several others have the name."""
    found = plugins()[name]
    own = [one for one in found if one.is_own]
    if own or len(found) == 1:
        return (own or found)[0]
    owners = " and ".join(sorted(one.owner for one in found))
    raise BackendError(
        Problem(
            f"the backend {name!r} cannot be used: {owners} have one of that name",
            f"entry points of the group {GROUP}",
            "uninstall all of them but one",
        )
    )


def shadowed() -> Iterator[tuple[str, Problem]]:
    """Yield those that have the name of one of phibuild's own, which is used instead."""
    for name, found in plugins().items():
        for one in found:
            if not one.is_own and any(other.is_own for other in found):
                yield name, one.error(f"phibuild has a backend {name!r} of its own").problems[0]
