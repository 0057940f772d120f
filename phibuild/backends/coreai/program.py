"""A model's program opened by Core AI's runtime, on the CPU.

Core AI computes fp16 on a CPU one number after the other: a thousandth of fp32's speed. What is
computed in fp16 is opened in float32 here: the artifact's own graph and weights, each number of
which a float32 holds, with all that is between them in float32.
"""

from __future__ import annotations

import asyncio
import atexit
import gc
import re
import tempfile
from pathlib import Path
from typing import Any

import coreai.authoring  # noqa: F401  # its modules import one another in this order alone
from coreai._compiler._mlir_libs._coreaiIR._bindings.compiler import (
    compile_to_binary,
    load_module_from_bytecode,
    serialize_module,
)
from coreai._compiler.ir import Location, Module
from coreai.authoring.context import Context
from coreai.runtime import AIModel
from coreai.runtime import NDArray as Tensor
from numpy.typing import NDArray

from phibuild.backends.coreai.asset import PROGRAM, constants, resource
from phibuild.backends.coreai.mlir import NAMELESS

_HALF, _WHOLE = "f16>", "f32>"
_RESOURCE = re.compile(
    r"(?P<space>\s*)%(?P<value>\w+) = coreai.constant dense_resource<(?P<name>[^>]+)> : "
    r"(?P<type>tensor<[^>]*>)"
)
_BINARY = "main-universal.odix"
_FEW = 16


class Program:
    """A function of an .aimodel. Its tensors are numpy's; floats are float32 unless it is opened
    `as_it_is`."""

    def __init__(self, folder: Path, function: str, *, as_it_is: bool = False) -> None:
        context = Context()._mlir_context
        with context, Location.unknown():
            module = load_module_from_bytecode(context=context, path=folder / PROGRAM)
            if not as_it_is:
                module = _in_float32(module)
            with tempfile.TemporaryDirectory(suffix=".aimodelx") as compiled:
                compile_to_binary(
                    module=module, output_directory=Path(compiled), enable_debug_info=False
                )
                serialize_module(module=module, path=Path(compiled) / _BINARY)
                del module
                self._loop: Any = asyncio.new_event_loop()
                self._model: Any = self._loop.run_until_complete(AIModel.load(path=compiled))
        self._function: Any = self._model.load_function(function)
        atexit.register(self.close)

    def states(self, arrays: dict[str, NDArray[Any]]) -> dict[str, Any]:
        """Return states that begin with these numbers, for `run` to change."""
        return {name: Tensor(array) for name, array in arrays.items()}

    def run(
        self, inputs: dict[str, NDArray[Any]], states: dict[str, Any]
    ) -> dict[str, NDArray[Any]]:
        """Call the function; return its outputs."""
        tensors = {name: Tensor(array) for name, array in inputs.items()}
        outputs = self._loop.run_until_complete(self._function(tensors, states))
        return {name: output.numpy() for name, output in outputs.items()}

    def close(self) -> None:
        """Let go of the model; again is fine. Left to the end of the process, the runtime's threads
        would still be at work when their library goes, and abort it."""
        atexit.unregister(self.close)
        if self._loop is not None:
            self._function = self._model = None
            gc.collect()
            self._loop.close()
            self._loop = None


def _in_float32(module: Any) -> Any:
    """Return a module with all that is computed in fp16 in float32; weights stay as they are."""
    values = {resource(one): one.attributes["value"] for one in constants(module)}
    text = module.operation.get_asm(large_resource_limit=_FEW)
    lines = [_widened(line) for line in text.partition("{-#")[0].splitlines()]
    wide = Module.parse("\n".join(lines))
    for one in constants(wide):
        name = resource(one)
        if name is not None:
            one.attributes["value"] = values[name.removeprefix(NAMELESS)]
    wide.operation.verify()
    return wide


def _widened(line: str) -> str:
    found = _RESOURCE.match(line)
    if found is None:
        return line.replace(_HALF, _WHOLE)
    name, kind = f"{NAMELESS}{found['name'].strip(chr(34))}", found["type"]
    own = f"{found['space']}%{found['value']} = "
    if not kind.endswith(_HALF):
        return f"{own}coreai.constant dense_resource<{name}> : {kind}"
    stored = f"%stored{found['value']}"
    return (
        f"{found['space']}{stored} = coreai.constant dense_resource<{name}> : {kind}\n"
        f"{own}coreai.cast {stored} : {kind} to {kind.replace(_HALF, _WHOLE)}"
    )
