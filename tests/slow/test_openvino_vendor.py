"""OpenVINO artifacts are what optimum-intel exports: graph, constants, kernels, logits."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from phibuild.backends.openvino.spec import SPEC
from phibuild.worker.architecture import read_architecture
from support import warm
from support.openvino_build import OPTIONS, RunWorker, build, variants

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]
SUPPORT = ROOT / "tests" / "support"

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
# One shape has all variants; what is particular to the others shows in one of each kind.
KINDS = ("int4-asym-g64", "int8-asym", "fp16", "fp32")
NAMES = {name: tuple(OPTIONS) if name == "phi3" else KINDS for name in CHECKPOINTS}
LAYERS = 2
COMPARED = {
    "graph": tuple(OPTIONS),
    "logits": ("int4-asym-g64", "int4-sym-g128", "int8-asym", "fp32"),
    "interface": ("int4-asym-g64", "fp16", "fp32"),
    "runtime": ("int4-asym-g64", "int8-asym", "fp32"),
}
TEXTS = ["def main():\n    return 1\n", "Hello, world! 12345", "naïve café — 你好 🙂"]
GENERATING = ("int4-asym-g64", "int8-asym", "fp16")
# Text through both tokenizers, and text from openvino-genai, of every checkpoint.
USE = """
import json, sys
from pathlib import Path
from phibuild.backends.openvino.worker import load
import openvino as ov, openvino_tokenizers
from transformers import AutoTokenizer

def use(source, folder, texts, names):
    tokenizer = AutoTokenizer.from_pretrained(source)
    compiled = [ov.Core().compile_model(f"{folder}/fp32/openvino_{n}.xml", "CPU")
                for n in ("tokenizer", "detokenizer")]
    tokens = []
    for text in texts:
        ids = compiled[0]([text])["input_ids"]
        tokens.append([tokenizer(text)["input_ids"], ids[0].tolist(),
                       tokenizer.decode(ids[0], skip_special_tokens=True),
                       str(compiled[1](ids)["string_output"][0])])
    generated = {}
    for name in names:
        runtime = load(Path(folder, name), 2)
        ids = runtime.encode("def ", special=True)
        generated[name] = runtime.decode(list(runtime.tokens(ids, 8)))
    return {"tokens": tokens, "generated": generated}

print(json.dumps([use(*words) for words in json.load(sys.stdin)]))
"""

Question = tuple[str, str, str]


@dataclass(frozen=True)
class Pair:
    """A checkpoint, our inspections of its artifacts, and how they compare with the vendor's."""

    source: Path
    results: dict[str, dict[str, Any]]
    answers: dict[Question, dict[str, Any]]

    def compare(self, what: str, ours: str, theirs: str) -> Any:
        """Return openvino_compare.py's answer about two of `ours`/<variant>, `theirs`/<variant>."""
        answer = self.answers[what, ours, theirs]
        assert "error" not in answer, answer["error"]
        return answer["answer"]


def _questions(names: tuple[str, ...]) -> list[Question]:
    return [
        *(
            (what, f"ours/{name}", f"theirs/{name}")
            for what, compared in COMPARED.items()
            for name in compared
            if name in names
        ),
        ("logits", "ours/fp16", "theirs/fp32"),
        ("logits", "theirs/fp16", "theirs/fp32"),
    ]


def _cases(what: str) -> list[tuple[str, str]]:
    return [(w, name) for w in CHECKPOINTS for name in COMPARED[what] if name in NAMES[w]]


def _run(command: list[str | Path], stdin: Any) -> str:
    """Run a program with JSON as its input; return what it printed."""
    done = warm.run(
        command,
        input=json.dumps(stdin),
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return done.stdout


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("openvino")


@pytest.fixture(scope="module")
def pairs(
    folder: Path,
    checkpoint: Callable[..., Path],
    run_worker: RunWorker,
    toolchain_python: Callable[[str], Path],
    vendor_python: Callable[[str], Path],
) -> dict[str, Pair]:
    """Build and export everything, with one process of the vendor and one that compares."""
    sources, results = {}, {}
    for which, (shape, arguments) in CHECKPOINTS.items():
        sources[which] = checkpoint(shape, layers=LAYERS, **arguments)
        events = build(sources[which], folder / which / "ours", list(NAMES[which]), run_worker)
        results[which] = {e["item"]: e["result"] for e in events if e["event"] == "item"}
        failed = [event for event in events if event["event"] == "failed"]
        assert set(results[which]) == set(NAMES[which]), failed
    _run(
        [vendor_python("openvino"), SUPPORT / "openvino_vendor.py"],
        [[str(sources[w]), str(folder / w / "theirs"), NAMES[w]] for w in CHECKPOINTS],
    )
    asked = [(which, question) for which in CHECKPOINTS for question in _questions(NAMES[which])]
    answers = json.loads(
        _run(
            [toolchain_python("openvino"), SUPPORT / "openvino_compare.py"],
            [
                [what, *(str(folder / which / name / "openvino_model.xml") for name in names)]
                for which, (what, *names) in asked
            ],
        )
    )
    pairs = {which: Pair(sources[which], results[which], {}) for which in CHECKPOINTS}
    for (which, question), answer in zip(asked, answers, strict=True):
        pairs[which].answers[question] = answer
    return pairs


@pytest.fixture(scope="module")
def used(
    pairs: dict[str, Pair], folder: Path, toolchain_python: Callable[[str], Path]
) -> dict[str, dict[str, Any]]:
    """Return what `USE` says of every checkpoint."""
    said = _run(
        [toolchain_python("openvino"), "-c", USE],
        [
            [str(pair.source), str(folder / w / "ours"), TEXTS, GENERATING]
            for w, pair in pairs.items()
        ],
    )
    return dict(zip(pairs, json.loads(said.splitlines()[-1]), strict=True))


@pytest.mark.parametrize(("which", "variant"), _cases("graph"))
def test_graph_and_constants_are_the_vendor_s(
    pairs: dict[str, Pair], which: str, variant: str
) -> None:
    assert pairs[which].compare("graph", f"ours/{variant}", f"theirs/{variant}") == []


def test_integers_are_nncf_s_whatever_the_weights(vendor_python: Callable[[str], Path]) -> None:
    said = _run([vendor_python("openvino"), SUPPORT / "openvino_integers.py"], None)
    count, different = json.loads(said.splitlines()[-1])
    assert count > 1000
    assert different == []


@pytest.mark.parametrize(("which", "variant"), _cases("logits"))
def test_logits_are_the_vendor_s_in_one_pass_and_step_by_step(
    pairs: dict[str, Pair], which: str, variant: str
) -> None:
    gaps = pairs[which].compare("logits", f"ours/{variant}", f"theirs/{variant}")
    assert max(gaps.values()) < 1e-4, gaps


@pytest.mark.parametrize("which", CHECKPOINTS)
def test_fp16_is_nearer_to_fp32_than_the_vendor_s(pairs: dict[str, Pair], which: str) -> None:
    """optimum-intel compresses the rope tables to fp16 as well: angles are off, the more so the
    larger the position."""
    ours = pairs[which].compare("logits", "ours/fp16", "theirs/fp32")
    theirs = pairs[which].compare("logits", "theirs/fp16", "theirs/fp32")
    assert max(ours.values()) < 5e-3  # fp32 weights lose bits; bf16 ones hardly any
    assert max(ours.values()) <= max(theirs.values())


@pytest.mark.parametrize(("which", "variant"), _cases("interface"))
def test_interface_is_the_vendor_s(pairs: dict[str, Pair], which: str, variant: str) -> None:
    ours, theirs = pairs[which].compare("interface", f"ours/{variant}", f"theirs/{variant}")
    assert ours == theirs


@pytest.mark.parametrize(("which", "variant"), _cases("runtime"))
def test_cpu_plugin_makes_the_same_kernels(
    pairs: dict[str, Pair], which: str, variant: str
) -> None:
    answer = pairs[which].compare("runtime", f"ours/{variant}", f"theirs/{variant}")
    ours, theirs = (
        {kind: count for kind, count in counts.items() if kind != "Const"} for counts in answer
    )
    assert ours == theirs
    assert ours["RMS"] == 2 * LAYERS + 1
    assert ours["RoPE"] == 2 * LAYERS
    assert ours["ScaledDotProductAttention"] == LAYERS  # with the KV cache in it
    assert ours["MemoryInput"] == 2 * LAYERS


@pytest.mark.parametrize("which", CHECKPOINTS)
def test_artifacts_hold_what_the_spec_promises(pairs: dict[str, Pair], which: str) -> None:
    pair = pairs[which]
    arch = read_architecture(json.loads((pair.source / "config.json").read_text()))
    chosen = variants(pair.source)
    for name in NAMES[which]:
        layout = SPEC.layout(arch, chosen[name])
        types: dict[str, int] = {}
        for tensor in layout:
            types[tensor.kind] = types.get(tensor.kind, 0) + tensor.parameters
        assert pair.results[name]["types"] == types, name
        assert pair.results[name]["weight_bytes"] == sum(tensor.nbytes for tensor in layout), name


@pytest.mark.parametrize("which", CHECKPOINTS)
def test_tokenizer_models_are_the_tokenizer(used: dict[str, dict[str, Any]], which: str) -> None:
    tokens = used[which]["tokens"]
    assert len(tokens) == len(TEXTS)
    for expected, ids, expected_text, text in tokens:
        assert ids == expected
        assert text == expected_text


@pytest.mark.parametrize("which", CHECKPOINTS)
def test_genai_generates(used: dict[str, dict[str, Any]], which: str) -> None:
    generated = used[which]["generated"]
    assert set(generated) == set(GENERATING)
    assert all(generated.values()), generated
