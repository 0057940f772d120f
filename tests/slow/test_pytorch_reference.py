"""The fp32 reference: which windows it takes, what it writes, how it fails."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytestmark = pytest.mark.slow

RunWorker = Callable[[str, dict[str, Any]], list[dict[str, Any]]]

HELD_OUT = Path(__file__).parents[2] / "phibuild" / "data" / "phi3-tiny-trained" / "heldout.txt"


def _reference(
    run_worker: RunWorker, source: Path, output: Path, text: Path = HELD_OUT, **changes: Any
) -> dict[str, Any]:
    output.mkdir()
    request = {
        "verb": "reference",
        "source": str(source),
        "text": str(text),
        "windows": 4,
        "window_tokens": 32,
        "long": False,
        "threads": 2,
        "max_bytes": 1 << 30,
        "output": str(output),
        "item": "reference",
    }
    events = run_worker("pytorch", request | changes)
    (final,) = (event for event in events if event["event"] in ("item", "failed"))
    return final


@pytest.mark.parametrize("shape", ["phi3", "phi4mini", "phi4"])
def test_files_of_a_reference(
    shape: str, checkpoint: Callable[..., Path], run_worker: RunWorker, tmp_path: Path
) -> None:
    source = checkpoint(shape)
    result = _reference(run_worker, source, tmp_path / "reference", long=True)["result"]
    config = json.loads((source / "config.json").read_text(encoding="utf-8"))
    windows = np.load(tmp_path / "reference" / "windows.npy")
    assert windows.dtype == np.int32
    assert windows.shape == (4, 33)
    # Llama's tokenizer puts BOS first, those of Phi-4 do not.
    assert bool((windows[:, 0] == config["bos_token_id"]).all()) == (shape == "phi3")
    assert not (windows[:, 1:] == config["bos_token_id"]).any()
    logits = np.load(tmp_path / "reference" / "logits.npy")
    assert logits.dtype == np.float32
    assert logits.shape == (4, 32, config["vocab_size"])  # with the padding of the vocabulary
    long = tmp_path / "reference" / "logits_long.npy"
    assert long.exists() == ("rope_scaling" in config and config["rope_scaling"] is not None)
    if long.exists():
        changed = np.load(long)
        # The first token has position 0, which no frequency turns.
        np.testing.assert_allclose(changed[:, 0], logits[:, 0], atol=1e-5)
        assert np.abs(changed[:, -1] - logits[:, -1]).max() > 1e-3
    meta = json.loads((tmp_path / "reference" / "meta.json").read_text(encoding="utf-8"))
    assert meta["tokens"] == result["tokens"] == 4 * 32
    assert {"torch", "transformers"} <= set(meta["versions"])
    wide = logits.astype(np.float64)
    wide -= np.log(np.exp(wide).sum(-1, keepdims=True))
    chosen = np.take_along_axis(wide, windows[:, 1:, None].astype(np.int64), -1)
    assert meta["perplexity"] == pytest.approx(float(np.exp(-chosen.mean())), rel=1e-5)


def test_same_windows_every_time_and_fewer_within_bounds(
    checkpoint: Callable[..., Path], run_worker: RunWorker, tmp_path: Path
) -> None:
    source = checkpoint("phi3")
    _reference(run_worker, source, tmp_path / "a")
    _reference(run_worker, source, tmp_path / "b", threads=1)
    windows = np.load(tmp_path / "a" / "windows.npy")
    assert np.array_equal(windows, np.load(tmp_path / "b" / "windows.npy"))
    two = 2 * 32 * 2112 * 4
    _reference(run_worker, source, tmp_path / "c", max_bytes=two + 1000)
    fewer = np.load(tmp_path / "c" / "windows.npy")
    assert len(fewer) == 2
    assert np.array_equal(fewer[[0, -1]], windows[[0, -1]])  # both ends of the text
    text = tmp_path / "short.txt"
    text.write_text(HELD_OUT.read_text(encoding="utf-8")[:200], encoding="utf-8")
    _reference(run_worker, source, tmp_path / "d", text=text)
    assert 1 <= len(np.load(tmp_path / "d" / "windows.npy")) < 4


def test_what_cannot_be_a_reference_says_why(
    checkpoint: Callable[..., Path], run_worker: RunWorker, tmp_path: Path
) -> None:
    source = checkpoint("phi3")
    short, latin = tmp_path / "short.txt", tmp_path / "latin.txt"
    short.write_text("def main():\n", encoding="utf-8")
    latin.write_bytes("café".encode("latin-1"))
    smaller = checkpoint("phi3", vocab_size=1024, layers=1)
    cases: list[tuple[Path, Path, dict[str, Any], str]] = [
        (source, short, {}, "the held-out text short.txt has"),
        (source, latin, {}, "latin.txt is not UTF-8"),
        (source, HELD_OUT, {"max_bytes": 1000}, "more than the 1,000 bytes allowed"),
        (smaller, HELD_OUT, {}, "tokenizer and weights are not of the same model"),
    ]
    for number, (folder, text, changes, message) in enumerate(cases):
        final = _reference(run_worker, folder, tmp_path / str(number), text, **changes)
        assert final["event"] == "failed"
        assert message in final["error"]
