"""The type of the KV cache at work: what each loses on the embedded model, what the runtimes say
they hold, and what is judged: text and logits of the same cache."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from conftest import CommandLine
from phibuild.worker.architecture import read_architecture

pytestmark = pytest.mark.slow
ROOT = Path(__file__).resolve().parents[2]
TOKENS = 200

LLAMACPP = """
import ctypes, sys
import numpy as np
from pathlib import Path
from phibuild.backends.llamacpp.worker import load
runtime = load(Path(sys.argv[1]), 2)
runtime.logits(np.arange(3, 3 + int(sys.argv[2])))
size = runtime._api.llama_state_seq_get_size
size.restype, size.argtypes = ctypes.c_size_t, [ctypes.c_void_p, ctypes.c_int32]
print(size(runtime._context, 0))
"""

OPENVINO = """
import sys
import numpy as np
from pathlib import Path
from phibuild.backends.openvino.worker import load
runtime = load(Path(sys.argv[1]), 2)
ids = np.arange(3, 3 + int(sys.argv[2]))
whole = runtime.logits(ids)
runtime.logits(ids[:1])
steps = np.concatenate([runtime.extend(ids[n : n + 1]) for n in range(1, len(ids))])
held = runtime._request.get_compiled_model().get_property("KV_CACHE_PRECISION")
print(held.get_type_name(), float(np.abs(whole[1:] - steps).max()))
"""

ORT_GENAI = """
import sys
import numpy as np
from pathlib import Path
import onnx
from phibuild.backends.ort_genai.worker import load
runtime = load(Path(sys.argv[1]), 2)
ids = np.arange(3, 3 + int(sys.argv[2]))
whole = runtime.logits(ids)
runtime.logits(ids[:1])
steps = np.concatenate([runtime.extend(ids[n : n + 1]) for n in range(1, len(ids))])
graph = onnx.load(sys.argv[1] + "/model.onnx", load_external_data=False).graph
kinds = {one.type.tensor_type.elem_type for one in graph.input if one.name.startswith("past_key")}
names = ",".join(onnx.TensorProto.DataType.Name(kind) for kind in kinds)
held = runtime._generator.get_output("present.0.key").dtype
print(names, held, float(np.abs(whole[1:] - steps).max()))
"""


def losses(phibuild: CommandLine, device: str, backend: str, *options: str) -> list[dict[str, Any]]:
    """Build and judge the embedded model with each of some options in fp32; return the cells, and
    check that each runs."""
    cells = []
    for number, own in enumerate(options):
        path = phibuild.folder / "recipes" / f"kv{number}.yaml"
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"devices: {{{device}: {{{backend}: {{fp32: {own}}}}}}}\n")
        done = phibuild("build", f"recipe=kv{number}")
        assert done.returncode == 0, done.stdout + done.stderr
        (cell,) = phibuild.report(f"kv{number}")["cells"]
        cell["folder"] = phibuild.folder / "outputs" / f"kv{number}" / "latest" / cell["artifact"]
        said = phibuild("run", str(cell["folder"]), "def ", "--raw", "--max-tokens", "8")
        assert said.returncode == 0, said.stderr
        assert said.stdout.strip()
        cells.append(cell)
    return cells


def ask(python: Path, script: str, *words: object) -> str:
    done = subprocess.run(
        [str(python), "-c", script, *map(str, words)],
        env={"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return done.stdout.strip()


def test_llamacpp(phibuild: CommandLine, toolchain_python: Callable[[str], Path]) -> None:
    """Of 8 bits a loss like that of 8-bit weights, of 4 one like that of 4-bit weights; what the
    context holds of a sequence is as many bytes as planned, and little besides."""
    cells = losses(
        phibuild, "iphone", "llamacpp", "{}", "{kv_cache: q8_0}", "{kv_cache: q4_0}"
    )  # fmt: skip
    exact, eight, four = (cell["quality"]["kl_mean"] for cell in cells)
    assert exact < 1e-6
    assert 1e-5 < eight < 2e-3
    assert four > 10 * eight
    assert cells[1]["quality"]["cached_decoding_kl"] < 1e-3
    assert cells[0]["device_memory_bytes"] > cells[1]["device_memory_bytes"]
    config = json.loads((ROOT / "phibuild/data/phi3-tiny-trained/config.json").read_text())
    arch = read_architecture(config)
    elements = 2 * arch.layers * arch.kv_heads * arch.head_dim * TOKENS
    for cell, width in zip(cells, (4, 34 / 32, 18 / 32), strict=True):
        held = int(ask(toolchain_python("llamacpp"), LLAMACPP, cell["folder"], TOKENS))
        assert 0 <= held - elements * width < 32 * TOKENS + 1000
        assert cell["variant"] in {path.stem.removeprefix("model-")
                                   for path in cell["folder"].glob("*.gguf")}  # fmt: skip


def test_openvino(phibuild: CommandLine, toolchain_python: Callable[[str], Path]) -> None:
    """The compiled model has the cache that the IR asks for, and one pass is judged by it: by the
    same logits as decoding token by token."""
    cells = losses(phibuild, "ai_pc_intel", "openvino", "{}", "{kv_cache: u8}")
    exact, eight = (cell["quality"]["kl_mean"] for cell in cells)
    assert exact < 1e-9
    assert 1e-5 < eight < 1e-3
    assert cells[0]["device_memory_bytes"] > cells[1]["device_memory_bytes"]
    for cell, kind in zip(cells, ("f32", "u8"), strict=True):
        said = ask(toolchain_python("openvino"), OPENVINO, cell["folder"], TOKENS).split()
        assert said[0] == kind
        assert float(said[1]) < 1e-3


def test_ort_genai(phibuild: CommandLine, toolchain_python: Callable[[str], Path]) -> None:
    """Cache and graph are of int8, with scales by a text that it is not judged on; one pass and
    decoding token by token read the same."""
    cells = losses(phibuild, "intel_n100", "ort_genai", "{}", "{kv_cache: int8}")
    exact, eight = (cell["quality"]["kl_mean"] for cell in cells)
    assert exact < 1e-9
    assert 1e-5 < eight < 3e-3
    assert cells[0]["device_memory_bytes"] > cells[1]["device_memory_bytes"]
    for cell, kind in zip(cells, ("FLOAT float32", "INT8 int8"), strict=True):
        said = ask(toolchain_python("ort_genai"), ORT_GENAI, cell["folder"], TOKENS).split()
        assert " ".join(said[:2]) == kind
        assert float(said[2]) < 1e-3


SAME_WEIGHTS = """
import sys
import onnx
from onnx.numpy_helper import to_array

one, other = (
    {tensor.name: to_array(tensor).tobytes() for tensor in onnx.load(f"{folder}/model.onnx").graph.initializer}
    for folder in sys.argv[1:]
)
assert all(other[name] == content for name, content in one.items())
print(len(one), len(other))
"""  # noqa: E501


@pytest.mark.every
def test_ort_genai_with_gptq(
    phibuild: CommandLine, toolchain_python: Callable[[str], Path]
) -> None:
    """The weights are those of GPTQ alone, the cache is of int8, and the losses add up."""
    path = phibuild.folder / "recipes" / "both.yaml"
    path.parent.mkdir()
    path.write_text(
        "devices: {intel_n100: {ort_genai: {int4: [{method: gptq, tokens: 4096},"
        " {method: gptq, tokens: 4096, kv_cache: int8}]}}}\n"
    )
    done = phibuild("build", "recipe=both", "evaluation.windows=8", "evaluation.adaptive=false")
    assert done.returncode == 0, done.stdout + done.stderr
    cells = {cell["variant"]: cell for cell in phibuild.report("both")["cells"]}
    weights, both = cells["int4-cpu-b32-gptq"], cells["int4-cpu-b32-gptq-kv8"]
    latest = phibuild.folder / "outputs" / "both" / "latest"
    folders = [latest / cell["artifact"] for cell in (weights, both)]
    python = toolchain_python("ort_genai")
    count, more = map(int, ask(python, SAME_WEIGHTS, *folders).split())
    assert more == count + 2 * 4  # scales of keys and of values, of each layer
    said = ask(python, ORT_GENAI, folders[1], TOKENS).split()
    assert " ".join(said[:2]) == "INT8 int8"
    loss = [cell["quality"]["kl_mean"] for cell in (weights, both)]
    assert abs(loss[1] - loss[0]) < 3e-3 < loss[0]
    assert both["device_memory_bytes"] < weights["device_memory_bytes"]
