"""What programs of phibuild's have in common before they do anything of their own: run by
`warm_server.py` before the first of them begins.

That is what they import, some of it only when they know what they are to do, what counts of the
modules of the backends' runners (`read_part`, which remembers it by their content), and what
libraries make at their first use: Pydantic's schemas, tables of the parser of Hydra's words.
All else that a first use leaves in a process, each of them finds out for itself.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import os
import signal
import sys
import tempfile
from itertools import product
from pathlib import Path

from phibuild.backends.registry import SHIPPED, backend
from phibuild.cli import main
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


def _plan(store: Path) -> None:
    """Plan the quickstart, and leave no trace of it but in libraries."""
    environ, handler = dict(os.environ), signal.getsignal(signal.SIGTERM)
    os.environ["PHIBUILD_STORE"] = str(store)
    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        try:
            main(["plan", "recipe=quickstart"])
        except SystemExit as error:
            code = error.code
    assert not code, said.getvalue()
    os.environ.clear()
    os.environ.update(environ)
    signal.signal(signal.SIGTERM, handler)


with tempfile.TemporaryDirectory() as _folder:
    _store = Path(_folder) / "store"
    for _kind, _name in product(KINDS, SHIPPED):
        step_digest(_kind, _name, Store(_store))
    _plan(_store)
_forget()
