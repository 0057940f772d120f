"""OpenVINO artifacts are what optimum-intel exports: graph, constants, kernels, logits."""

from __future__ import annotations

import json
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from phibuild.architecture import read_architecture
from phibuild.backends.openvino.spec import SPEC
from support.openvino_build import OPTIONS, RunWorker, variants

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
# What devices get unless a recipe says otherwise: of every checkpoint.
DEFAULTS = ("int4-asym-g64", "int4-sym-g128", "int8-asym", "fp16", "fp32")
EVERY_OPTION = "phi3"  # the checkpoint that all variants are built of
LAYERS = 2
LOGITS = ("int4-asym-g64", "int4-sym-g128", "int8-asym", "fp32")
INTERFACES = ("int4-asym-g64", "fp16", "fp32")
KERNELS = ("int4-asym-g64", "int8-asym", "fp32")
# Text through both tokenizers, and text from openvino-genai, by one process for a checkpoint.
USE = """
import json, sys
from pathlib import Path
from phibuild.backends.openvino.worker import load
import openvino as ov, openvino_tokenizers
from transformers import AutoTokenizer
source, folder, texts, generating = json.load(sys.stdin)
tokenizer = AutoTokenizer.from_pretrained(source)
compiled = [ov.Core().compile_model(f"{folder}/fp32/openvino_{n}.xml", "CPU")
            for n in ("tokenizer", "detokenizer")]
tokens = []
for text in texts:
    ids = compiled[0]([text])["input_ids"]
    tokens.append([tokenizer(text)["input_ids"], ids[0].tolist(),
                   tokenizer.decode(ids[0], skip_special_tokens=True),
                   str(compiled[1](ids)["string_output"][0])])
generated = {name: list(load(Path(folder, name), 2).generate("def ", 8)) for name in generating}
print(json.dumps({"tokens": tokens, "generated": generated}))
"""


@dataclass(frozen=True)
class Pair:
    """Artifacts of one checkpoint: `ours`/<variant> and `theirs`/<variant>, our inspections, and
    the answers of openvino_compare.py to `_questions`."""

    source: Path
    ours: Path
    names: tuple[str, ...]
    results: dict[str, dict[str, Any]]
    answers: dict[tuple[str, str, str], dict[str, Any]]
    python: Path

    def compare(self, what: str, variant: str, other: str | None = None) -> Any:
        """Return the answer about our `variant`, and the vendor's or `other` IR."""
        if variant not in self.names:
            pytest.skip(f"of {EVERY_OPTION} alone")
        answer = self.answers[what, f"ours/{variant}", other or f"theirs/{variant}"]
        assert "error" not in answer, answer["error"]
        return answer["answer"]


def _names(which: str) -> tuple[str, ...]:
    return tuple(OPTIONS) if which == EVERY_OPTION else DEFAULTS


def _questions(names: tuple[str, ...]) -> list[tuple[str, str, str]]:
    asked = {"graph": names, "logits": LOGITS, "interface": INTERFACES, "runtime": KERNELS}
    return [
        *((what, f"ours/{name}", f"theirs/{name}") for what in asked for name in asked[what]),
        ("logits", "ours/fp16", "theirs/fp32"),
        ("logits", "theirs/fp16", "theirs/fp32"),
    ]


def _answer(command: list[str | Path], stdin: Any) -> Any:
    done = subprocess.run(
        command,
        input=json.dumps(stdin),
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(done.stdout.splitlines()[-1])


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
