"""MLX artifacts equal those of `mlx_lm.convert`, tensor for tensor, and mlx-lm runs them."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from phibuild.backends.mlx.options import MlxOptions
from phibuild.backends.mlx.spec import SPEC
from phibuild.schema import Device, Precision, Variant
from phibuild.worker.architecture import read_architecture
from phibuild.worker.safetensors import read_checkpoint
from support.devices import SOURCES
from support.kinds import some

pytestmark = pytest.mark.slow

Events = list[dict[str, Any]]
RunWorker = Callable[[str, dict[str, Any]], Events]
Choice = tuple[Precision, dict[str, Any]]

# Our variant -> the arguments of mlx_lm.convert that make the same.
DEFAULTS: dict[str, tuple[Choice, dict[str, Any]]] = {
    "q4-g64": (("int4", {}), {"quantize": True, "q_bits": 4, "q_group_size": 64}),
    "q8-g64": (("int8", {}), {"quantize": True, "q_bits": 8, "q_group_size": 64}),
    "fp16": (("fp16", {}), {"dtype": "float16"}),
    "fp32": (("fp32", {}), {"dtype": "float32"}),
}
BY_OPTION: dict[str, tuple[Choice, dict[str, Any]]] = {
    "q4-g32": (("int4", {"group_size": 32}), {"quantize": True, "q_bits": 4, "q_group_size": 32}),
    "q4-g128": (
        ("int4", {"group_size": 128}),
        {"quantize": True, "q_bits": 4, "q_group_size": 128},
    ),
    "q3-g64": (("int4", {"bits": 3}), {"quantize": True, "q_bits": 3, "q_group_size": 64}),
    "q5-g64": (("int4", {"bits": 5}), {"quantize": True, "q_bits": 5, "q_group_size": 64}),
    "q6-g64": (("int8", {"bits": 6}), {"quantize": True, "q_bits": 6, "q_group_size": 64}),
    "mxfp4": (("int4", {"mode": "mxfp4"}), {"quantize": True, "q_mode": "mxfp4"}),
    "mxfp8": (("int8", {"mode": "mxfp8"}), {"quantize": True, "q_mode": "mxfp8"}),
    "q4-g64-float16": (
        ("int4", {"dtype": "float16"}),
        {"quantize": True, "q_bits": 4, "q_group_size": 64, "dtype": "float16"},
    ),
}
BY_RECIPE: dict[str, tuple[Choice, dict[str, Any]]] = {
    f"{recipe.replace('_', '-')}-g{group}": (
        ("int4", {"recipe": recipe, "group_size": group}),
        {"quantize": True, "q_group_size": group, "quant_predicate": recipe},
    )
    for recipe, group in (
        ("mixed_2_6", 64),
        ("mixed_3_4", 64),
        ("mixed_3_6", 32),
        ("mixed_4_6", 64),
        ("mixed_4_6", 128),
    )
}
# One process for all conversions of a checkpoint: importing mlx-lm takes longer than they do.
VENDOR = """
import json, sys
from mlx_lm.convert import convert
source, output, choices = json.load(sys.stdin)
for name, arguments in choices.items():
    convert(source, f"{output}/{name}", **arguments)
"""
KERNELS = Path(__file__).resolve().parents[1] / "support" / "mlx_kernels.py"
CHECKPOINTS: dict[str, tuple[str, dict[str, Any]]] = {
    "phi3": ("phi3", {}),
    "phi3-sharded": ("phi3", {"shards": 3}),
    # 41 MB of embedding in fp32: several chunks of rows to a tensor.
    "phi3-chunks": ("phi3", {"dtype": "fp32", "layers": 1, "vocab_size": 40000}),
    "phi4mini": ("phi4mini", {}),
    "phi4mini-fp16": ("phi4mini", {"dtype": "fp16"}),
    "phi4": ("phi4", {}),
    # The mixed recipes go by eighths of the layers.
    "phi3-deep": ("phi3", {"layers": 17}),
    "phi4mini-deep": ("phi4mini", {"layers": 9}),
    "phi4-fp32-sharded": ("phi4", {"dtype": "fp32", "shards": 2}),
}


def _variants(source: Path, choices: Mapping[str, Choice]) -> dict[str, Variant]:
    arch = read_architecture(json.loads((source / "config.json").read_text()))
    device = Device.model_validate(
        {
            "name": "mac",
            "title": "Mac",
            "class": "ai_pc",
            "memory": "16 GiB",
            "budget": "8 GiB",
            "accelerators": ["metal"],
            "context_length": 4096,
            "sources": SOURCES,
        }
    )
    variants = {}
    for name, (precision, options) in choices.items():
        variant = SPEC.variant(precision, MlxOptions(**options), device, arch)
        assert isinstance(variant, Variant)
        assert variant.name.startswith(name.removesuffix("-float16"))
        variants[name] = variant
    return variants


def _build(
    run_worker: RunWorker,
    source: Path,
    variants: Mapping[str, Variant],
    folders: Mapping[str, Path],
    threads: int = 2,
) -> Events:
    items = []
    for name, folder in folders.items():
        folder.mkdir(parents=True, exist_ok=True)
        variant = variants[name].model_dump(mode="json")
        items.append({"item": name, "variant": variant, "output": str(folder)})
    request = {
        "verb": "build",
        "source": str(source),
        "architecture": read_architecture(_json(source / "config.json")).to_json(),
        "model": "tiny",
        "threads": threads,
        "items": items,
    }
    return run_worker("mlx", request)


def _weights(folder: Path) -> dict[str, tuple[str, tuple[int, ...], bytes]]:
    weights = {}
    for name, tensor in read_checkpoint(folder).items():
        with tensor.path.open("rb") as file:
            file.seek(tensor.offset)
            weights[name] = (tensor.dtype, tensor.shape, file.read(tensor.nbytes))
    return weights


def _json(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(path.read_text())
    return content


def _files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize(
    "which",
    some(
        CHECKPOINTS,
        ["phi3-sharded", "phi3-chunks", "phi4mini-fp16", "phi4", "phi3-deep"],
    ),
)
def test_equal_to_mlx_lm_convert(
    which: str,
    checkpoint: Callable[..., Path],
    run_worker: RunWorker,
    toolchain_python: Callable[[str], Path],
    tmp_path: Path,
) -> None:
    shape, arguments = CHECKPOINTS[which]
    source = checkpoint(shape, **arguments)
    chosen = DEFAULTS
    if "layers" in arguments and "dtype" not in arguments:
        chosen = BY_RECIPE
    elif not arguments:
        chosen = DEFAULTS | BY_OPTION | BY_RECIPE
    variants = _variants(source, {name: ours for name, (ours, _) in chosen.items()})
    ours, vendors = tmp_path / "ours", tmp_path / "vendors"
    events = _build(run_worker, source, variants, {name: ours / name for name in variants})
    results = {event["item"]: event["result"] for event in events if event["event"] == "item"}
    vendors.mkdir()
    conversions = {name: theirs for name, (_, theirs) in chosen.items()}
    subprocess.run(
        [toolchain_python("mlx"), "-c", VENDOR],
        input=json.dumps([str(source), str(vendors), conversions]),
        text=True,
        check=True,
        env={"HF_HUB_OFFLINE": "1", "HOME": str(tmp_path)},
    )
    arch = read_architecture(_json(source / "config.json"))
    for name, variant in variants.items():
        mine, theirs = ours / name, vendors / name
        assert _weights(mine) == _weights(theirs), name
        index = "model.safetensors.index.json"
        assert _json(mine / index) == _json(theirs / index)
        config = _json(theirs / "config.json")
        # mlx-lm leaves the checkpoint's type there, whatever it stores.
        config["torch_dtype"] = variant.options["dtype"]
        assert _json(mine / "config.json") == config
        assert {p.name for p in theirs.iterdir()} <= {p.name for p in mine.iterdir()} | {
            "README.md"  # the core's
        }
        types: dict[str, int] = {}
        for tensor in SPEC.layout(arch, variant):
            types[tensor.kind] = types.get(tensor.kind, 0) + tensor.parameters
        assert results[name]["types"] == types
        assert results[name]["weight_bytes"] == sum(t.nbytes for t in SPEC.layout(arch, variant))


def test_kernels_equal_to_those_of_mlx(toolchain_python: Callable[[str], Path]) -> None:
    """Zeros, ties, equal weights, denormals: what random checkpoints hardly have."""
    done = subprocess.run(
        [toolchain_python("mlx"), KERNELS], capture_output=True, text=True, check=True
    )
    assert done.stdout + done.stderr == ""


def test_bytes_do_not_depend_on_threads_or_on_what_else_is_built(
    checkpoint: Callable[..., Path], run_worker: RunWorker, tmp_path: Path
) -> None:
    shape, arguments = CHECKPOINTS["phi3-chunks"]
    source = checkpoint(shape, **arguments)
    variants = _variants(source, {name: ours for name, (ours, _) in DEFAULTS.items()})
    together = {name: tmp_path / "together" / name for name in variants}
    _build(run_worker, source, variants, together, threads=3)
    for name in variants:
        alone = tmp_path / "alone" / name
        _build(run_worker, source, variants, {name: alone}, threads=1)
        assert _files(alone) == _files(together[name])


def test_one_artifact_that_cannot_be_written_does_not_stop_the_others(
    checkpoint: Callable[..., Path], run_worker: RunWorker, tmp_path: Path
) -> None:
    source = checkpoint("phi3")
    variants = _variants(source, {name: ours for name, (ours, _) in DEFAULTS.items()})
    folders = {name: tmp_path / name for name in variants}
    (folders["fp16"] / "model.safetensors").mkdir(parents=True)
    events = _build(run_worker, source, variants, folders)
    failed = {event["item"]: event["error"] for event in events if event["event"] == "failed"}
    assert set(failed) == {"fp16"}
    assert failed["fp16"] == "model.safetensors: File exists"
    assert {e["item"] for e in events if e["event"] == "item"} == set(variants) - {"fp16"}


@pytest.mark.parametrize("shape", some(["phi3", "phi4mini", "phi4"], ["phi4mini"]))
def test_padded_ids_are_never_generated(
    shape: str, checkpoint: Callable[..., Path], run_worker: RunWorker, tmp_path: Path
) -> None:
    """Random weights would choose ids of the padded vocabulary, at which mlx-lm's detokenizer
    fails."""
    source = checkpoint(shape)
    variants = _variants(source, {"q4-g64": ("int4", {})})
    _build(run_worker, source, variants, {"q4-g64": tmp_path / "q4-g64"})
    request = {
        "verb": "generate",
        "system": None,
        "template": None,
        "raw": True,
        "folder": str(tmp_path / "q4-g64"),
        "threads": 2,
        "prompt": "def ",
        "max_tokens": 24,
    }
    events = run_worker("mlx", request)
    assert events[-1]["event"] == "end"
    assert "".join(event["text"] for event in events if event["event"] == "text")
