"""The fp32 reference: which windows it takes, what it writes, how it fails."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from support import warm
from support.checkpoints import architecture

pytestmark = pytest.mark.slow

RunWorker = Callable[[str, dict[str, Any]], list[dict[str, Any]]]

ROOT = Path(__file__).resolve().parents[2]
HELD_OUT = ROOT / "phibuild" / "data" / "phi3-tiny-trained" / "heldout.txt"
SHAPES = ("phi3", "phi4mini", "phi4")
# The worker's function for one request after the other: importing Transformers takes longer.
REFERENCES = """
import io, json, sys
from phibuild.worker.lean import import_lean
import_lean()
from phibuild.backends.pytorch import worker
from phibuild.worker.protocol import Report
answers = []
for request in json.load(sys.stdin):
    events = io.StringIO()
    worker.reference(request, Report(events))
    answers.append([json.loads(line) for line in events.getvalue().splitlines()])
json.dump(answers, sys.stdout)
"""


@dataclass(frozen=True)
class Reference:
    """A request's checkpoint and output folder, and the event that ended it."""

    source: Path
    output: Path
    final: dict[str, Any]


def _request(source: Path, output: Path, **changes: Any) -> dict[str, Any]:
    output.mkdir(parents=True)
    request = {
        "verb": "reference",
        "source": str(source),
        "architecture": architecture(source).to_json(),
        "text": str(HELD_OUT),
        "windows": 4,
        "window_tokens": 32,
        "long": False,
        "threads": 2,
        "max_bytes": 1 << 30,
        "output": str(output),
        "item": "reference",
    }
    return request | changes


def _final(events: list[dict[str, Any]]) -> dict[str, Any]:
    (final,) = (event for event in events if event["event"] in ("item", "failed"))
    return final


@pytest.fixture(scope="module")
def references(
    checkpoint: Callable[..., Path],
    toolchain_python: Callable[[str], Path],
    tmp_path_factory: pytest.TempPathFactory,
) -> dict[str, Reference]:
    """Return every reference that a test looks at, by name, made by one process."""
    folder = tmp_path_factory.mktemp("references")
    short, tiny, latin = (folder / f"{name}.txt" for name in ("short", "tiny", "latin"))
    short.write_text(HELD_OUT.read_text(encoding="utf-8")[:200], encoding="utf-8")
    tiny.write_text("def main():\n", encoding="utf-8")
    latin.write_bytes("café".encode("latin-1"))
    phi3 = checkpoint("phi3")
    wanted: dict[str, tuple[Path, dict[str, Any]]] = {
        **{shape: (checkpoint(shape), {"long": True}) for shape in SHAPES},
        "two-windows": (phi3, {"max_bytes": 2 * 32 * 2112 * 4 + 1000}),
        "short-text": (phi3, {"text": str(short)}),
        "tiny-text": (phi3, {"text": str(tiny)}),
        "latin-text": (phi3, {"text": str(latin)}),
        "no-bytes": (phi3, {"max_bytes": 1000}),
        "smaller": (checkpoint("phi3", vocab_size=1024, layers=1), {}),
    }
    requests = {
        name: _request(source, folder / name, **changes)
        for name, (source, changes) in wanted.items()
    }
    done = warm.run(
        [toolchain_python("pytorch"), "-c", REFERENCES],
        input=json.dumps(list(requests.values())),
        env={**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"},
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return {
        name: Reference(wanted[name][0], folder / name, _final(events))
        for name, events in zip(requests, json.loads(done.stdout), strict=True)
    }


@pytest.mark.parametrize("shape", SHAPES)
def test_files_of_a_reference(shape: str, references: dict[str, Reference]) -> None:
    reference = references[shape]
    result, output = reference.final["result"], reference.output
    config = json.loads((reference.source / "config.json").read_text(encoding="utf-8"))
    windows = np.load(output / "windows.npy")
    assert windows.dtype == np.int32
    assert windows.shape == (4, 33)
    # Llama's tokenizer puts BOS first, those of Phi-4 do not.
    assert bool((windows[:, 0] == config["bos_token_id"]).all()) == (shape == "phi3")
    assert not (windows[:, 1:] == config["bos_token_id"]).any()
    logits = np.load(output / "logits.npy")
    assert logits.dtype == np.float32
    assert logits.shape == (4, 32, config["vocab_size"])  # with the padding of the vocabulary
    long = output / "logits_long.npy"
    assert long.exists() == ("rope_scaling" in config and config["rope_scaling"] is not None)
    if long.exists():
        changed = np.load(long)
        # The first token has position 0, which no frequency turns.
        np.testing.assert_allclose(changed[:, 0], logits[:, 0], atol=1e-5)
        assert np.abs(changed[:, -1] - logits[:, -1]).max() > 1e-3
    meta = json.loads((output / "meta.json").read_text(encoding="utf-8"))
    assert meta["tokens"] == result["tokens"] == 4 * 32
    assert {"torch", "transformers"} <= set(meta["versions"])
    wide = logits.astype(np.float64)
    wide -= np.log(np.exp(wide).sum(-1, keepdims=True))
    chosen = np.take_along_axis(wide, windows[:, 1:, None].astype(np.int64), -1)
    assert meta["perplexity"] == pytest.approx(float(np.exp(-chosen.mean())), rel=1e-5)


def test_same_windows_every_time_and_fewer_within_bounds(
    references: dict[str, Reference], run_worker: RunWorker, tmp_path: Path
) -> None:
    request = _request(references["phi3"].source, tmp_path / "again", threads=1)
    assert _final(run_worker("pytorch", request))["event"] == "item"
    windows = np.load(references["phi3"].output / "windows.npy")
    assert np.array_equal(windows, np.load(tmp_path / "again" / "windows.npy"))
    assert not (tmp_path / "again" / "logits_long.npy").exists()  # not asked for
    fewer = np.load(references["two-windows"].output / "windows.npy")
    assert len(fewer) == 2
    assert np.array_equal(fewer[[0, -1]], windows[[0, -1]])  # both ends of the text
    assert 1 <= len(np.load(references["short-text"].output / "windows.npy")) < 4


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("tiny-text", "the held-out text tiny.txt has"),
        ("latin-text", "latin.txt is not UTF-8"),
        ("no-bytes", "more than the 1,000 bytes allowed"),
        ("smaller", "tokenizer and weights are not of the same model"),
    ],
)
def test_what_cannot_be_a_reference_says_why(
    name: str, message: str, references: dict[str, Reference]
) -> None:
    final = references[name].final
    assert final["event"] == "failed"
    assert message in final["error"]
