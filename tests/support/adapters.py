"""Adapter folders as PEFT saves them, of zeros: what matters is what their headers say."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from phibuild.worker.safetensors import SafetensorsWriter
from phibuild.worker.unfused import Place

Tensors = dict[str, tuple[str, tuple[int, ...]]]
"""Type and shape by name."""


def lora(known: Mapping[str, Place], *modules: str, rank: int = 8, dtype: str = "F32") -> Tensors:
    """Return LoRA tensors of all modules of these names, or whose last parts are these."""
    tensors: Tensors = {}
    for module, place in known.items():
        if any(f".{module}".endswith(f".{name}") for name in modules):
            rows, columns = place.shape
            name = f"base_model.model.{module}"
            if module.endswith("embed_tokens"):
                tensors[f"{name}.lora_embedding_A"] = (dtype, (rank, rows))
                tensors[f"{name}.lora_embedding_B"] = (dtype, (columns, rank))
            else:
                tensors[f"{name}.lora_A.weight"] = (dtype, (rank, columns))
                tensors[f"{name}.lora_B.weight"] = (dtype, (rows, rank))
    return tensors


def make_adapter(folder: Path, tensors: Tensors, **config: Any) -> Path:
    """Write an adapter; `config` replaces keys of adapter_config.json, `...` removes one."""
    folder.mkdir(exist_ok=True)
    SafetensorsWriter(
        folder, [(name, *entry) for name, entry in tensors.items()], metadata={"format": "pt"}
    ).close()
    (folder / "model.safetensors").rename(folder / "adapter_model.safetensors")
    keys = {
        "base_model_name_or_path": "org/base", "bias": "none", "fan_in_fan_out": False,
        "init_lora_weights": True, "lora_alpha": 16, "lora_dropout": 0.05, "modules_to_save": None,
        "peft_type": "LORA", "peft_version": "0.21.2", "r": 8, "rank_pattern": {},
        "alpha_pattern": {}, "target_modules": ["qkv_proj"], "task_type": "CAUSAL_LM",
        "use_dora": False, "use_rslora": False, **config,
    }  # fmt: skip
    keys = {key: value for key, value in keys.items() if value is not ...}
    text = json.dumps(keys, indent=2, sort_keys=True)
    (folder / "adapter_config.json").write_text(text, encoding="utf-8")
    return folder
