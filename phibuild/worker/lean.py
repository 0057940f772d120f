"""Imports without what a runner never uses, where it takes most of the time and memory of one.

- Transformers' models import PyTorch's compiler (torch._dynamo, which imports SymPy and 700 modules
  more), to mark functions for it, and tensors over several processes (torch.distributed.tensor).
  The compiler's own code runs when anything else is asked of it; a runner is one process.
- PyTorch imports its exporter, for users who would call it; and all that it knows of symbolic
  shapes, with SymPy, to check one condition of a tensor without data.
- onnx_ir, which writes ONNX graphs, imports SymPy to compute with dimensions.
- Transformers' models import all that processors of pictures and sound can be asked, for one type.
- Modules that are made without data have their weights initialized, for which PyTorch asks its
  compiler for types, with SymPy again. There is nothing to initialize.
- Transformers writes docstrings of its models when these are imported, from their source.
- `import transformers` reads the 1,600 files of its models, and once more when one of them is
  imported, to learn which names they have. What it found is kept with the toolchain, whose files
  never change.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import sys
from collections.abc import Callable, Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from types import ModuleType
from typing import Any, Unpack

_COMPILER = "torch._dynamo"
_ALONE = "torch._dynamo._trace_wrapped_higher_order_op"
"""What masking_utils takes of the compiler: a module that needs none of the others."""
_SYMPY = "sympy"
_SHAPES = "torch.fx.experimental.symbolic_shapes"


def import_lean() -> None:
    """Have this process import so from now on."""
    sys.meta_path.insert(0, _Finder())


class _Finder(MetaPathFinder):
    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        for package in (_COMPILER, _SYMPY):
            if fullname.startswith(f"{package}.") and fullname != _ALONE:
                return _with_late(package, fullname)
        wrapper = _WRAPPERS.get(fullname)
        spec = PathFinder.find_spec(fullname, path, target) if wrapper else None
        if spec and spec.loader and wrapper:
            spec.loader = wrapper(spec.loader)
        return spec


class _Wrapper(Loader):
    def __init__(self, real: Loader) -> None:
        self.real = real

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self.real.create_module(spec)


class _LateLoader(_Wrapper):
    def exec_module(self, module: ModuleType) -> None:
        module.__class__ = _Late


class _Late(ModuleType):
    """A module whose own code runs when an attribute that is not _GIVEN, or, of a package, another
    module than _ALONE, is asked for."""

    def __getattr__(self, name: str) -> Any:
        given = _GIVEN[self.__name__].get(name)
        if given:
            return given
        if name.startswith("__"):
            raise AttributeError(name)
        _load(self)
        return getattr(self, name)


def _load(late: ModuleType) -> None:
    """Run a late module's own code."""
    object.__setattr__(late, "__class__", ModuleType)
    loader = late.__spec__.loader if late.__spec__ else None
    assert isinstance(loader, _LateLoader)
    loader.real.exec_module(late)


def _with_late(name: str, fullname: str) -> ModuleSpec | None:
    """Return how to import a module that needs a late one, whose own code has run then; None: as
    ever."""
    late = sys.modules.get(name)
    if isinstance(late, _Late):
        _load(late)
        if fullname in sys.modules:  # that has imported it
            return ModuleSpec(fullname, _Loaded(sys.modules[fullname]))
    return None


class _Loaded(Loader):
    def __init__(self, module: ModuleType) -> None:
        self._module, self._spec = module, module.__spec__

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return self._module

    def exec_module(self, module: ModuleType) -> None:
        module.__spec__ = self._spec


def _mark(function: Callable[..., Any] | None = None, *_: Any, **__: Any) -> Any:
    """Return a function as it is, or what does so."""
    return function if function is not None else lambda later: later


def _expect_true(condition: Any, skip: int = 0) -> bool:
    """Return a condition as it is; one of symbols is the business of the module itself."""
    if isinstance(condition, bool):
        return condition
    shapes = sys.modules[_SHAPES]
    if isinstance(shapes, _Late):
        _load(shapes)
    found: bool = shapes.expect_true(condition, skip + 1)
    return found


_GIVEN: dict[str, dict[str, Any]] = {
    # Decorators that tell the compiler how to treat a function, and change nothing where it is
    # called: all that Transformers 5.23 asks for when it is imported.
    _COMPILER: dict.fromkeys(("allow_in_graph", "assume_constant_result", "disable"), _mark),
    "torch.export": {},
    _SHAPES: {"expect_true": _expect_true},
    _SYMPY: {},
    "onnx_ir._symbolic_shapes": {},
    "transformers.processing_utils": {"Unpack": Unpack},
}


class _ImportsLoader(_Wrapper):
    def exec_module(self, module: ModuleType) -> None:
        self.real.exec_module(module)
        names: dict[str, Any] = vars(module)
        names["is_torch_distributed_available"] = lambda: False
        names["define_import_structure"] = _kept(names["define_import_structure"])


class _InitLoader(_Wrapper):
    def exec_module(self, module: ModuleType) -> None:
        self.real.exec_module(module)
        names: dict[str, Any] = vars(module)
        fill = names["normal_"]

        @functools.wraps(fill)
        def normal_(tensor: Any, *args: Any, **kwargs: Any) -> Any:
            return tensor if tensor.is_meta else fill(tensor, *args, **kwargs)

        names["normal_"] = normal_


class _DocstringsLoader(_Wrapper):
    def exec_module(self, module: ModuleType) -> None:
        self.real.exec_module(module)
        names: dict[str, Any] = vars(module)
        names["auto_docstring"] = _mark


_WRAPPERS: dict[str, Callable[[Loader], Loader]] = {
    **dict.fromkeys(_GIVEN, _LateLoader),
    "torch.nn.init": _InitLoader,
    "transformers.utils.import_utils": _ImportsLoader,
    "transformers.utils.auto_docstring": _DocstringsLoader,
}


def _kept(read: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function that finds which names modules have, and what these need, as Transformers'
    own `read` does: {needs: {module: names}}. Those of all models are read once a toolchain."""

    def define(module_path: Any, prefix: str | None = None) -> dict[frozenset[str], Any]:
        place = Path(module_path)
        if (place if place.is_dir() else place.parent).name != "models":
            found: dict[frozenset[str], Any] = read(module_path, prefix)
            return found
        path = Path(sys.prefix) / f"transformers-{prefix or 'all'}.json"
        with contextlib.suppress(OSError, ValueError, LookupError, TypeError, AttributeError):
            asked, rows = json.loads(path.read_text(encoding="utf-8"))
            if asked == str(place):
                return {
                    frozenset(needs): {name: set(names) for name, names in modules.items()}
                    for needs, modules in rows
                }
        found = read(module_path, prefix)
        rows = [
            (sorted(needs), {name: sorted(names) for name, names in modules.items()})
            for needs, modules in found.items()
        ]
        with contextlib.suppress(OSError):  # a toolchain that cannot be written: read next time
            temporary = path.with_name(f".{path.name}.{os.getpid()}")
            temporary.write_text(json.dumps((str(place), rows)), encoding="utf-8")
            temporary.replace(path)
        return found

    return define
