"""OpenVINO artifacts are what optimum-intel exports: graph, constants, kernels, logits."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from phibuild.architecture import read_architecture
from phibuild.backends.openvino.spec import SPEC, OpenVinoOptions
from phibuild.schema import Device, Precision, Variant

pytestmark = pytest.mark.slow

RunWorker = Callable[[str, dict[str, Any]], list[dict[str, Any]]]
SUPPORT = Path(__file__).resolve().parents[1] / "support"
ROOT = Path(__file__).resolve().parents[2]

OPTIONS: dict[str, tuple[Precision, dict[str, Any]]] = {
    "int4-asym-g64": ("int4", {}),
    "int4-asym-g32": ("int4", {"group_size": 32}),
    "int4-sym-g128": ("int4", {"target": "npu"}),
    "int4-sym-cw": ("int4", {"mode": "int4_sym", "group_size": -1}),
    "int8-asym": ("int8", {}),
    "int8-sym": ("int8", {"mode": "int8_sym"}),
    "fp16": ("fp16", {}),
    "fp32": ("fp32", {}),
}
# original_max_position_embeddings of 64 puts the switch from short to long rope factors within
# the reach of a test; the window hides keys from queries, as Phi-3-mini-4k's does.
CHECKPOINTS: dict[str, tuple[str, dict[str, Any]]] = {
    "phi3": ("phi3", {"original_max_position_embeddings": 64, "max_position_embeddings": 1024}),
    "phi3-4k": (
        "phi3",
        {
            "rope_scaling": None,
            "sliding_window": 24,
            "max_position_embeddings": 4096,
            "shards": 3,
            "dtype": "fp32",
        },
    ),
    "phi4mini": (
        "phi4mini",
        {"original_max_position_embeddings": 64, "max_position_embeddings": 1024},
    ),
    "phi4": ("phi4", {"shards": 2}),
    "phi4mini-fp16": ("phi4mini", {"dtype": "fp16"}),
}
TOKENS = """
import json, sys
import openvino as ov, openvino_tokenizers
from transformers import AutoTokenizer
source, folder, texts = json.load(sys.stdin)
tokenizer = AutoTokenizer.from_pretrained(source)
compiled = [ov.Core().compile_model(f"{folder}/openvino_{n}.xml", "CPU")
            for n in ("tokenizer", "detokenizer")]
answer = []
for text in texts:
    ids = compiled[0]([text])["input_ids"]
    answer.append([tokenizer(text)["input_ids"], ids[0].tolist(),
                   tokenizer.decode(ids[0], skip_special_tokens=True),
                   str(compiled[1](ids)["string_output"][0])])
print(json.dumps(answer))
"""


@dataclass(frozen=True)
class Pair:
    """Artifacts of one checkpoint: `ours`/<variant> and `theirs`/<variant>, and our inspections."""

    source: Path
    ours: Path
    theirs: Path
    results: dict[str, dict[str, Any]]
    python: Path

    def compare(self, what: str, variant: str, other: str | None = None) -> Any:
        return self.compare_files(
            what,
            self.ours / variant / "openvino_model.xml",
            self.theirs / (other or variant) / "openvino_model.xml",
        )

    def compare_files(self, what: str, ours: Path, theirs: Path) -> Any:
        command = [self.python, SUPPORT / "openvino_compare.py", what, ours, theirs]
        return _answer([str(word) for word in command])


def _answer(command: list[str], stdin: str | None = None) -> Any:
    done = subprocess.run(command, input=stdin, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(done.stdout.splitlines()[-1])


def _variants(source: Path) -> dict[str, Variant]:
    arch = read_architecture(json.loads((source / "config.json").read_text()))
    device = Device.model_validate(
        {
            "name": "pc",
            "title": "PC",
            "class": "copilot_pc",
            "memory": "16 GiB",
            "budget": "8 GiB",
            "accelerators": ["cpu", "openvino_gpu", "openvino_npu"],
            "context_length": 4096,
            "sources": {},
        }
    )
    variants = {}
    for name, (precision, options) in OPTIONS.items():
        variant = SPEC.variant(precision, OpenVinoOptions(**options), device, arch)
        assert isinstance(variant, Variant)
        assert variant.name == name
        variants[name] = variant
    return variants


def _build(
    source: Path, output: Path, names: list[str], run_worker: RunWorker
) -> list[dict[str, Any]]:
    arch = read_architecture(json.loads((source / "config.json").read_text()))
    variants = _variants(source)
    items = []
    for name in names:
        (output / name).mkdir(parents=True)
        items.append(
            {"item": name, "variant": variants[name].model_dump(), "output": str(output / name)}
        )
    return run_worker(
        "openvino",
        {
            "verb": "build",
            "source": str(source),
            "architecture": arch.to_json(),
            "model": "test",
            "threads": 2,
            "items": items,
        },
    )


@pytest.fixture(scope="module", params=list(CHECKPOINTS))
def pair(
    request: pytest.FixtureRequest,
    checkpoint: Callable[..., Path],
    run_worker: RunWorker,
    toolchain_python: Callable[[str], Path],
    vendor_python: Callable[[str], Path],
    tmp_path_factory: pytest.TempPathFactory,
) -> Pair:
    shape, arguments = CHECKPOINTS[request.param]
    source = checkpoint(shape, layers=2, **arguments)
    folder = tmp_path_factory.mktemp("openvino")
    ours, theirs = folder / "ours", folder / "theirs"
    events = _build(source, ours, list(OPTIONS), run_worker)
    results = {event["item"]: event["result"] for event in events if event["event"] == "item"}
    assert set(results) == set(OPTIONS), [e for e in events if e["event"] == "failed"]
    vendor = [str(vendor_python("openvino")), str(SUPPORT / "openvino_vendor.py")]
    done = subprocess.run(
        [*vendor, str(source), str(theirs)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return Pair(source, ours, theirs, results, toolchain_python("openvino"))


@pytest.mark.parametrize("variant", OPTIONS)
def test_graph_and_constants_are_the_vendor_s(pair: Pair, variant: str) -> None:
    assert pair.compare("graph", variant) == []


@pytest.mark.parametrize("variant", ["int4-asym-g64", "int4-sym-g128", "int8-asym", "fp32"])
def test_logits_are_the_vendor_s_in_one_pass_and_step_by_step(pair: Pair, variant: str) -> None:
    gaps = pair.compare("logits", variant)
    assert max(gaps.values()) < 1e-4, gaps


def test_fp16_is_nearer_to_fp32_than_the_vendor_s(pair: Pair) -> None:
    """optimum-intel compresses the rope tables to fp16 as well: angles are off, the more so the
    larger the position."""
    ours = pair.compare("logits", "fp16", "fp32")
    theirs = pair.compare_files(
        "logits",
        pair.theirs / "fp16" / "openvino_model.xml",
        pair.theirs / "fp32" / "openvino_model.xml",
    )
    assert max(ours.values()) < 5e-3  # fp32 weights lose bits; bf16 ones hardly any
    assert max(ours.values()) <= max(theirs.values())


@pytest.mark.parametrize("variant", ["int4-asym-g64", "fp16", "fp32"])
def test_interface_is_the_vendor_s(pair: Pair, variant: str) -> None:
    ours, theirs = pair.compare("interface", variant)
    assert ours == theirs


@pytest.mark.parametrize("variant", ["int4-asym-g64", "int8-asym", "fp32"])
def test_cpu_plugin_makes_the_same_kernels(pair: Pair, variant: str) -> None:
    ours, theirs = (
        {kind: count for kind, count in counts.items() if kind != "Const"}
        for counts in pair.compare("runtime", variant)
    )
    assert ours == theirs
    layers = 2
    assert ours["RMS"] == 2 * layers + 1
    assert ours["RoPE"] == 2 * layers
    assert ours["ScaledDotProductAttention"] == layers  # with the KV cache in it
    assert ours["MemoryInput"] == 2 * layers


def test_artifacts_hold_what_the_spec_promises(pair: Pair) -> None:
    arch = read_architecture(json.loads((pair.source / "config.json").read_text()))
    for name, variant in _variants(pair.source).items():
        layout = SPEC.layout(arch, variant)
        types: dict[str, int] = {}
        for tensor in layout:
            types[tensor.kind] = types.get(tensor.kind, 0) + tensor.parameters
        assert pair.results[name]["types"] == types, name
        assert pair.results[name]["weight_bytes"] == sum(tensor.nbytes for tensor in layout), name


def test_tokenizer_models_are_the_tokenizer(pair: Pair) -> None:
    texts = ["def main():\n    return 1\n", "Hello, world! 12345", "naïve café — 你好 🙂"]
    stdin = json.dumps([str(pair.source), str(pair.ours / "fp32"), texts])
    for expected, ids, expected_text, text in _answer([str(pair.python), "-c", TOKENS], stdin):
        assert ids == expected
        assert text == expected_text


def test_genai_generates(pair: Pair, run_worker: RunWorker) -> None:
    for variant in ("int4-asym-g64", "int8-asym", "fp16"):
        request = {
            "verb": "generate",
            "folder": str(pair.ours / variant),
            "prompt": "def ",
            "max_tokens": 8,
            "threads": 2,
        }
        events = run_worker("openvino", request)
        assert any(event["event"] == "text" and event["text"] for event in events), variant


def test_embedded_model_continues_code(run_worker: RunWorker, tmp_path: Path) -> None:
    source = ROOT / "phibuild" / "data" / "phi3-tiny-trained"
    events = _build(source, tmp_path, ["int8-asym"], run_worker)
    assert [event["event"] for event in events if event["event"] != "stage"] == ["item", "end"]
    request = {
        "verb": "generate",
        "folder": str(tmp_path / "int8-asym"),
        "prompt": "    def __init__(self",
        "max_tokens": 24,
        "threads": 2,
    }
    text = "".join(e["text"] for e in run_worker("openvino", request) if e["event"] == "text")
    assert "self" in text


def test_same_bytes_whatever_is_built_before(
    checkpoint: Callable[..., Path], run_worker: RunWorker, tmp_path: Path
) -> None:
    source = checkpoint("phi4mini", layers=2)
    names = list(OPTIONS)
    _build(source, tmp_path / "a", names, run_worker)
    _build(source, tmp_path / "elsewhere" / "b", names[::-1], run_worker)
    for path in sorted((tmp_path / "a").rglob("*.*")):
        twin = tmp_path / "elsewhere" / "b" / path.relative_to(tmp_path / "a")
        assert path.read_bytes() == twin.read_bytes(), path


def test_weights_outside_of_fp16_fail_fp16_alone(
    checkpoint: Callable[..., Path], run_worker: RunWorker, tmp_path: Path
) -> None:
    source = tmp_path / "source"
    source.mkdir()
    for path in checkpoint("phi4", layers=1, dtype="fp32").iterdir():
        (source / path.name).write_bytes(path.read_bytes())
    weights = source / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-4:] = bytes.fromhex("00008847")  # 69632.0, above fp16's 65504
    weights.write_bytes(data)
    events = _build(source, tmp_path / "out", ["fp16", "fp32"], run_worker)
    (failed,) = [event for event in events if event["event"] == "failed"]
    assert failed["item"] == "fp16"
    assert "outside of fp16" in failed["error"]
    assert [event["item"] for event in events if event["event"] == "item"] == ["fp32"]
