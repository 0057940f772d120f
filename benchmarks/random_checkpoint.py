"""Seeded random checkpoints in the exact shapes of published Phi models, at any size.

    python benchmarks/random_checkpoint.py SHAPE FOLDER

SHAPE is tiny, 0.44b (12 layers of hidden 1536), 3.8b (Phi-3.5-mini) or 14b (Phi-4). Weights are
bfloat16 normals from a table of quantiles that a seeded stream of 16-bit numbers picks from, so
that 14 billion of them take minutes. Every tensor has a stream of its own. The tokenizer is that of
the embedded model (of the tests' Phi-4 for 14b); the rest of the vocabulary is padding, as in the
published checkpoints.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import NDArray

from phibuild.worker.architecture import read_architecture
from phibuild.worker.safetensors import SafetensorsWriter

ROOT = Path(__file__).resolve().parents[1]
_EMBEDDED = ROOT / "phibuild" / "data" / "phi3-tiny-trained"
_PHI4 = ROOT / "tests" / "data" / "tokenizers" / "phi4"
_CHUNK = 1 << 24  # weights
_STANDARD_DEVIATION = 0.02  # `initializer_range` of the published configurations

_LONGROPE = {
    "max_position_embeddings": 131072,
    "original_max_position_embeddings": 4096,
    "rope_theta": 10000.0,
    "sliding_window": 262144,
    "vocab_size": 32064,
    "bos_token_id": 1,
    "eos_token_id": 2048,
    "pad_token_id": 2048,
}
SHAPES: dict[str, dict[str, Any]] = {
    "tiny": {
        **_LONGROPE,
        "hidden_size": 256,
        "intermediate_size": 512,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "vocab_size": 2112,
    },
    "0.44b": {
        **_LONGROPE,
        "hidden_size": 1536,
        "intermediate_size": 4096,
        "num_hidden_layers": 12,
        "num_attention_heads": 16,
        "num_key_value_heads": 16,
    },
    "3.8b": {
        **_LONGROPE,
        "hidden_size": 3072,
        "intermediate_size": 8192,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 32,
    },
    "14b": {
        "hidden_size": 5120,
        "intermediate_size": 17920,
        "num_hidden_layers": 40,
        "num_attention_heads": 40,
        "num_key_value_heads": 10,
        "max_position_embeddings": 16384,
        "original_max_position_embeddings": 16384,
        "rope_theta": 250000,
        "rope_scaling": None,
        "sliding_window": None,
        "vocab_size": 100352,
        "bos_token_id": 1441,
        "eos_token_id": 1449,
        "pad_token_id": 1533,
    },
}


def make(shape: str, folder: Path, *, seed: int = 0, threads: int = 2) -> Path:
    """Write the checkpoint unless it is there already; return its folder."""
    if (folder / "LICENSE").exists():  # written last
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    config = _config(shape)
    arch = read_architecture(config)
    (folder / "config.json").write_text(json.dumps(config, indent=2), encoding="utf-8")
    generation = {key: config[key] for key in ("bos_token_id", "eos_token_id", "pad_token_id")}
    (folder / "generation_config.json").write_text(json.dumps(generation), encoding="utf-8")
    for path in (_PHI4 if shape == "14b" else _EMBEDDED).iterdir():
        if path.name.startswith("tokenizer") or path.suffix == ".jinja":
            shutil.copyfile(path, folder / path.name)
    table = _normals()
    entries = [(name, "BF16", size) for name, size in arch.tensors()]
    with (
        SafetensorsWriter(folder, entries, metadata={"format": "pt"}) as writer,
        ThreadPoolExecutor(threads) as pool,
    ):
        for done in [
            pool.submit(_write_tensor, writer, name, size, table, seed)
            for name, size in arch.tensors()
        ]:
            done.result()
    shutil.copyfile(ROOT / "LICENSE", folder / "LICENSE")
    return folder


def _write_tensor(
    writer: SafetensorsWriter,
    name: str,
    shape: tuple[int, ...],
    table: NDArray[np.uint16],
    seed: int,
) -> None:
    count = math.prod(shape)
    key = int.from_bytes(hashlib.sha256(f"{seed}:{name}".encode()).digest()[:8], "little")
    stream = np.random.SFC64(key)
    if len(shape) == 1:  # a norm: 0.5 to 1.5, since exporters leave out a product with 1.0
        steps = stream.random_raw(count) % 129
        writer.write(name, bfloat16(0.5 + steps / 128).tobytes())
        return
    for first in range(0, count, _CHUNK):
        some = min(_CHUNK, count - first)
        picks = stream.random_raw(-(-some // 4)).view(np.uint16)[:some]
        writer.write(name, table[picks].tobytes(), 2 * first)


def _normals() -> NDArray[np.uint16]:
    """Return 65,536 quantiles of the normal distribution as bfloat16 bits."""
    normal = NormalDist(0, _STANDARD_DEVIATION)
    return bfloat16(np.array([normal.inv_cdf((index + 0.5) / 65536) for index in range(65536)]))


def bfloat16(values: NDArray[np.float64]) -> NDArray[np.uint16]:
    """Return the bits of the values in bfloat16, rounded to nearest, ties to even."""
    bits = values.astype(np.float32).view(np.uint32)
    even = (bits >> np.uint32(16)) & np.uint32(1)
    rounded: NDArray[np.uint16] = ((bits + np.uint32(0x7FFF) + even) >> np.uint32(16)).astype(
        np.uint16
    )
    return rounded


def _config(shape: str) -> dict[str, Any]:
    config: dict[str, Any] = {
        "architectures": ["Phi3ForCausalLM"],
        "attention_bias": False,
        "attention_dropout": 0.0,
        "embd_pdrop": 0.0,
        "hidden_act": "silu",
        "initializer_range": _STANDARD_DEVIATION,
        "model_type": "phi3",
        "resid_pdrop": 0.0,
        "rms_norm_eps": 1e-05,
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
        "transformers_version": "4.43.3",
        "use_cache": True,
        **SHAPES[shape],
    }
    if "rope_scaling" not in config:
        count = config["hidden_size"] // config["num_attention_heads"] // 2
        steps = [index / (count - 1) for index in range(count)]
        config["rope_scaling"] = {
            "type": "longrope",
            "short_factor": [round(1.0 + 1.8 * step**2, 4) for step in steps],
            "long_factor": [round(1.08 + 62.92 * step**2, 4) for step in steps],
        }
    return config


def main() -> None:
    """Make the checkpoint that the command line asks for."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("shape", choices=SHAPES)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    make(arguments.shape, arguments.folder, seed=arguments.seed)


if __name__ == "__main__":
    main()
