"""OpenVINO artifacts are what optimum-intel exports: graph, constants, kernels, logits."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from support.openvino_build import OPTIONS, RunWorker, build, variants

from phibuild.architecture import read_architecture
from phibuild.backends.openvino.spec import SPEC

pytestmark = pytest.mark.slow

SUPPORT = Path(__file__).resolve().parents[1] / "support"

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
sys.modules["openvino_telemetry"] = None
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
    events = build(source, ours, list(OPTIONS), run_worker)
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
    for name, variant in variants(pair.source).items():
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
