"""ExecuTorch programs hold what its own exporter makes, and its own runner runs them."""

from __future__ import annotations

import hashlib
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from support.kinds import some
from support.stops import END, end_at
from support.told import told
from support.written_build import OPTIONS, RunWorker, build

pytestmark = pytest.mark.slow

TESTS = Path(__file__).resolve().parents[1]
SUPPORT = TESTS / "support"
EMBEDDED = TESTS.parent / "phibuild" / "data" / "phi3-tiny-trained"
TEXTS = ["def main():\n    return 1\n", "Hello, world! 12345", "naïve café — 你好 🙂", "<|end|>x"]
PROMPT = "the quick brown fox jumps over the lazy dog and"
# What Transformers makes of the same; greedily, up to a token that ends generation.
ORIGINAL = """
import json, sys
from phibuild.worker.lean import import_lean
import_lean()
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
asked = json.load(sys.stdin)
tokenizer = AutoTokenizer.from_pretrained(asked["source"])
ids = [tokenizer(text, add_special_tokens=False).input_ids for text in asked["texts"]]
model = AutoModelForCausalLM.from_pretrained(asked["source"], dtype=torch.float32).eval()
prompt = tokenizer(asked["prompt"], add_special_tokens=False, return_tensors="pt")
with torch.no_grad():
    out = model.generate(**prompt, max_new_tokens=asked["tokens"], do_sample=False)[0]
stops = model.generation_config.eos_token_id
stops = sorted(stops if isinstance(stops, list) else [stops])
said = out[prompt.input_ids.shape[1] :].tolist()
stopped = said[-1] in stops
said = said[:-1] if stopped else said
whole = tokenizer.decode(prompt.input_ids[0].tolist() + said)
said = whole[len(tokenizer.decode(prompt.input_ids[0])) :]
print("RESULT " + json.dumps({"ids": ids, "stops": stops, "said": said, "stopped": stopped}))
"""
# What the exporter's own reader finds of a program: digests of its named data.
DIGESTS = """
import hashlib, json, sys
from executorch.exir._serialize._program import deserialize_pte_binary
data = deserialize_pte_binary(open(sys.argv[1], "rb").read()).named_data
print("RESULT " + json.dumps([hashlib.sha256(bytes(one)).hexdigest() for one in data.buffers]))
"""


@pytest.mark.parametrize("shape", some(["phi3", "phi4mini", "phi4"], ["phi4mini"]))
def test_weights_are_those_of_the_exporter(
    shape: str,
    checkpoint: Callable[..., Path],
    run_worker: RunWorker,
    vendor_python: Callable[[str], Path],
    tmp_path: Path,
) -> None:
    """All but the last bits of sums, whose order is the processor's: a scale that is found step by
    step can end in another place."""
    source = checkpoint(shape, dtype="fp32" if shape == "phi3" else "bf16", layers=2)
    names = [name for name in OPTIONS if name != "fp16"]
    events = build("executorch", source, tmp_path, names, run_worker)
    assert [event["item"] for event in events if event["event"] == "item"] == names
    script = str(SUPPORT / "executorch_vendor.py")
    compared = told([str(vendor_python("executorch")), script, str(source), str(tmp_path)])
    assert set(compared) == set(names)
    for name, result in compared.items():
        assert result["weights"] == 2 * 7 + 2, name
        assert result["typical"] <= (0 if name == "fp32" else 5e-7), name
        assert result["scales"] < (1e-2 if name != "fp32" else 1e-30), name
        assert result["numbers"] <= (0 if name == "fp32" else 2e-3), name


@pytest.mark.every
def test_an_export_has_the_same_data(
    run_worker: RunWorker,
    checkpoint: Callable[..., Path],
    vendor_python: Callable[[str], Path],
    tmp_path: Path,
) -> None:
    """The exporter names data by its digest. What else is here: 1 / width, rotate_half."""
    source = checkpoint("phi4mini", layers=1)
    build("executorch", source, tmp_path, ["fp32"], run_worker)
    python, exported = str(vendor_python("executorch")), tmp_path / "exported"
    script = str(TESTS / "vendors" / "executorch_export.py")
    command = [python, script, str(source), "fp32", str(exported), "256"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-4000:]
    theirs, ours = (
        set(told([python, "-c", DIGESTS, str(folder / "model.pte")]))
        for folder in (exported, tmp_path / "fp32")
    )
    assert len(theirs) == 7 + 1
    assert theirs < ours
    assert len(ours - theirs) == 2


def test_its_runner_does_as_transformers(
    run_worker: RunWorker,
    vendor_python: Callable[[str], Path],
    toolchain_python: Callable[[str], Path],
    checkpoint: Callable[..., Path],
    tmp_path: Path,
    every: bool,
) -> None:
    """Ids, stops and text: of a trained model up to where it stops."""
    sources = {
        "phi3": end_at(".", tmp_path / "stops"),
        "phi4mini": checkpoint("phi4mini"),
    } | ({"phi4": checkpoint("phi4")} if every else {})
    for shape, source in sources.items():
        build("executorch", source, tmp_path / shape, ["fp32"], run_worker)
        asked = {
            "source": str(source),
            "folder": str(tmp_path / shape / "fp32"),
            "texts": TEXTS,
            "prompt": PROMPT,
            # The runner says a token at a time, and random models not even whole characters.
            "tokens": 24 if shape == "phi3" else 1,
            "speaks": shape == "phi3",
        }
        expected = told([str(toolchain_python("pytorch")), "-c", ORIGINAL], asked)
        assert expected.pop("stopped") == (shape == "phi3")
        assert shape != "phi3" or len(expected["said"]) > 20
        script = str(SUPPORT / "executorch_runner.py")
        found = told([str(vendor_python("executorch")), script], asked)
        if shape == "phi3":
            expected["said"] += END  # the runner says what it stops at too
        else:
            del expected["said"]
        assert found == expected, shape


def test_programs_are_the_same_twice(
    run_worker: RunWorker, checkpoint: Callable[..., Path], tmp_path: Path
) -> None:
    source = checkpoint("phi3", layers=2)
    digests = []
    for folder in ("once", "twice"):
        build("executorch", source, tmp_path / folder, ["int4-b32"], run_worker)
        program = tmp_path / folder / "int4-b32" / "model.pte"
        digests.append(hashlib.sha256(program.read_bytes()).hexdigest())
    assert digests[0] == digests[1]
