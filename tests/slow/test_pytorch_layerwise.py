"""What is computed layer by layer equals what Transformers' whole model computes."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from phibuild.worker.requests import CACHE_RANGES
from phibuild.worker.safetensors import read_header
from support import warm
from support.checkpoints import architecture

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]
TEXT = ROOT / "phibuild" / "data" / "phi3-tiny-trained" / "heldout.txt"
# Shape and changes of it, windows, tokens of a window.
CASES: dict[str, tuple[str, dict[str, Any], int, int]] = {
    "phi3": ("phi3", {}, 40, 32),  # several batches
    "phi3-beyond-original-positions": ("phi3", {"original_max_position_embeddings": 64}, 3, 96),
    "phi3-sliding-window": ("phi3", {"sliding_window": 20}, 3, 48),
    "phi3-fp32-sharded": ("phi3", {"dtype": "fp32", "shards": 3}, 2, 32),
    "phi4mini": ("phi4mini", {}, 3, 32),
    "phi4mini-fp16-sharded": ("phi4mini", {"dtype": "fp16", "shards": 2}, 2, 32),
    "phi4mini-sliding-window": ("phi4mini", {"sliding_window": 20}, 2, 48),
    "phi4mini-head-in-parts": ("phi4mini", {"layers": 1, "vocab_size": 50000}, 2, 24),
    "phi4": ("phi4", {}, 3, 32),
    "phi4-one-layer": ("phi4", {"layers": 1, "dtype": "fp16"}, 1, 1100),
}
CHUNK = 24
TOKENS = 5 * CHUNK + 7
OURS = """
import io, json, sys
from phibuild.worker.lean import import_lean
import_lean()
from phibuild.backends.pytorch import worker
from phibuild.worker.protocol import Report
answers = []
for request in json.load(sys.stdin):
    events = io.StringIO()
    getattr(worker, request["verb"])(request, Report(events))
    answers.append([json.loads(line) for line in events.getvalue().splitlines()][-1])
json.dump(answers, sys.stdout)
"""
WHOLE = """
import json, sys
import numpy as np
import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, AutoTokenizer, DynamicCache
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

given = json.load(sys.stdin)
text = open(given["text"]).read()
for source, ours, folder in given["cases"]:
    model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32)
    model(torch.zeros(1, 2).long())  # first calls by one thread: pytorch/pytorch#188792
    tokenizer = AutoTokenizer.from_pretrained(source)

    def logits(windows):
        with torch.inference_mode():
            return np.stack([model(window[None]).logits[0].numpy() for window in windows])

    ids = torch.from_numpy(np.load(f"{ours}/windows.npy")[:, :-1].astype(np.int64))
    np.save(f"{folder}/logits.npy", logits(ids))

    start = tokenizer("").input_ids
    tokens = tokenizer(text, add_special_tokens=False).input_ids
    taken, count = given["chunk"] - len(start), given["tokens"] // given["chunk"]
    sums, hooks = {}, []
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear) and name != "lm_head":
            def add(module, inputs, name=f"{name}.weight"):
                sums[name] = sums.get(name, 0) + inputs[0][0].double().square().sum(0)
            hooks.append(module.register_forward_pre_hook(add))
    half, ranges = model.model.rotary_emb.inv_freq.shape[0], 0
    for number in range(count):
        first = number * (len(tokens) - taken) // (count - 1)
        window = torch.tensor([start + tokens[first : first + taken]])
        cache = DynamicCache()  # without the configuration it keeps what is beyond a window
        with torch.inference_mode():
            model(window, past_key_values=cache)
        found = torch.stack([torch.cat((layer.keys, layer.values)) for layer in cache.layers], 1)
        keys = found[0]  # [layers, heads, T, head_dim], rotated
        keys[..., :half] = torch.hypot(keys[..., :half], keys[..., half : 2 * half])
        keys[..., half : 2 * half] = keys[..., :half]
        ranges = np.maximum(ranges, found.abs().amax(3).numpy())
    np.save(f"{folder}/ranges.npy", ranges)
    save_file({name: total.float() for name, total in sums.items()}, f"{folder}/sums.safetensors")
    for hook in hooks:
        hook.remove()

    rotary = model.model.rotary_emb
    if rotary.rope_type == "longrope":
        original = model.config.rope_parameters["original_max_position_embeddings"]
        long, _ = ROPE_INIT_FUNCTIONS["longrope"](model.config, seq_len=original + 1)
        rotary.original_inv_freq.copy_(long)
        np.save(f"{folder}/logits_long.npy", logits(ids))
"""


def _run(python: Path, script: str, given: object) -> str:
    done = warm.run(
        [python, "-c", script],
        input=json.dumps(given),
        env={**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"},
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return done.stdout


def _reference(source: Path, output: Path, windows: int, tokens: int) -> dict[str, Any]:
    output.mkdir(parents=True)
    return {
        "verb": "reference",
        "source": str(source),
        "architecture": architecture(source).to_json(),
        "text": str(TEXT),
        "windows": windows,
        "window_tokens": tokens,
        "long": True,
        "threads": 2,
        "max_bytes": 1 << 30,
        "output": str(output),
        "item": "reference",
    }


def _activations(source: Path, output: Path, **changes: Any) -> dict[str, Any]:
    output.mkdir(parents=True)
    request = {
        "verb": "activations",
        "item": "activations",
        "source": str(source),
        "architecture": architecture(source).to_json(),
        "text": str(TEXT),
        "tokens": TOKENS,
        "chunk_tokens": CHUNK,
        "threads": 2,
        "output": str(output),
    }
    return request | changes


def _tensors(path: Path) -> dict[str, np.ndarray[Any, np.dtype[np.float32]]]:
    tensors = {}
    for name, info in read_header(path).items():
        assert info.dtype == "F32"
        tensors[name] = np.fromfile(
            path, dtype=np.float32, count=info.parameters, offset=info.offset
        ).reshape(info.shape)
    return tensors


@pytest.fixture(scope="module")
def folder(
    checkpoint: Callable[..., Path],
    toolchain_python: Callable[[str], Path],
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    """Return the folder with <case>/reference, <case>/activations and <case>/whole."""
    root = tmp_path_factory.mktemp("layerwise")
    requests, wanted = [], []
    for case, (shape, changes, windows, tokens) in CASES.items():
        source, ours, whole = checkpoint(shape, **changes), root / case, root / case / "whole"
        requests.append(_reference(source, ours / "reference", windows, tokens))
        requests.append(_activations(source, ours / "activations"))
        whole.mkdir()
        wanted.append((str(source), str(ours / "reference"), str(whole)))
    python = toolchain_python("pytorch")
    answers = json.loads(_run(python, OURS, requests))
    assert [answer["event"] for answer in answers] == ["item"] * len(requests), answers
    _run(python, WHOLE, {"text": str(TEXT), "cases": wanted, "chunk": CHUNK, "tokens": TOKENS})
    return root


@pytest.mark.parametrize("case", CASES)
def test_reference_equals_the_whole_model(case: str, folder: Path) -> None:
    _, changes, windows, tokens = CASES[case]
    for name in ("logits.npy", "logits_long.npy"):
        whole = folder / case / "whole" / name
        ours = folder / case / "reference" / name
        assert ours.exists() == whole.exists()
        if whole.exists():
            expected = np.load(whole)
            assert expected.shape[:2] == (windows, tokens)
            np.testing.assert_allclose(np.load(ours), expected, rtol=0, atol=1e-5)
    if "original_max_position_embeddings" in changes:
        # Beyond it the model itself takes the long factors.
        both = [folder / case / "reference" / name for name in ("logits.npy", "logits_long.npy")]
        np.testing.assert_array_equal(np.load(both[0]), np.load(both[1]))


@pytest.mark.parametrize("case", CASES)
def test_activations_equal_those_of_hooks_on_the_whole_model(case: str, folder: Path) -> None:
    ours = _tensors(folder / case / "activations" / "activations.safetensors")
    expected = _tensors(folder / case / "whole" / "sums.safetensors")
    assert set(ours) == set(expected)
    assert len(ours) == 4 * CASES[case][1].get("layers", 4)
    for name, total in expected.items():
        np.testing.assert_allclose(ours[name], total, rtol=1e-5, err_msg=name)
    meta = json.loads((folder / case / "activations" / "meta.json").read_text(encoding="utf-8"))
    assert (meta["tokens"], meta["chunks"]) == (5 * CHUNK, 5)
    assert {"torch", "transformers"} <= set(meta["versions"])


@pytest.mark.parametrize("case", CASES)
def test_ranges_are_those_of_the_whole_models_cache(case: str, folder: Path) -> None:
    """Keys there are rotated, by as much as their positions ask for: lengths of pairs stay."""
    ours = np.load(folder / case / "activations" / CACHE_RANGES)
    expected = np.load(folder / case / "whole" / "ranges.npy")
    assert ours.shape == expected.shape
    np.testing.assert_allclose(ours, expected, rtol=1e-4)


def test_activations_do_not_depend_on_threads(
    checkpoint: Callable[..., Path],
    run_worker: Callable[[str, dict[str, Any]], list[dict[str, Any]]],
    folder: Path,
    tmp_path: Path,
) -> None:
    for case in ("phi3", "phi4"):
        shape, changes, *_ = CASES[case]
        output = tmp_path / case
        run_worker("pytorch", _activations(checkpoint(shape, **changes), output, threads=1))
        one, two = (
            (place / "activations.safetensors").read_bytes()
            for place in (output, folder / case / "activations")
        )
        assert one == two


def test_what_has_no_activations_says_why(
    checkpoint: Callable[..., Path], toolchain_python: Callable[[str], Path], tmp_path: Path
) -> None:
    tiny, latin = tmp_path / "tiny.txt", tmp_path / "latin.txt"
    tiny.write_text("def main():\n", encoding="utf-8")
    latin.write_bytes("café".encode("latin-1"))
    phi3 = checkpoint("phi3")
    requests = {
        "the calibration text tiny.txt has": _activations(phi3, tmp_path / "1", text=str(tiny)),
        "latin.txt is not UTF-8": _activations(phi3, tmp_path / "2", text=str(latin)),
        "less than one chunk of 24": _activations(phi3, tmp_path / "3", tokens=23),
        "tokenizer and weights are not of the same model": _activations(
            checkpoint("phi3", vocab_size=1024, layers=1), tmp_path / "4"
        ),
    }
    answers = json.loads(_run(toolchain_python("pytorch"), OURS, list(requests.values())))
    for message, answer in zip(requests, answers, strict=True):
        assert answer["event"] == "failed"
        assert message in answer["error"]
