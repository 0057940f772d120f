"""ONNX artifacts equal those of `python -m onnxruntime_genai.models.builder`.

With the builder's default algorithm every file is the same, byte for byte. rtn and k_quant leave
their nodes and initializers in another order in the vendor's file; each one must be the same.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from phibuild.architecture import Architecture, read_architecture
from phibuild.backends.ort_genai.spec import SPEC, OrtGenaiOptions
from phibuild.schema import Device, Precision, Variant

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]
Events = list[dict[str, Any]]
RunWorker = Callable[[str, dict[str, Any]], Events]

# name: precision, our options, the vendor's provider and --extra_options.
CASES: dict[str, tuple[Precision, dict[str, Any], str, list[str]]] = {
    "int4-cpu": ("int4", {}, "cpu", []),
    "int8-cpu": ("int8", {}, "cpu", []),
    "fp32-cpu": ("fp32", {}, "cpu", []),
    "fp16-webgpu": ("fp16", {"provider": "webgpu"}, "webgpu", []),
    "int4-dml": ("int4", {"provider": "dml"}, "dml", []),
    "int8-cuda": ("int8", {"provider": "cuda"}, "cuda", []),
    "int4-trt_rtx": ("int4", {"provider": "trt_rtx"}, "NvTensorRtRtx", []),
    "int4-asym-b16": (
        "int4",
        {"symmetric": False, "block_size": 16},
        "cpu",
        ["is_symmetric=false", "block_size=16"],
    ),
    "int4-mixed": (
        "int4",
        {"int8_matmuls": ["mixed_layers"]},
        "cpu",
        ["matmul_mixed_precision=mixed_layers:int8"],
    ),
    "int4-rtn": ("int4", {"algorithm": "rtn"}, "cpu", ["algo_config=rtn"]),
    "int4-k_quant-last": (
        "int4",
        {"algorithm": "k_quant", "int8_matmuls": ["last_matmul"]},
        "cpu",
        ["algo_config=k_quant", "matmul_mixed_precision=last_matmul:int8"],
    ),
}
DEFAULTS = ("int4-cpu", "int8-cpu", "fp32-cpu", "fp16-webgpu")
TIED = ("int8-cuda", "int4-trt_rtx", "int4-k_quant-last")  # what the vendor does otherwise there
# name: shape, arguments of the checkpoint, cases.
CHECKPOINTS: dict[str, tuple[str, dict[str, Any], tuple[str, ...]]] = {
    "phi3": ("phi3", {}, tuple(CASES)),
    "phi4mini-fp32-sharded": ("phi4mini", {"dtype": "fp32", "shards": 2}, (*DEFAULTS, *TIED)),
    "phi4-fp16": ("phi4", {"dtype": "fp16"}, DEFAULTS),
}
# One process runs the vendor's command for every line of arguments: importing it takes 13 s.
RUN_VENDOR = """
import json, runpy, sys
for arguments in json.load(sys.stdin):
    sys.argv = ["builder", *arguments]
    runpy.run_module("onnxruntime_genai.models.builder", run_name="__main__")
"""
# Of each folder: initializers by name, and nodes, with their order taken away.
DIGEST = """
import hashlib, json, sys
import onnx

def digest(message):
    return hashlib.sha256(message.SerializeToString(deterministic=True)).hexdigest()

def contents(folder):
    model = onnx.load(folder + "/model.onnx")
    for tensor in model.graph.initializer:
        del tensor.external_data[:]  # where it lay in the file
    initializers = {
        tensor.name: [list(tensor.dims), digest(tensor)] for tensor in model.graph.initializer
    }
    nodes = []
    for node in model.graph.node:
        attributes = sorted((attribute.name, digest(attribute)) for attribute in node.attribute)
        nodes.append([node.op_type, node.name, list(node.input), list(node.output), attributes])
    return {"initializers": initializers, "nodes": sorted(nodes)}

json.dump([contents(folder) for folder in json.load(sys.stdin)], sys.stdout)
"""
# Rows are quantized apart from each other: slabs of any height give the same bits.
COMPARE_SLABS = """
import io, sys
import onnx_ir as ir, torch
from phibuild.backends.ort_genai import tensors

torch.manual_seed(0)
weight = torch.randn(37, 96).to(torch.bfloat16).T
roundings = (("default", True), ("default", False), ("rtn", True), ("k_quant", False))
for dtype in (ir.DataType.FLOAT, ir.DataType.FLOAT16):
    for algorithm, symmetric in roundings:
        for bits in (4, 8):
            block = 16 if algorithm == "k_quant" else 64
            rounding = tensors.Rounding(bits, block, symmetric, algorithm)
            written = []
            for slab_bytes in (1 << 20, 5 * 96 * 4):
                tensors.SLAB_BYTES = slab_bytes
                source = tensors.StreamedMatrix(weight, dtype, "weight", lambda count: None)
                parts = tensors.QuantizedMatrix(source, rounding).tensors
                files = [io.BytesIO() for part in parts]
                for part, file in zip(parts, files):
                    part.tofile(file)
                    assert file.tell() == part.nbytes, (part.name, algorithm, bits)
                    assert file.getvalue() == part.tobytes(), (part.name, algorithm, bits)
                whole = io.BytesIO()
                source.tofile(whole)
                assert whole.getvalue() == source.tobytes()
                written.append([file.getvalue() for file in (*files, whole)])
            assert written[0] == written[1], (algorithm, symmetric, bits)
"""


def _python(interpreter: Path, program: str, stdin: Any = None) -> str:
    environment = dict(os.environ, HF_HUB_OFFLINE="1", PYTHONPATH=str(ROOT))
    done = subprocess.run(
        [str(interpreter), "-c", program],
        input=json.dumps(stdin),
        capture_output=True,
        text=True,
        env=environment,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return done.stdout


def _variants(arch: Architecture, names: tuple[str, ...]) -> dict[str, Variant]:
    device = Device.model_validate(
        {
            "name": "pc",
            "title": "A PC",
            "class": "ai_pc",
            "memory": "16 GiB",
            "budget": "8 GiB",
            "accelerators": ("cpu", "cuda", "directml", "webgpu"),
            "context_length": 4096,
            "sources": {},
        }
    )
    variants = {}
    for name in names:
        precision, options, _, _ = CASES[name]
        result = SPEC.variant(precision, OrtGenaiOptions.model_validate(options), device, arch)
        assert isinstance(result, Variant), name
        variants[name] = result
    return variants


@dataclass(frozen=True)
class Built:
    """Artifacts of one checkpoint in `ours`/<case>, the vendor's in `theirs`/<case>."""

    arch: Architecture
    variants: dict[str, Variant]
    results: dict[str, dict[str, Any]]
    ours: Path
    theirs: Path


@pytest.fixture(scope="module")
def built(
    checkpoint: Callable[..., Path],
    run_worker: RunWorker,
    toolchain_python: Callable[[str], Path],
    tmp_path_factory: pytest.TempPathFactory,
) -> dict[str, Built]:
    """Build every case of every checkpoint: ours, then the vendor's in one process."""
    folder = tmp_path_factory.mktemp("ort_genai")
    made, arguments = {}, []
    for which, (shape, options, names) in CHECKPOINTS.items():
        source = checkpoint(shape, **options)
        ours, theirs = folder / which / "ours", folder / which / "theirs"
        arch = read_architecture(json.loads((source / "config.json").read_text(encoding="utf-8")))
        variants = _variants(arch, names)
        results = _build(run_worker, source, arch, variants, ours)
        made[which] = Built(arch, variants, results, ours, theirs)
        for name in variants:
            output = theirs / name
            arguments.append(_vendor_arguments(name, source, output, arch.tied, folder / "cache"))
    _python(toolchain_python("ort_genai"), RUN_VENDOR, arguments)
    return made


def _build(
    run_worker: RunWorker,
    source: Path,
    arch: Architecture,
    variants: dict[str, Variant],
    output: Path,
) -> dict[str, dict[str, Any]]:
    items = []
    for name, variant in variants.items():
        (output / name).mkdir(parents=True)
        json_variant = variant.model_dump(mode="json")
        items.append({"item": name, "variant": json_variant, "output": str(output / name)})
    events = run_worker(
        "ort_genai",
        {
            "verb": "build",
            "source": str(source),
            "architecture": arch.to_json(),
            "model": "test",
            "threads": 2,
            "items": items,
        },
    )
    assert not [event for event in events if event["event"] == "failed"]
    return {event["item"]: event["result"] for event in events if event["event"] == "item"}


def _vendor_arguments(name: str, source: Path, output: Path, tied: bool, cache: Path) -> list[str]:
    precision, options, provider, extra = CASES[name]
    if tied and options.get("provider") == "trt_rtx":
        extra = ["shared_embeddings=false"]  # the vendor's own default fails there
    line = ["-m", "", "-i", str(source), "-o", str(output), "-c", str(cache)]
    line += ["-p", precision, "-e", provider]
    return [*line, "--extra_options", *extra] if extra else line


@pytest.mark.parametrize("which", CHECKPOINTS)
def test_artifacts_equal_the_vendors(
    which: str, built: dict[str, Built], toolchain_python: Callable[[str], Path]
) -> None:
    pair = built[which]
    reordered = []
    for name, variant in pair.variants.items():
        ordered = variant.options.get("algorithm", "default") == "default"
        if not ordered:
            reordered.append(name)
        files = sorted((pair.theirs / name).iterdir())
        assert {"genai_config.json", "model.onnx", "model.onnx.data"} <= {f.name for f in files}
        for theirs in files:
            if ordered or not theirs.name.startswith("model.onnx"):
                ours = pair.ours / name / theirs.name
                assert ours.read_bytes() == theirs.read_bytes(), f"{name}: {theirs.name}"
    folders = [str(side / name) for name in reordered for side in (pair.ours, pair.theirs)]
    if folders:
        contents = json.loads(_python(toolchain_python("ort_genai"), DIGEST, folders))
        assert contents[::2] == contents[1::2], reordered


@pytest.mark.parametrize("which", CHECKPOINTS)
def test_artifacts_hold_what_the_spec_promises(which: str, built: dict[str, Built]) -> None:
    pair = built[which]
    assert pair.results.keys() == pair.variants.keys() == set(CHECKPOINTS[which][2])
    for name, variant in pair.variants.items():
        _check_sizes(pair.arch, variant, pair.results[name])


def _check_sizes(arch: Architecture, variant: Variant, result: dict[str, Any]) -> None:
    types: dict[str, int] = {}
    nbytes = 0
    for tensor in SPEC.layout(arch, variant):
        types[tensor.kind] = types.get(tensor.kind, 0) + tensor.parameters
        nbytes += tensor.nbytes
    assert result["types"] == types
    assert result["weight_bytes"] == nbytes


def test_slabs_give_the_same_bits(toolchain_python: Callable[[str], Path]) -> None:
    _python(toolchain_python("ort_genai"), COMPARE_SLABS)
