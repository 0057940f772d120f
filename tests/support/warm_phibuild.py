"""What programs of phibuild's have in common before they do anything of their own: run by
`warm_server.py` before the first of them begins.

That is what they import, some of it only when they know what they are to do, and what counts of the
modules of the backends' runners (`read_part`, which remembers it by their content). All else that a
first use leaves in a process, each of them finds out for itself.
"""

from __future__ import annotations

import importlib
import sys
import tempfile
from itertools import product
from pathlib import Path

from phibuild.backends.registry import SHIPPED, backend
from phibuild.planning.code import KINDS, step_digest
from phibuild.planning.syntax import read_part
from phibuild.store.store import Store

_MODULES = (
    "phibuild.cli",
    "phibuild.commands.build",
    "phibuild.commands.plan",
    "phibuild.execute.local.executor",
    "phibuild.report.html.page",
    # When Hydra composes for the first time, it imports all of this package.
    *(
        f"hydra._internal.core_plugins.{name}"
        for name in (
            "bash_completion", "basic_launcher", "basic_sweeper", "file_config_source",
            "fish_completion", "importlib_resources_config_source", "structured_config_source",
            "zsh_completion",
        )
    ),
)  # fmt: skip


def _forget() -> None:
    """Take out of phibuild's modules what they found out, of files and the environment."""
    for module in [module for name, module in sys.modules.items() if name.startswith("phibuild.")]:
        for value in vars(module).values():
            if hasattr(value, "cache_clear") and value is not read_part:
                value.cache_clear()


for _name in _MODULES:
    importlib.import_module(_name)
for _name in SHIPPED:
    backend(_name)
with tempfile.TemporaryDirectory() as _folder:
    for _kind, _name in product(KINDS, SHIPPED):
        step_digest(_kind, _name, Store(Path(_folder) / "store"))
_forget()
