"""All backends, in the order of reports, and what the core knows of each: `phibuild.system.plugins`
finds their packages."""

from __future__ import annotations

import importlib
from functools import cache

from phibuild.backends.base import Backend, BackendSpec
from phibuild.system.plugins import plugin, plugins, told

BACKENDS = tuple(plugins())
"""Names of all that are installed, of broken ones too."""
SHIPPED = tuple(name for name, found in plugins().items() if any(one.is_own for one in found))
"""Names of those that are phibuild's own."""
_MEMBERS = sorted(
    name for name in {*BackendSpec.__annotations__, *vars(BackendSpec)} if name[0] != "_"
)


@cache
def backend(name: str) -> Backend:
    """Return the spec of a backend of `BACKENDS`: `SPEC` of its package's module `spec`. Raises
    BackendError, which names the distribution, if it cannot be imported or is none."""
    found = plugin(name)
    folder = found.folder
    try:
        module = importlib.import_module(f"{found.package}.spec")
    except Exception as error:
        if found.is_own:
            raise
        raise found.error(f"its spec cannot be imported: {told(error)} ({folder})") from error
    spec: Backend | None = getattr(module, "SPEC", None)
    missing = ", ".join(member for member in _MEMBERS if not hasattr(spec, member))
    if spec is None or missing:
        what = f"its SPEC lacks {missing}" if spec else "its spec has no SPEC"
        raise found.error(f"{what} ({folder})")
    if not (folder / "worker.py").is_file():
        raise found.error(f"there is no worker.py in {folder}")
    if spec.name != name:
        raise found.error(f"its SPEC calls itself {spec.name!r} ({folder})")
    return spec
