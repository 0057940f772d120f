"""Tokenizer and model of a local checkpoint folder, loaded with Transformers on the CPU."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS


def load_tokenizer(folder: Path) -> Any:
    """Return the folder's own tokenizer."""
    return AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)


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


def encode(tokenizer: Any, text: str) -> NDArray[np.int64]:
    """Return the ids of `text` alone, without special tokens around it."""
    # A text longer than the model's context is no mistake here: it is cut into windows.
    ids = tokenizer(text, add_special_tokens=False, verbose=False).input_ids
    return np.asarray(ids, dtype=np.int64)


def prefix(tokenizer: Any) -> list[int]:
    """Return the BOS id in a list if the tokenizer puts one before a text by itself, or []."""
    ids = tokenizer("").input_ids
    return [int(ids[0])] if ids and ids[0] == tokenizer.bos_token_id else []


def use_long_factors(model: PreTrainedModel) -> bool:
    """Make a longrope model use its long factors at every length; return whether it is one.

    Transformers takes the short factors up to `original_max_position_embeddings` tokens, some
    runtimes (mlx-lm's SuScaledRoPE) the long ones always. The scale of cos and sin is
    sqrt(1 + ln(max/original)/ln(original)) in both and for both sets, so only the frequencies
    change.
    """
    rotary = model.model.rotary_emb
    if rotary.rope_type != "longrope":
        return False
    original = model.config.rope_parameters["original_max_position_embeddings"]
    frequencies, _ = ROPE_INIT_FUNCTIONS["longrope"](
        model.config, rotary.inv_freq.device, seq_len=original + 1
    )
    # What is restored for short contexts; rotary.inv_freq itself is set anew in every pass.
    rotary.original_inv_freq.copy_(frequencies)
    return True
