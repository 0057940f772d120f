"""The judge's runtime, with few weights in memory, computes what Transformers' whole model does."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from phibuild.worker.architecture import read_architecture
from support import warm
from support.kinds import some

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]
SHAPES: dict[str, dict[str, Any]] = {
    "phi3": {"sliding_window": 12},
    "phi4mini": {},
    "phi4": {},
}
_QUANTIZED = {"dtype": "bfloat16", "group_size": 64}
VARIANTS: dict[str, dict[str, Any]] = {
    "fp32": {"dtype": "float32"},
    "fp16": {"dtype": "float16"},
    "w8": {**_QUANTIZED, "bits": 8, "symmetric": True},
    "w8-asym": {**_QUANTIZED, "bits": 8, "symmetric": False},
    "w4": {**_QUANTIZED, "bits": 4, "symmetric": True},
    "mixed": {
        **_QUANTIZED,
        "bits": 4,
        "symmetric": True,
        "tensor_types": {
            "model.layers.0.self_attn.qkv_proj.weight": "BF16",
            "model.layers.0.mlp.down_proj.weight": "w8",
            "model.layers.1.self_attn.o_proj.weight": "w4g32",
        },
    },
    "w4-asym": {**_QUANTIZED, "bits": 4, "symmetric": False, "dtype": "float16"},
}
COMPARE = """
import json, sys
from pathlib import Path
import numpy as np
from phibuild.worker.lean import import_lean
import_lean()
import torch
from phibuild.backends.pytorch import layerwise, memory, quantized_rows, runtime
from transformers import AutoModelForCausalLM, CompressedTensorsConfig, DynamicCache

quantized_rows.DEQUANTIZED_ELEMENTS = 1 << 15  # several chunks to a tensor
for folder in json.load(sys.stdin):
    config = json.loads(Path(folder, "config.json").read_text())
    options = {"dtype": getattr(torch, config["torch_dtype"])}
    groups = config.get("quantization_config", {}).get("config_groups", {})
    if len(groups) == 1:
        options["quantization_config"] = CompressedTensorsConfig(dequantize=True)
    whole = AutoModelForCausalLM.from_pretrained(folder, **options)
    if len(groups) > 1:  # Transformers 5.23 dequantizes all by the type of one
        whole(torch.tensor([[1]]))  # the first pass decompresses
        loaded = whole.state_dict()
        del whole.config.quantization_config
        whole = AutoModelForCausalLM.from_config(whole.config)
        whole.load_state_dict({name: loaded[name] for name in whole.state_dict()})
    whole = whole.float()
    vocabulary = config["vocab_size"]
    ids = np.random.default_rng(0).integers(0, vocabulary, 40)
    cache = DynamicCache()

    def expected(ids):
        with torch.inference_mode():
            output = whole(torch.from_numpy(ids)[None], past_key_values=cache, use_cache=True)
        return output.logits[0].numpy()

    steps = [ids[:32], *ids[32:, None]]
    wanted = [expected(step) for step in steps]
    layer_bytes = 4 * sum(p.numel() for p in whole.model.layers[0].parameters())
    # Nothing kept and lm_head in parts; two layers kept; everything.
    for budget, elements in ((0, 1 << 17), (2 * layer_bytes + 5, 1 << 24), (1 << 31, 1 << 17)):
        layerwise.HEAD_ELEMENTS = elements
        ours = runtime.load(Path(folder), 2, budget)
        model = ours._model
        with torch.inference_mode():
            for number, layer in enumerate(model.layers()):
                theirs = whole.model.layers[number].state_dict()
                for name, tensor in layer.state_dict().items():
                    assert torch.equal(tensor, theirs[name]), (folder, number, name)
            head = torch.cat([rows.clone() for _, rows in model.head()])
            assert torch.equal(head, whole.lm_head.weight), folder
            embedding = model.embed(torch.arange(vocabulary))
            assert torch.equal(embedding, whole.model.embed_tokens.weight), folder
        for _ in range(2):  # a new text empties the cache
            got = [ours.logits(steps[0]), *map(ours.extend, steps[1:])]
        for mine, theirs in zip(got, wanted, strict=True):
            np.testing.assert_allclose(mine, theirs, rtol=0, atol=1e-5, err_msg=folder)
"""


@pytest.mark.parametrize("shape", some(SHAPES, ["phi4mini"]))
def test_same_weights_and_logits_whatever_is_kept(
    shape: str,
    checkpoint: Callable[..., Path],
    run_worker: Callable[[str, dict[str, Any]], list[dict[str, Any]]],
    toolchain_python: Callable[[str], Path],
    tmp_path: Path,
    every: bool,
) -> None:
    source = checkpoint(shape, **SHAPES[shape])
    # Types are the same for all shapes.
    kept = VARIANTS if every or shape == "phi3" else ("fp32", "w4", "mixed")
    config = json.loads((source / "config.json").read_text(encoding="utf-8"))
    items = []
    for name in kept:
        options = VARIANTS[name]
        (tmp_path / name).mkdir()
        variant = {
            "backend": "pytorch", "precision": "int4", "name": name, "format": "safetensors",
            "options": options,
        }  # fmt: skip
        items.append({"item": name, "variant": variant, "output": str(tmp_path / name)})
    request = {
        "verb": "build",
        "source": str(source),
        "architecture": read_architecture(config).to_json(),
        "model": "tiny",
        "threads": 2,
        "items": items,
    }
    events = run_worker("pytorch", request)
    assert {event["item"] for event in events if event["event"] == "item"} == set(kept)
    done = warm.run(
        [toolchain_python("pytorch"), "-c", COMPARE],
        input=json.dumps([item["output"] for item in items]),
        env={**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"},
    )
    assert done.returncode == 0, done.stderr[-4000:]
