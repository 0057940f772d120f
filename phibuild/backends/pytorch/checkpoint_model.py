"""Model of a local checkpoint folder, loaded with Transformers on the CPU."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, PreTrainedModel


def load_model(folder: Path, dtype: torch.dtype, **options: Any) -> PreTrainedModel:
    """Return the folder's model in `dtype`, ready for inference.

    Only safetensors are read: pickled weights run code. Code that a checkpoint brings along is
    never run either: Phi-3 is native to Transformers.
    """
    model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
        folder,
        dtype=dtype,
        attn_implementation="sdpa",
        local_files_only=True,
        trust_remote_code=False,
        use_safetensors=True,
        **options,
    )
    return model.eval()
