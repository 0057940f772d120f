"""LiteRT models hold what ai-edge-quantizer makes, and LiteRT-LM runs the bundles."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from phibuild.worker.safetensors import read_checkpoint
from support.kinds import some
from support.stops import end_at
from support.told import told
from support.written_build import OPTIONS, RunWorker, build

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]
SUPPORT = ROOT / "tests" / "support"
EMBEDDED = ROOT / "phibuild" / "data" / "phi3-tiny-trained"
TEXTS = ["def main():\n    return 1\n", "Hello, world! 12345", "naïve café — 你好 🙂", "<|end|>x"]
MESSAGES = [
    {"role": "system", "content": "Be\n brief. "},
    {"role": "user", "content": " Hi <b>\n"},
    {"role": "assistant", "content": "Yes?"},
    {"role": "user", "content": "Why is the sky blue?"},
]
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
rendered = tokenizer.apply_chat_template(
    asked["messages"], tokenize=False, add_generation_prompt=True
)
model = AutoModelForCausalLM.from_pretrained(asked["source"], dtype=torch.float32).eval()
prompt = tokenizer(asked["prompt"], add_special_tokens=False, return_tensors="pt")
with torch.no_grad():
    out = model.generate(**prompt, max_new_tokens=asked["tokens"], do_sample=False)[0]
said = out[prompt.input_ids.shape[1] :].tolist()
stops = model.generation_config.eos_token_id
stops = sorted(stops if isinstance(stops, list) else [stops])
stopped = bool(said) and said[-1] in stops
said = tokenizer.decode(said[:-1] if stopped else said)
answer = {"ids": ids, "stops": stops, "rendered": rendered, "said": said, "stopped": stopped}
print(json.dumps(answer))
"""


@pytest.mark.parametrize(
    ("shape", "dtype"),
    some(
        product(("phi3", "phi4mini", "phi4"), ("bf16", "fp32")),
        [("phi3", "bf16"), ("phi4mini", "fp32")],
    ),
)
def test_weights_are_those_of_the_vendors_quantizer(
    shape: str,
    dtype: str,
    checkpoint: Callable[..., Path],
    run_worker: RunWorker,
    vendor_python: Callable[[str], Path],
    tmp_path: Path,
) -> None:
    source = checkpoint(shape, dtype=dtype, layers=2)
    names = list(OPTIONS)
    events = build("litert", source, tmp_path, names, run_worker, container="tflite")
    assert [event["item"] for event in events if event["event"] == "item"] == names
    done = subprocess.run(
        [str(vendor_python("litert")), str(SUPPORT / "litert_vendor.py"), str(tmp_path)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    compared = json.loads(done.stdout.splitlines()[-1])
    assert set(compared) == set(names) - {"fp32"}
    for name, result in compared.items():
        assert not result["differ"], name
        assert result["weights"] == 2 * 6 + 2 + (shape != "phi4mini")


def test_litert_lm_does_as_transformers(
    run_worker: RunWorker,
    vendor_python: Callable[[str], Path],
    toolchain_python: Callable[[str], Path],
    checkpoint: Callable[..., Path],
    tmp_path: Path,
) -> None:
    """Ids, stops, conversations, and text: of a trained model up to where it stops."""
    sources = {
        "phi3": end_at(".", tmp_path / "stops"),
        "phi4mini": checkpoint("phi4mini"),
        "phi4": checkpoint("phi4"),
    }
    for shape, source in sources.items():
        build("litert", source, tmp_path / shape, ["fp32"], run_worker)
        asked: dict[str, Any] = {
            "source": str(source),
            "bundle": str(tmp_path / shape / "fp32" / "model.litertlm"),
            "texts": TEXTS,
            "messages": MESSAGES,
            "prompt": "the quick brown fox jumps over the lazy dog and",
            "tokens": 24,
        }
        expected = told([str(toolchain_python("pytorch")), "-c", ORIGINAL], asked)
        assert expected.pop("stopped") == (shape == "phi3")
        assert shape != "phi3" or len(expected["said"]) > 20
        found = told([str(vendor_python("litert")), str(SUPPORT / "bundles_vendor.py")], asked)
        assert found == expected, shape


def test_a_block_without_weights_has_a_scale_that_kernels_take(
    checkpoint: Callable[..., Path],
    run_worker: RunWorker,
    vendor_python: Callable[[str], Path],
    tmp_path: Path,
) -> None:
    """The quantizer's own is 0, with which LiteRT does not have XNNPACK run the layer."""
    source = shutil.copytree(checkpoint("phi3", dtype="fp32", layers=2), tmp_path / "source")
    tensor = read_checkpoint(source)["model.layers.0.self_attn.qkv_proj.weight"]
    tensor.path.chmod(0o644)
    stored = np.memmap(tensor.path, np.float32, "r+", tensor.offset, tensor.shape)
    stored[5, :32], stored[7], stored[8, 32:64] = 0, 0, 1e-12
    stored.flush()
    build("litert", source, tmp_path, ["fp32", "int4-b32"], run_worker, container="tflite")
    python = str(vendor_python("litert"))
    subprocess.run([python, str(SUPPORT / "litert_vendor.py"), str(tmp_path)], check=True)
    ours, theirs = tmp_path / "int4-b32" / "model.tflite", tmp_path / "int4-b32.tflite"
    loading = "import sys; from ai_edge_litert.compiled_model import CompiledModel as Model; "
    loading += "Model.from_file(sys.argv[1])"
    for path, taken in ((ours, True), (theirs, False)):
        command = [python, "-c", loading, str(path)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        assert ("unsupported scale value" not in done.stderr) == taken, done.stderr[-2000:]
