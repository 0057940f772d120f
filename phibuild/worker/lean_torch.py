"""PyTorch without what Transformers imports of it, and a runner never uses: its compiler
(torch._dynamo, with torch._inductor and SymPy) and its tensors over several processes
(torch.distributed.tensor). Importing these takes as long as PyTorch itself, and 75 MB.

Nothing is taken away: whatever asks the compiler for more than a mark on a function gets the
compiler.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any

_COMPILER = "torch._dynamo"
_MARKS = ("allow_in_graph", "assume_constant_result", "disable")
"""Decorators that tell the compiler how to treat a function. They change nothing where it is
called, and are all that Transformers 5.23 asks for when it is imported."""


def import_torch() -> None:
    """Import PyTorch, before Transformers is imported: with a compiler that is loaded when it is
    used, and as a program of one process."""
    import torch

    if _COMPILER not in sys.modules:
        spec = importlib.util.find_spec(_COMPILER)
        assert spec is not None
        compiler = importlib.util.module_from_spec(spec)
        compiler.__class__ = _Late
        sys.modules[_COMPILER] = compiler
        vars(torch)["_dynamo"] = compiler
        torch.distributed.is_available = lambda: False


class _Late(ModuleType):
    """A package whose own code runs when an attribute is asked for; until then its modules can be
    imported without it (torch._dynamo._trace_wrapped_higher_order_op, by masking_utils)."""

    def __getattr__(self, name: str) -> Any:
        if name in _MARKS:
            return _mark
        object.__setattr__(self, "__class__", ModuleType)
        assert self.__spec__ is not None
        assert self.__spec__.loader is not None
        self.__spec__.loader.exec_module(self)
        return getattr(self, name)


def _mark(function: Callable[..., Any] | None = None, *_: Any, **__: Any) -> Any:
    """Return a function as it is, or what does so."""
    return function if function is not None else lambda later: later
