"""Sources as people have them, built whole, and what Transformers itself makes of them."""

from __future__ import annotations

import json
import os
import struct
from pathlib import Path
from typing import TYPE_CHECKING, Any

from support import warm

if TYPE_CHECKING:
    from conftest import CommandLine

ROOT = Path(__file__).resolve().parents[2]
QUICK = ("evaluation.windows=2", "evaluation.window_tokens=48", "evaluation.decode_tokens=8")
# Transformers' own logits of the windows that phibuild chose, and whether it ties.
_WHOLE = """
import json, sys
from phibuild.worker.lean import import_lean
import_lean()
import numpy as np
import torch
from transformers import AutoModelForCausalLM

source, reference = json.load(sys.stdin)
model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32)
ids = torch.from_numpy(np.load(f"{reference}/windows.npy")[:, :-1].astype(np.int64))
with torch.inference_mode():
    model(torch.zeros(1, 2).long())  # first calls by one thread: pytorch/pytorch#188792
    logits = model(ids).logits.numpy()
ours = np.load(f"{reference}/logits.npy")
answer = {
    "distance": float(np.abs(logits - ours).max() / np.abs(logits).max()),
    "tied": model.lm_head.weight is model.model.embed_tokens.weight,
}
json.dump(answer, sys.stdout)
"""


def with_tensor(
    folder: Path,
    name: str,
    data: bytes,
    shape: tuple[int, ...],
    dtype: str,
    file: str = "model.safetensors",
) -> None:
    """Append a tensor to one of a folder's files."""
    path = folder / file
    old = path.read_bytes()
    length = struct.unpack("<Q", old[:8])[0]
    header = json.loads(old[8 : 8 + length])
    end = len(old) - 8 - length
    header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [end, end + len(data)]}
    text = json.dumps(header).encode()
    path.unlink()  # it may be a link
    path.write_bytes(struct.pack("<Q", len(text)) + text + old[8 + length :] + data)


def edit_config(folder: Path, **changes: Any) -> None:
    """Change keys of config.json; `...` removes one."""
    path = folder / "config.json"
    config = {**json.loads(path.read_text(encoding="utf-8")), **changes}
    path.write_text(json.dumps({k: v for k, v in config.items() if v is not ...}), encoding="utf-8")


def build_whole(phibuild: CommandLine, model: str, *words: str) -> dict[str, dict[str, Any]]:
    """Build and judge fp32 of all backends, or of those in `words`; return the cells by backend."""
    axes = ("-m", f"model={model}", "precision=fp32", "gates.kl=1e-6")
    done = phibuild("build", *axes, *QUICK, *words)
    assert done.returncode == 0, done.stdout + done.stderr
    return {cell["backend"]: cell for cell in phibuild.report("quickstart")["cells"]}


def ask_transformers(python: Path, source: Path, phibuild: CommandLine) -> dict[str, Any]:
    """Return how far Transformers' logits of a folder are from the original's in the store, whose
    only original this is, and whether Transformers ties."""
    (logits,) = (phibuild.folder / "store" / "references").glob("*/logits.npy")
    done = warm.run(
        [python, "-c", _WHOLE],
        input=json.dumps([str(source), str(logits.parent)]),
        env={**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer
