"""PyTorch artifacts equal those of Transformers and compressed-tensors, and they run."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from phibuild.backends.pytorch.inspect import inspect
from phibuild.backends.pytorch.options import PytorchOptions
from phibuild.backends.pytorch.spec import SPEC
from phibuild.schema import Device, Precision, Variant
from phibuild.worker.architecture import read_architecture
from phibuild.worker.protocol import WorkerError
from phibuild.worker.safetensors import read_checkpoint, read_header
from support.checkpoints import architecture
from support.devices import SOURCES
from support.kinds import some

pytestmark = pytest.mark.slow

Events = list[dict[str, Any]]
RunWorker = Callable[[str, dict[str, Any]], Events]
Choice = tuple[Precision, dict[str, Any]]

EMBEDDED = Path(__file__).parents[2] / "phibuild" / "data" / "phi3-tiny-trained"
SHIPPED: dict[str, Choice] = {
    "fp32": ("fp32", {}),
    "fp16": ("fp16", {}),
    "w8a16": ("int8", {}),
    "w4a16": ("int4", {}),
}
# Our variant -> the dtype, preset and changes of it that make the same with the vendor's library.
VENDORS: dict[str, tuple[Choice, dict[str, Any]]] = {
    "fp32": (SHIPPED["fp32"], {"dtype": "float32"}),
    "fp16": (SHIPPED["fp16"], {"dtype": "float16"}),
    "w8a16": (SHIPPED["w8a16"], {"dtype": "auto", "preset": "W8A16"}),
    "w4a16": (SHIPPED["w4a16"], {"dtype": "auto", "preset": "W4A16"}),
    "w4a16-g64-float16": (
        ("int4", {"group_size": 64, "dtype": "float16"}),
        {"dtype": "float16", "preset": "W4A16", "group_size": 64},
    ),
    "w4a16-asym": (("int4", {"symmetric": False}), {"dtype": "auto", "preset": "W4A16_ASYM"}),
    "w8a16-asym-g32": (
        ("int8", {"symmetric": False, "group_size": 32}),
        {"dtype": "auto", "preset": "W8A16", "symmetric": False, "group_size": 32},
    ),
}
VENDORS |= {
    "w8a8": (("int8", {"scheme": "W8A8"}), {"dtype": "auto", "preset": "W8A8"}),
    "fp8": (("int8", {"scheme": "FP8_DYNAMIC"}), {"dtype": "auto", "preset": "FP8_DYNAMIC"}),
    "fp8-float16": (
        ("int8", {"scheme": "FP8_DYNAMIC", "dtype": "float16"}),
        {"dtype": "float16", "preset": "FP8_DYNAMIC"},
    ),
}
# Layers of other types: what matches -> the preset and changes of it, None where they are left
# unquantized.
MIXED: dict[str, tuple[str, dict[str, Any] | None]] = {
    r"layers\.0\.self_attn\.qkv_proj": ("BF16", None),
    "down_proj": ("w8", {"preset": "W8A16"}),
    r"self_attn\.o_proj": ("w4g32", {"preset": "W4A16", "group_size": 32}),
}
VENDORS["w4a16-mixed"] = (
    (
        "int4",
        {"dtype": "bfloat16", "tensor_types": {key: kind for key, (kind, _) in MIXED.items()}},
    ),
    {"dtype": "bfloat16"},
)
# One process makes all of them: importing Transformers takes longer than that.
VENDOR = Path(__file__).parents[1] / "vendors" / "compressed_tensors_export.py"
# Artifacts as users load them, compressed until the first pass, against the judge's runtime.
LOAD = """
import json, sys
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, CompressedTensorsConfig

for folder in json.load(sys.stdin):
    ids = AutoTokenizer.from_pretrained(folder)("def main(", return_tensors="pt").input_ids
    name = folder.rsplit("/", 1)[1]
    options = {"output_loading_info": True}
    if "asym" in name:  # Transformers 5.23 packs no zero points in the layers it makes for them
        options["quantization_config"] = CompressedTensorsConfig(dequantize=True)
    model, info = AutoModelForCausalLM.from_pretrained(folder, **options)
    assert not any(info.values()), info
    if name in ("w4a16", "w8a16"):
        options["quantization_config"] = CompressedTensorsConfig(dequantize=True)
        dense, _ = AutoModelForCausalLM.from_pretrained(folder, **options)
        with torch.inference_mode():
            assert torch.equal(model(ids).logits, dense(ids).logits)
    generated = model.generate(ids, max_new_tokens=4, do_sample=False)
    assert generated.shape[1] > ids.shape[1]
"""
LOADED = (*SHIPPED, "w4a16-asym", "w4a16-mixed", "w8a8", "fp8")
SHAPES = ("phi3", "phi4mini", "phi4")
CHECKPOINTS: dict[str, tuple[str, dict[str, Any]]] = {
    "phi3": ("phi3", {}),
    "phi3-fp32-sharded": ("phi3", {"dtype": "fp32", "shards": 3}),
    "phi4mini": ("phi4mini", {}),
    "phi4mini-fp16-sharded": ("phi4mini", {"dtype": "fp16", "shards": 2}),
    "phi4": ("phi4", {}),
    # The other dtypes of each shape: every tensor has the same values in all of them.
    "phi3-fp16": ("phi3", {"dtype": "fp16", "layers": 2}),
    "phi3-sharded": ("phi3", {"shards": 4, "layers": 2}),
    "phi4mini-fp32-sharded": ("phi4mini", {"dtype": "fp32", "shards": 2, "layers": 2}),
    "phi4mini-sharded": ("phi4mini", {"shards": 3, "layers": 2}),
    "phi4-fp16": ("phi4", {"dtype": "fp16", "layers": 2}),
    "phi4-fp32-sharded": ("phi4", {"dtype": "fp32", "shards": 3, "layers": 2}),
    "phi4-sharded": ("phi4", {"shards": 2, "layers": 2}),
    # 2 M weights a layer: several chunks of rows to a tensor.
    "chunks": ("phi3", {"layers": 1, "hidden_size": 1024, "intermediate_size": 1024}),
    # Heads of 8 with one key-value head: 144 rows in qkv_proj, which 32 does not divide.
    "narrow": (
        "phi4",
        {"hidden_size": 128, "num_attention_heads": 16, "num_key_value_heads": 1},
    ),
}
ZEROS = "zeros"  # a checkpoint with groups of zeros
NAMES: dict[str, list[str]] = {which: list(VENDORS) for which in CHECKPOINTS} | {
    ZEROS: ["w8a16", "w4a16", "w4a16-asym", "w8a16-asym-g32", "w4a16-mixed", "w8a8", "fp8"],
}
# Those without --every: each shape, each type of source, several files, what is odd.
KEPT = ("phi3", "phi3-fp32-sharded", "phi4mini", "phi4mini-fp16-sharded", "phi4", "chunks",
        "narrow", ZEROS)  # fmt: skip


@dataclass(frozen=True)
class Built:
    """Artifacts of one checkpoint in `ours`/<variant>, the vendor's in `theirs`/<variant>."""

    source: Path
    variants: dict[str, Variant]
    results: dict[str, dict[str, Any]]
    ours: Path
    theirs: Path


def _variants(source: Path, choices: Mapping[str, Choice]) -> dict[str, Variant]:
    device = Device.model_validate(
        {
            "name": "pc",
            "title": "PC",
            "class": "ai_pc",
            "memory": "32 GiB",
            "budget": "16 GiB",
            "accelerators": ["cuda"],
            "context_length": 4096,
            "sources": SOURCES,
        }
    )
    arch = read_architecture(_json(source / "config.json"))
    variants = {}
    for name, (precision, options) in choices.items():
        variant = SPEC.variant(precision, PytorchOptions(**options), device, arch)
        assert isinstance(variant, Variant)
        variants[name] = variant
    return variants


def _vendors(name: str, source: Path) -> dict[str, Any]:
    """Return how the vendor makes a variant; of mixed ones every layer is named, and groups come in
    the order of their first layers, as compressed-tensors writes them."""
    choice = dict(VENDORS[name][1])
    if not name.endswith("-mixed"):
        return choice
    groups: dict[str, dict[str, Any]] = {}
    choice |= {"groups": [], "ignore": []}
    for number in range(_json(source / "config.json")["num_hidden_layers"]):
        for role in ("self_attn.qkv_proj", "self_attn.o_proj", "mlp.gate_up_proj", "mlp.down_proj"):
            layer = f"model.layers.{number}.{role}"
            found = [how for pattern, how in MIXED.items() if re.search(pattern, layer)]
            kind, change = found[0] if found else ("w4", {"preset": "W4A16"})
            if change is None:
                choice["ignore"].append(layer)
                continue
            if kind not in groups:
                groups[kind] = {**change, "targets": []}
                choice["groups"].append(groups[kind])
            groups[kind]["targets"].append(layer)
    return choice


def _build(
    run_worker: RunWorker,
    source: Path,
    variants: Mapping[str, Variant],
    folder: Path,
    threads: int = 2,
) -> Events:
    items = []
    for name, variant in variants.items():
        (folder / name).mkdir(parents=True)
        items.append(
            {
                "item": name,
                "variant": variant.model_dump(mode="json"),
                "output": str(folder / name),
            }
        )
    request = {
        "verb": "build",
        "source": str(source),
        "architecture": read_architecture(_json(source / "config.json")).to_json(),
        "model": "tiny",
        "threads": threads,
        "items": items,
    }
    return run_worker("pytorch", request)


def _of(kind: str, field: str, events: Events) -> dict[str, Any]:
    return {event["item"]: event[field] for event in events if event["event"] == kind}


def _weights(folder: Path) -> dict[str, tuple[str, tuple[int, ...], bytes]]:
    weights = {}
    for name, tensor in read_checkpoint(folder).items():
        with tensor.path.open("rb") as file:
            file.seek(tensor.offset)
            weights[name] = (tensor.dtype, tensor.shape, file.read(tensor.nbytes))
    return weights


def _json(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return content


def _copy_with(source: Path, folder: Path, tensor: str, data: bytes) -> Path:
    """A copy of a single-file checkpoint with the first bytes of a tensor replaced."""
    folder.mkdir()
    for path in source.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    weights = folder / "model.safetensors"
    with weights.open("r+b") as file:
        file.seek(read_header(weights)[tensor].offset)
        file.write(data)
    return folder


def _run(python: Path, script: str, given: object, home: Path) -> None:
    result = subprocess.run(
        [python, "-c", script],
        input=json.dumps(given),
        text=True,
        capture_output=True,
        check=False,
        env={"HF_HUB_OFFLINE": "1", "HOME": str(home)},
    )
    assert result.returncode == 0, result.stderr[-4000:]


@pytest.fixture(scope="module")
def built(
    checkpoint: Callable[..., Path],
    run_worker: RunWorker,
    toolchain_python: Callable[[str], Path],
    tmp_path_factory: pytest.TempPathFactory,
    every: bool,
) -> dict[str, Built]:
    """Build all of `NAMES`, or of KEPT: ours, then the vendor's in one process."""
    root = tmp_path_factory.mktemp("pytorch")
    sources = {which: checkpoint(shape, **more) for which, (shape, more) in CHECKPOINTS.items()}
    layer = "model.layers.0.mlp.gate_up_proj.weight"
    # A group of the smallest bf16 subnormals, whose scale underflows, then two rows of zeros.
    data = b"\x01\x00" * 128 + bytes(2048)
    sources[ZEROS] = _copy_with(sources["phi3"], root / "source", layer, data)
    made, wanted = {}, []
    for which, source in sources.items():
        if not every and which not in KEPT:
            continue
        variants = _variants(source, {name: VENDORS[name][0] for name in NAMES[which]})
        ours, theirs = root / which / "ours", root / which / "theirs"
        results = _of("item", "result", _build(run_worker, source, variants, ours))
        made[which] = Built(source, variants, results, ours, theirs)
        theirs.mkdir()
        wanted += [(str(source), str(theirs / name), _vendors(name, source)) for name in variants]
    _run(toolchain_python("pytorch"), VENDOR.read_text(encoding="utf-8"), wanted, root)
    return made


@pytest.mark.parametrize("which", some(NAMES, KEPT))
def test_equal_to_the_vendor(which: str, built: dict[str, Built]) -> None:
    pair = built[which]
    arch = read_architecture(_json(pair.source / "config.json"))
    for name, variant in pair.variants.items():
        mine, vendors = pair.ours / name, pair.theirs / name
        assert _weights(mine) == _weights(vendors), name
        configs = [_json(folder / "config.json") for folder in (mine, vendors)]
        assert configs[0].get("quantization_config") == configs[1].get("quantization_config")
        assert configs[0]["torch_dtype"] == configs[1]["dtype"] == variant.options["dtype"]
        types: dict[str, int] = {}
        for tensor in SPEC.layout(arch, variant):
            types[tensor.kind] = types.get(tensor.kind, 0) + tensor.parameters
        result = pair.results[name]
        assert result["types"] == types
        assert result["weight_bytes"] == sum(t.nbytes for t in SPEC.layout(arch, variant))


def test_a_layer_is_of_the_type_that_the_configuration_promises(
    built: dict[str, Built], tmp_path: Path
) -> None:
    folder = tmp_path / "changed"
    shutil.copytree(built["phi3"].ours / "w4a16-mixed", folder)
    config = _json(folder / "config.json")
    groups = {
        group["weights"]["num_bits"]: group["targets"]
        for group in config["quantization_config"]["config_groups"].values()
    }
    moved = groups[8].pop()
    groups[4].append(moved)
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    with pytest.raises(WorkerError, match="down_proj"):
        inspect(folder)
    groups[4].remove(moved)
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    with pytest.raises(WorkerError, match="configuration are missing"):
        inspect(folder)


def test_artifacts_load_as_users_load_them(
    built: dict[str, Built], toolchain_python: Callable[[str], Path], tmp_path: Path
) -> None:
    folders = [built[shape].ours / name for shape in SHAPES for name in LOADED]
    _run(toolchain_python("pytorch"), LOAD, [str(folder) for folder in folders], tmp_path)
    for folder in folders:
        names = {path.name for path in folder.iterdir()}
        assert {"tokenizer.json", "chat_template.jinja", "generation_config.json"} <= names


def test_bytes_do_not_depend_on_threads_or_on_what_else_is_built(
    checkpoint: Callable[..., Path], run_worker: RunWorker, tmp_path: Path
) -> None:
    shape, arguments = CHECKPOINTS["chunks"]
    source = checkpoint(shape, **arguments)
    variants = _variants(source, SHIPPED)
    _build(run_worker, source, variants, tmp_path / "together", threads=3)
    for name, variant in variants.items():
        _build(run_worker, source, {name: variant}, tmp_path / "alone", threads=1)
        for path in (tmp_path / "alone" / name).iterdir():
            assert path.read_bytes() == (tmp_path / "together" / name / path.name).read_bytes()


def test_weights_beyond_fp16_fail_that_variant_alone(
    checkpoint: Callable[..., Path], run_worker: RunWorker, tmp_path: Path
) -> None:
    # 2^17 in bf16
    source = _copy_with(checkpoint("phi3"), tmp_path / "source", "model.norm.weight", b"\x00\x48")
    events = _build(run_worker, source, _variants(source, SHIPPED), tmp_path / "out")
    assert _of("failed", "error", events) == {
        "fp16": "model.norm.weight has weights beyond 65,504, the range of float16"
    }
    assert set(_of("item", "result", events)) == {"fp32", "w8a16", "w4a16"}


def test_a_damaged_checkpoint_fails_every_variant(
    checkpoint: Callable[..., Path], run_worker: RunWorker, tmp_path: Path
) -> None:
    name = "model.layers.1.mlp.down_proj.weight"
    source = _copy_with(checkpoint("phi3"), tmp_path / "source", name, b"\xc0\x7f")
    variants = _variants(source, SHIPPED)
    events = _build(run_worker, source, variants, tmp_path / "nan")
    failed = _of("failed", "error", events)
    assert set(failed) == {"w8a16", "w4a16"}  # the others hold what was allowed
    assert set(failed.values()) == {f"{name} holds NaN or infinity, for which there are no codes"}
    weights = source / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    events = _build(run_worker, source, variants, tmp_path / "short")
    assert set(_of("failed", "error", events)) == set(SHIPPED)


@pytest.fixture(scope="module")
def embedded(run_worker: RunWorker, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of the embedded model's artifacts."""
    folder = tmp_path_factory.mktemp("embedded")
    _build(run_worker, EMBEDDED, _variants(EMBEDDED, SHIPPED), folder)
    return folder


def test_quality_orders_by_precision(embedded: Path, run_worker: RunWorker, tmp_path: Path) -> None:
    (tmp_path / "reference").mkdir()
    request = {
        "verb": "reference",
        "source": str(EMBEDDED),
        "architecture": architecture(EMBEDDED).to_json(),
        "text": str(EMBEDDED / "heldout.txt"),
        "windows": 8,
        "window_tokens": 128,
        "long": False,
        "threads": 2,
        "max_bytes": 1 << 30,
        "output": str(tmp_path / "reference"),
        "item": "reference",
    }
    run_worker("pytorch", request)
    judged = run_worker(
        "pytorch",
        {
            "verb": "judge",
            "reference": str(tmp_path / "reference"),
            "decode_tokens": 16,
            "threads": 2,
            "adaptive": False,
            "items": [
                {"item": name, "folder": str(embedded / name), "limits": {}} for name in SHIPPED
            ],
        },
    )
    quality = {item: result["quality"] for item, result in _of("item", "result", judged).items()}
    kl = [quality[name]["kl_mean"] for name in SHIPPED]
    assert kl[0] < 1e-6
    assert kl[0] <= kl[1] < kl[2] < kl[3] < 0.12
    assert all(values["cached_decoding_kl"] < 1e-6 for values in quality.values())


def test_generated_text_continues_the_prompt(embedded: Path, run_worker: RunWorker) -> None:
    request = {
        "verb": "generate",
        "system": None,
        "template": None,
        "raw": True,
        "folder": str(embedded / "fp16"),
        "prompt": "import os\nimport ",
        "max_tokens": 24,
        "threads": 2,
    }
    events = run_worker("pytorch", request)
    pieces = [event["text"] for event in events if event["event"] == "text"]
    assert len(pieces) > 8  # streamed
    text = "".join(pieces)
    assert "import" in text
    assert "\n" in text
