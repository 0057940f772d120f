"""Lean imports: what they leave out is there when it is asked for, and the names that are kept are
those that Transformers finds."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from conftest import ROOT
from support.kinds import some

HEAVY = ("sympy", "torch._inductor", "torch.distributed.tensor")
LATE = """
import json, sys
from phibuild.worker.lean import import_lean
import_lean()
import transformers.models.phi3.modeling_phi3
import torch
with torch.device("meta"):
    assert torch.nn.Embedding(3, 2).weight.is_meta
    assert torch.arange(0, 5, 2).shape == (3,)
early = [name for name in (*HEAVY, "torch.export.exported_program") if name in sys.modules]
torch.manual_seed(1)
filled = torch.nn.Embedding(3, 2).weight
torch.manual_seed(1)
assert torch.equal(filled, torch.empty(3, 2).normal_())
if FIRST:
    import torch._dynamo.config as config
    assert config is torch._dynamo.config is sys.modules["torch._dynamo.config"]
    assert config.__spec__.loader.name == "torch._dynamo.config"
calls = []
def backend(graph, inputs):
    calls.append(len(inputs))
    return graph.forward
doubled = torch.compile(lambda x: x + x, backend=backend)(torch.ones(3))
late = [name for name in HEAVY if name in sys.modules]
marked = torch._dynamo.disable(len)
assert torch.export.Dim("rows", min=2).__name__ == "rows"
kinds = [type(module).__name__ for module in (torch._dynamo, torch.export)]
from torch.fx.experimental.symbolic_shapes import ShapeEnv
shapes = ShapeEnv()
rows = shapes.create_unbacked_symint()
torch._check(rows >= 3)
assert str(*shapes.deferred_runtime_asserts.values()).count("3 <= u0") == 1
print(json.dumps([early, late, calls, doubled.tolist(), marked([1, 2]), kinds]))
"""
ASKED = """
import sys
from phibuild.worker.lean import import_lean
import_lean()
import onnx_ir as ir
batch = ir.SymbolicDim("batch")
assert "sympy.core" not in sys.modules
if sys.argv[1] == "module":
    import sympy.core.symbol as symbol
    assert symbol.Symbol is sys.modules["sympy"].Symbol
assert str((batch + 1) * 2) == "2*batch + 2"
assert str(ir.SymbolicDim("max(a, b)") + 0) == "Max(a, b)"
from transformers.models.phi3 import modeling_phi3
from transformers.processing_utils import ProcessorMixin, Unpack
assert ProcessorMixin.__name__ == "ProcessorMixin"
assert modeling_phi3.Unpack is Unpack
"""
NAMES = """
import sys
from pathlib import Path
import transformers
from phibuild.worker import lean
from transformers.utils.import_utils import define_import_structure as read
sys.prefix = sys.argv[1]
models = Path(transformers.__file__).parent / "models"
kept = lean._kept(read)
def same():
    for words in ((models, "models"), (str(models / "__init__.py"), None)):
        assert kept(*words) == read(*words), words
    phi3 = models / "phi3" / "__init__.py"
    assert kept(phi3) == read(phi3)
same()
files = sorted(Path(sys.prefix).iterdir())
assert [path.name for path in files] == ["transformers-all.json", "transformers-models.json"], files
def refused(*words):
    raise AssertionError("read again")
seen = lean._kept(refused)
assert seen(models, "models") == read(models, "models")
for damage in (b"", b"[1]", b"\\xff", b'["x", []]', b'{"a": 1}', files[0].read_bytes()[:1000]):
    for path in files:
        path.write_bytes(damage)
    same()
"""


def ask(python: Path, code: str, *words: str) -> str:
    done = subprocess.run(
        [python, "-c", code, *words], capture_output=True, text=True, check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-4000:]
    return done.stdout


@pytest.mark.parametrize("first", some([False, True], [True]))  # a module of it, before it is used
def test_compiler_and_exporter_are_there_when_they_are_asked_for(
    first: bool, toolchain_python: Callable[[str], Path]
) -> None:
    code = f"HEAVY, FIRST = {HEAVY!r}, {first}{LATE}"
    early, late, calls, doubled, marked, kinds = json.loads(ask(toolchain_python("pytorch"), code))
    assert early == []
    assert set(late) == set(HEAVY)
    assert calls == [1]
    assert doubled == [2, 2, 2]
    assert marked == 2
    assert kinds == ["module", "module"]


@pytest.mark.parametrize("how", some(["dimension", "module"], ["module"]))
def test_symbols_and_processors_are_there_when_they_are_asked_for(
    how: str, toolchain_python: Callable[[str], Path]
) -> None:
    ask(toolchain_python("ort_genai"), ASKED, how)


@pytest.mark.parametrize(
    "backend", some(["pytorch", "ort_genai", "mlx", "openvino"], ["pytorch", "mlx"])
)
def test_kept_names_are_those_that_transformers_finds(
    backend: str, toolchain_python: Callable[[str], Path], tmp_path: Path
) -> None:
    ask(toolchain_python(backend), NAMES, str(tmp_path))
