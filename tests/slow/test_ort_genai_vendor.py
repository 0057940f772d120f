"""ONNX artifacts equal those of `python -m onnxruntime_genai.models.builder`.

With the builder's default algorithm every file is the same, byte for byte. rtn and k_quant leave
their nodes and initializers in another order in the vendor's file; each one must be the same.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from phibuild.backends.ort_genai.options import OrtGenaiOptions
from phibuild.backends.ort_genai.spec import SPEC
from phibuild.schema import Device, Precision, Variant
from phibuild.worker.architecture import Architecture, read_architecture
from support import warm
from support.devices import SOURCES

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
    "fp16-cuda": ("fp16", {"provider": "cuda"}, "cuda", []),
    "fp16-dml": ("fp16", {"provider": "dml"}, "dml", []),
    "fp16-trt_rtx": ("fp16", {"provider": "trt_rtx"}, "NvTensorRtRtx", []),
    "int4-webgpu": ("int4", {"provider": "webgpu"}, "webgpu", []),
    "int8-webgpu": ("int8", {"provider": "webgpu"}, "webgpu", []),
    "int4-dml": ("int4", {"provider": "dml"}, "dml", []),
    "int4-cuda": ("int4", {"provider": "cuda"}, "cuda", []),
    "int8-cuda": ("int8", {"provider": "cuda"}, "cuda", []),
    "int4-trt_rtx": ("int4", {"provider": "trt_rtx"}, "NvTensorRtRtx", []),
    "int4-trt_rtx-asym-b64": (
        "int4",
        {"provider": "trt_rtx", "symmetric": False, "block_size": 64},
        "NvTensorRtRtx",
        ["is_symmetric=false", "block_size=64"],
    ),
    "int4-asym-b16": (
        "int4",
        {"symmetric": False, "block_size": 16},
        "cpu",
        ["is_symmetric=false", "block_size=16"],
    ),
    "int8-asym-b128": (
        "int8",
        {"symmetric": False, "block_size": 128},
        "cpu",
        ["is_symmetric=false", "block_size=128"],
    ),
    "int4-b256-acc1": (
        "int4",
        {"block_size": 256, "accuracy_level": 1},
        "cpu",
        ["block_size=256", "accuracy_level=1"],
    ),
    "int4-mixed": (
        "int4",
        {"int8_matmuls": ["mixed_layers"]},
        "cpu",
        ["matmul_mixed_precision=mixed_layers:int8"],
    ),
    "int4-last": (
        "int4",
        {"int8_matmuls": ["last_matmul"]},
        "cpu",
        ["matmul_mixed_precision=last_matmul:int8"],
    ),
    "int4-rtn": ("int4", {"algorithm": "rtn"}, "cpu", ["algo_config=rtn"]),
    "int8-rtn-asym": (
        "int8",
        {"algorithm": "rtn", "symmetric": False, "provider": "cuda"},
        "cuda",
        ["algo_config=rtn", "is_symmetric=false"],
    ),
    "int4-k_quant-last": (
        "int4",
        {"algorithm": "k_quant", "int8_matmuls": ["last_matmul"]},
        "cpu",
        ["algo_config=k_quant", "matmul_mixed_precision=last_matmul:int8"],
    ),
}
# What the vendor's tool cannot make of a tied model.
UNTIED = ("int4-asym-b16", "int4-last")
TIED = tuple(name for name in CASES if name not in UNTIED)
# name: shape, arguments of the checkpoint, cases.
CHECKPOINTS: dict[str, tuple[str, dict[str, Any], tuple[str, ...]]] = {
    "phi3-bf16": ("phi3", {}, tuple(CASES)),
    "phi4mini-fp32-sharded": ("phi4mini", {"dtype": "fp32", "shards": 2}, TIED),
    # One of each kind: what is particular to the shape has nothing to do with how a type is made.
    "phi4-fp16": (
        "phi4",
        {"dtype": "fp16"},
        (
            "int4-cpu",
            "int8-cpu",
            "fp32-cpu",
            "fp16-cuda",
            "fp16-trt_rtx",
            "int4-trt_rtx",
            "int4-webgpu",
            "int4-last",
        ),
    ),
}
# Fewer positions than published: rope tables would be most of every artifact.
SMALL: dict[str, dict[str, Any]] = {
    "phi3": {"layers": 3, "max_position_embeddings": 8192},
    "phi4mini": {"layers": 3, "max_position_embeddings": 8192},
    "phi4": {"layers": 3},
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
# Blocks are quantized apart from each other: slabs of any size give the same bits.
COMPARE_SLABS = """
import io
import onnx_ir as ir, torch
from phibuild.backends.ort_genai import tensors
from phibuild.backends.ort_genai.rounding import Rounding

torch.manual_seed(0)
streaming = tensors.Streaming(2, lambda count: None)
algorithms = (("default", True), ("default", False), ("rtn", True), ("k_quant", False))
roundings = [
    Rounding(bits, 16 if algorithm == "k_quant" else 64, symmetric, algorithm)
    for algorithm, symmetric in algorithms
    for bits in (4, 8)
]
roundings += [Rounding(4, 32, symmetric, "default", qdq=True) for symmetric in (True, False)]
for outputs, width in ((37, 96), (38, 352)):
    weight = torch.randn(outputs, width).to(torch.bfloat16).T
    for dtype in (ir.DataType.FLOAT, ir.DataType.FLOAT16):
        for rounding in roundings:
            written = []
            for slab_bytes in (1 << 20, 5 * 96 * 4):
                tensors.SLAB_BYTES = slab_bytes
                source = tensors.StreamedMatrix(weight, dtype, "weight", streaming)
                parts = tensors.QuantizedMatrix(source, rounding).tensors
                files = [io.BytesIO() for part in parts]
                for part, file in zip(parts, files):
                    part.tofile(file)
                    assert file.tell() == part.nbytes, (part.name, rounding)
                    assert file.getvalue() == part.tobytes(), (part.name, rounding)
                whole = io.BytesIO()
                source.tofile(whole)
                assert whole.getvalue() == source.tobytes()
                written.append([file.getvalue() for file in (*files, whole)])
            assert written[0] == written[1], rounding
"""
# Ties, zeros of both signs, constant blocks, float16 overflow, numbers that are hardly any.
COMPARE_KERNELS = """
import itertools
import numpy as np, torch
from phibuild.backends.ort_genai.rounding import Rounding, _by_kernel, _by_tensors, quantize

torch.manual_seed(0)
normal = torch.randn(33, 512) * 0.02
coarse = (torch.randint(-8, 9, normal.shape) / 2).bfloat16()
signs = torch.where(torch.rand(normal.shape) > 0.5, 1.0, -1.0)
gaps = (torch.rand(33, 16) > 0.5).repeat_interleave(32, 1) * normal * signs
broken = normal.clone()
broken[3, 5], broken[9, 500], broken[20, 3] = float("nan"), float("inf"), -float("inf")
whole = {
    "fp32": normal, "bf16": normal.bfloat16(), "ties": coarse, "gaps": gaps.bfloat16(),
    "constant": torch.full_like(normal, 0.3), "positive": normal.abs(), "negative": -normal.abs(),
    "small": normal * 1e-7,
}
left_out = {
    "large": normal * 1e38, "tiny": normal * 1e-38, "broken": broken, "cut": normal[:, :504],
}
kinds = [(False, 4), (False, 8), (True, 4)]
for name, weight in {**whole, **left_out}.items():
    for dtype, (qdq, bits), symmetric, block in itertools.product(
        (torch.float32, torch.float16), kinds, (True, False), (16, 32, 64, 128, 256)
    ):
        rounding = Rounding(bits, block, symmetric, "default", qdq)
        slab = weight.to(dtype)
        slab = (slab.T if qdq else slab).contiguous()
        assert name in left_out or _by_tensors(slab, rounding) is not None, (name, rounding)
        made, expected = quantize(slab, rounding), _by_kernel(slab, rounding)
        for part in ("packed", "scales", "zero_points"):
            ours, theirs = getattr(made, part), getattr(expected, part)
            if theirs is None:
                assert ours is None
            else:
                assert ours.tobytes() == theirs.tobytes(), (name, dtype, rounding, part)
"""


def _python(interpreter: Path, program: str, stdin: Any = None) -> str:
    environment = dict(os.environ, HF_HUB_OFFLINE="1", PYTHONPATH=str(ROOT))
    done = warm.run(
        [str(interpreter), "-c", program],
        input=json.dumps(stdin),
        env=environment,
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
            "sources": SOURCES,
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
        source = checkpoint(shape, **SMALL[shape], **options)
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
    if tied and precision == "int4" and options.get("provider") == "trt_rtx":
        extra = [*extra, "shared_embeddings=false"]  # the vendor's own default fails there
    line = ["-m", "", "-i", str(source), "-o", str(output), "-c", str(cache)]
    line += ["-p", precision, "-e", provider]
    return [*line, "--extra_options", *extra] if extra else line


def _settings(path: Path) -> dict[str, Any]:
    """Return a tokenizer_config.json without the class, by which onnxruntime-genai alone goes: with
    the vendor's, it splits sentencepiece's runs of spaces, which Transformers does not."""
    settings: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    del settings["tokenizer_class"]
    return settings


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
                if theirs.name == "tokenizer_config.json":
                    assert _settings(ours) == _settings(theirs)
                else:
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


def test_whole_slabs_are_rounded_as_the_kernels_do(toolchain_python: Callable[[str], Path]) -> None:
    _python(toolchain_python("ort_genai"), COMPARE_KERNELS)


# Builds and runs one token of each folder: what is said of it, "" if it ran.
RUN_ROTARY = """
import json, runpy, sys
import onnxruntime_genai as genai
answers = []
for source, output in json.load(sys.stdin):
    sys.argv = ["builder", "-m", source, "-o", output, "-p", "fp32", "-e", "cpu", "-c", output]
    runpy.run_module("onnxruntime_genai.models.builder", run_name="__main__")
    model = genai.Model(output)
    generator = genai.Generator(model, genai.GeneratorParams(model))
    try:
        generator.append_tokens([300, 301, 302])
        generator.generate_next_token()
        answers.append("")
    except RuntimeError as error:
        answers.append(str(error))
print(json.dumps(answers))
"""


@pytest.mark.outside(
    "building",
    "ONNX: a rotary width that is no multiple of 16",
    "built, and the graph fails when run",
)
def test_graphs_of_other_widths_fail_when_run(
    checkpoint: Callable[..., Path], toolchain_python: Callable[[str], Path], tmp_path: Path
) -> None:
    """The shapes of tests/unit/test_backend_ort_genai.py, and one that runs."""
    shapes = [(32, 0.75), (32, 0.25), (24, 1.0), (32, 1.0)]
    folders = [
        checkpoint(
            "phi4mini", layers=1, hidden_size=4 * head, num_attention_heads=4,
            num_key_value_heads=2, partial_rotary_factor=partial, rope_scaling=None,
            max_position_embeddings=4096, original_max_position_embeddings=4096,
        )
        for head, partial in shapes
    ]  # fmt: skip
    asked = [[str(folder), str(tmp_path / folder.name)] for folder in folders]
    said = json.loads(_python(toolchain_python("ort_genai"), RUN_ROTARY, asked).splitlines()[-1])
    assert [text and "multiple of" in text for text in said] == [True, True, True, ""], said
