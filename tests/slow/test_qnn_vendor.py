"""QNN graphs hold what onnxruntime-genai's builder makes; Qualcomm's compiler and simulator take
them, and onnxruntime-genai runs them."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from conftest import CommandLine
from phibuild.backends.qnn.socs import SOCS
from support.kinds import some
from support.told import told
from support.written_build import RunWorker, build

pytestmark = pytest.mark.slow

TESTS = Path(__file__).resolve().parents[1]
SUPPORT = TESTS / "support"
EMBEDDED = TESTS.parent / "phibuild" / "data" / "phi3-tiny-trained"
NOTE = "its graphs on the CPU, which its binaries match in a simulator"
# Longer than a part of a prompt (64 tokens), and one that ends before a part does.
PROMPTS = ("the quick brown fox jumps over the lazy dog and " * 8, "def fibonacci(n):\n")
# What Transformers makes of the same, greedily.
ORIGINAL = """
import json, sys
from phibuild.worker.lean import import_lean
import_lean()
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
asked = json.load(sys.stdin)
tokenizer = AutoTokenizer.from_pretrained(asked["source"])
model = AutoModelForCausalLM.from_pretrained(asked["source"], dtype=torch.float32).eval()
made = []
for text in asked["texts"]:
    prompt = tokenizer(text, return_tensors="pt").input_ids
    with torch.no_grad():
        out = model.generate(prompt, max_new_tokens=asked["tokens"], do_sample=False)[0].tolist()
    made.append([prompt[0].tolist(), out[prompt.shape[1] :]])
print("RESULT " + json.dumps(made))
"""


@pytest.mark.parametrize("shape", some(["phi3", "phi4mini", "phi4"], ["phi4mini"]))
def test_weights_are_those_of_the_builder(
    shape: str,
    checkpoint: Callable[..., Path],
    run_worker: RunWorker,
    toolchain_python: Callable[[str], Path],
    tmp_path: Path,
) -> None:
    """Of its fp16 graph: codes and scales of both graphs' products, norms, the embedding."""
    source = checkpoint(shape, dtype="fp16" if shape == "phi4" else "bf16", layers=2)
    names = ["int4-b32", "int8"] if shape == "phi3" else ["int4-b32"]
    events = build("qnn", source, tmp_path, names, run_worker, form="onnx", context=128)
    assert [event["item"] for event in events if event["event"] == "item"] == names
    for name in names:
        precision, vendors = name.split("-")[0], tmp_path / f"vendor-{name}"
        command = ["-m", "onnxruntime_genai.models.builder", "-m", str(source), "-o", str(vendors)]
        command += ["-p", precision, "-e", "webgpu", "-c", str(tmp_path / "cache")]
        python = str(toolchain_python("ort_genai"))
        done = subprocess.run([python, *command], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr[-4000:]
        script = str(SUPPORT / "qnn_compare.py")
        python = str(toolchain_python("qnn"))
        same = told([python, script, str(tmp_path / name), str(vendors)])
        # Codes and scales of five products a layer and of the head, two norms a layer and the last.
        each = 2 * (5 * 2 + 2) + 2 + 1
        looked_up = 2 if shape == "phi4mini" and precision == "int4" else 1
        assert same == {"prompt": each, "token": each, "inputs": looked_up}


@pytest.mark.parametrize(("shape", "soc"), [("phi3", "sc8380xp"), ("phi4mini", "sm8750")])
def test_binaries_are_their_graphs(
    shape: str,
    soc: str,
    checkpoint: Callable[..., Path],
    run_worker: RunWorker,
    tmp_path: Path,
    every: bool,
) -> None:
    """In Qualcomm's simulator, a part of a prompt and 64 tokens through the cache; with heads that
    share keys and a partial rotation, for which its own attention is wrong."""
    source = checkpoint(shape, layers=2 if every or shape == "phi4mini" else 1)
    options = {"soc": soc, "context": 256, "gate_tokens": 64}
    events = build("qnn", source, tmp_path, ["int4-b32"], run_worker, **options)
    assert any(event["event"] == "item" for event in events), events
    folder = tmp_path / "int4-b32"
    found = json.loads((folder / "npu.json").read_text())
    gate = found["gate"]
    assert (gate["prompt_tokens"], gate["cached_tokens"]) == (64, 64)
    assert 0 < gate["prompt_kl"] < 0.01
    assert 0 < gate["cached_kl"] < 0.01
    assert set(found["off_npu"]) == {"inputs", "cache"}
    names = {path.name for path in folder.iterdir()}
    assert {"prompt-layers-0_qnn.bin", "prompt-head_qnn.bin", "inputs.data"} <= names
    assert not [name for name in names if name.startswith(("layers", "head", "graphs"))]


def test_binaries_for_each_chip(
    checkpoint: Callable[..., Path], run_worker: RunWorker, tmp_path: Path, every: bool
) -> None:
    """The compiler takes every chip that the backend knows, and makes each its own program."""
    source, programs = checkpoint("phi3", layers=1), dict[str, bytes]()
    chips = list(SOCS) if every else ["sm8550", "sm8850"]  # the others are other tests', too
    for soc in chips:
        options = {"soc": soc, "context": 128, "gate_tokens": 0}
        events = build("qnn", source, tmp_path / soc, ["int4-b32"], run_worker, **options)
        assert any(event["event"] == "item" for event in events), events
        programs[soc] = (tmp_path / soc / "int4-b32" / "prompt-layers-0_qnn.bin").read_bytes()
    assert len(set(programs.values())) == len(chips)


def test_the_gate_tells_another_model(
    checkpoint: Callable[..., Path],
    run_worker: RunWorker,
    toolchain_python: Callable[[str], Path],
    tmp_path: Path,
) -> None:
    folders = []
    for seed in (1, 2):
        source = checkpoint("phi4mini", layers=1, seed=seed)
        output = tmp_path / str(seed)
        build("qnn", source, output, ["int4-b32"], run_worker, form="onnx", context=128)
        folders.append(str(output / "int4-b32"))
    script = [str(toolchain_python("qnn")), str(SUPPORT / "qnn_gate.py"), str(TESTS.parent)]
    assert told([*script, folders[0], folders[0]])["cached_kl"] == 0
    done = subprocess.run([*script, *folders], capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert "the binaries are another model than their graphs" in done.stderr


def test_onnxruntime_genai_runs_it_on_the_npu(
    run_worker: RunWorker, toolchain_python: Callable[[str], Path], tmp_path: Path
) -> None:
    """By the artifact's own configuration, in the simulator: the ids that Transformers makes."""
    build("qnn", EMBEDDED, tmp_path, ["int8"], run_worker, form="onnx", context=256)
    # A device knows its chip; the simulator has to be told.
    path = tmp_path / "int8" / "genai_config.json"
    config = json.loads(path.read_text())
    chosen = 0
    for entry in config["model"]["decoder"]["pipeline"]:
        for stage in entry.values():
            for provider in stage.get("session_options", {}).get("provider_options", ()):
                provider["QNN"]["soc_model"] = "60"
                chosen += 1
    assert chosen == 2 * 2  # of a prompt and of a token, layers and head
    path.write_text(json.dumps(config))
    asked = {"source": str(EMBEDDED), "texts": PROMPTS, "tokens": 6}
    original = told([str(toolchain_python("pytorch")), "-c", ORIGINAL], asked)
    assert len(original[0][0]) > 64 > len(original[1][0])
    for ids, expected in original:
        request = {"folder": str(tmp_path / "int8"), "ids": ids, "tokens": len(expected)}
        command = [str(toolchain_python("qnn")), str(SUPPORT / "qnn_npu.py")]
        assert told(command, request) == expected


def test_binaries_are_judged_by_their_graphs(phibuild: CommandLine) -> None:
    """Which are built for that; a binary that is opened here says what can be."""
    recipe = phibuild.folder / "recipes" / "npu.yaml"
    recipe.parent.mkdir()
    recipe.write_text("devices: {copilot_pc_snapdragon: {qnn: {int4: {context: 256}}}}\n")
    words = ("evaluation.windows=2", "evaluation.window_tokens=128", "gates.kl=null")
    done = phibuild("build", "recipe=npu", *words)
    assert done.returncode == 0, done.stdout + done.stderr
    (cell,) = phibuild.report("npu")["cells"]
    assert cell["judged"] == {"how": "substitute", "note": NOTE}
    assert 0 < cell["quality"]["kl_mean"] < 0.1
    said = phibuild("run", cell["id"], "def ", "--max-tokens", "4")
    assert said.returncode != 0
    assert "context binaries open on the Snapdragon that they were made for alone" in said.stderr
    again = phibuild("build", "recipe=npu", *words)
    assert again.returncode == 0
    assert "cached" in phibuild("plan", "recipe=npu", *words).stdout
