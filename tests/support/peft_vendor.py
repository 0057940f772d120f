"""Train nothing, merge everything: adapters and merged models as PEFT and Transformers make them.

Runs in the vendor's environment: `python peft_vendor.py` reads a JSON list of orders from standard
input and carries them out one after the other, in one process, since importing takes longer.
"""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

_DTYPES = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}


def llama_fied(source: str, output: str, kind: str) -> None:
    """Save the Phi-3 of `source` as LlamaForCausalLM or MistralForCausalLM, in Transformers' own
    words, or "older" in those of Transformers 4; "split" keeps its config.json and only separates
    the tensors."""
    import torch
    from safetensors.torch import save_file
    from transformers import (
        AutoModelForCausalLM,
        LlamaConfig,
        LlamaForCausalLM,
        MistralConfig,
        MistralForCausalLM,
    )

    model = AutoModelForCausalLM.from_pretrained(source, dtype="auto")
    phi = model.config
    head = phi.hidden_size // phi.num_attention_heads
    rows = [phi.num_attention_heads * head, *[phi.num_key_value_heads * head] * 2]
    state: dict[str, Any] = {}
    for name, tensor in model.state_dict().items():
        if "qkv_proj" in name:
            for part, piece in zip("qkv", tensor.split(rows), strict=True):
                state[name.replace("qkv_proj", f"{part}_proj")] = piece.clone()
        elif "gate_up_proj" in name:
            for part, piece in zip(("gate", "up"), tensor.chunk(2), strict=True):
                state[name.replace("gate_up_proj", f"{part}_proj")] = piece.clone()
        else:
            state[name] = tensor
    if kind == "split":
        if phi.tie_word_embeddings:
            state.pop("lm_head.weight")
        folder = Path(output)
        folder.mkdir(parents=True)
        save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
        (folder / "config.json").write_bytes((Path(source) / "config.json").read_bytes())
        return
    same = (
        "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "rms_norm_eps",
        "num_attention_heads", "num_key_value_heads", "max_position_embeddings", "rope_parameters",
        "tie_word_embeddings", "pad_token_id", "bos_token_id", "eos_token_id",
    )  # fmt: skip
    keys = {key: getattr(phi, key) for key in same}
    if kind == "mistral":
        config, cls = MistralConfig(**keys, sliding_window=phi.sliding_window), MistralForCausalLM
    else:
        config, cls = LlamaConfig(**keys), LlamaForCausalLM
    with torch.device("meta"):
        empty = cls(config)
    empty.load_state_dict(state, assign=True)
    empty.tie_weights()
    empty.config.dtype = phi.dtype
    empty.save_pretrained(output)
    if kind == "older":
        text = (Path(source) / "config.json").read_text(encoding="utf-8")
        words = {**json.loads(text), "model_type": "llama", "architectures": ["LlamaForCausalLM"]}
        (Path(output) / "config.json").write_text(json.dumps(words), encoding="utf-8")


def adapter(
    base: str,
    output: str,
    config: dict[str, Any],
    dtype: str,
    save: dict[str, Any],
    seed: int,
    *,
    named: bool = False,
) -> None:
    """Save an adapter of `base` whose A, B and whole modules are random; `named` puts the adapter's
    name into its tensors' names, where it is in a state that was not saved by PEFT."""
    import torch
    from peft import LoraConfig, get_peft_model
    from safetensors.torch import load_file, save_file
    from transformers import AutoModelForCausalLM

    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_pretrained(base, dtype="auto")
    adapted = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", **config))
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_" in name:
                parameter.normal_(0, 0.05)
            elif "modules_to_save" in name:
                parameter.add_(0.02 * torch.randn_like(parameter))
    adapted.save_pretrained(output, **save)
    path = Path(output) / "adapter_model.safetensors"
    tensors = {
        name: tensor.to(getattr(torch, _DTYPES[dtype])) for name, tensor in load_file(path).items()
    }
    if named:
        tensors = {
            re.sub(r"(lora_[AB]|lora_embedding_[AB])", r"\1.default", name): tensor
            for name, tensor in tensors.items()
        }
    save_file(tensors, path, metadata={"format": "pt"})


def merge(base: str, adapter: str, output: str) -> None:
    """Save what PEFT makes of a base and an adapter."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(base, dtype="auto")
    PeftModel.from_pretrained(model, adapter).merge_and_unload().save_pretrained(output)


def facts(output: str) -> None:
    """Write what the vendors' classes say of themselves: LoraConfig's keys and two of its defaults,
    and the defaults of Llama's and Mistral's configuration."""
    from dataclasses import fields

    from peft import LoraConfig
    from transformers import LlamaConfig, MistralConfig

    lora = LoraConfig()
    found = {
        "lora": [field.name for field in fields(LoraConfig)],
        "r": lora.r,
        "lora_alpha": lora.lora_alpha,
        "llama": LlamaConfig().to_dict(),
        "mistral": MistralConfig().to_dict(),
    }
    Path(output).write_text(json.dumps(found), encoding="utf-8")


def main() -> None:
    actions: dict[str, Callable[..., None]] = {
        "llama_fied": llama_fied,
        "adapter": adapter,
        "merge": merge,
        "facts": facts,
    }
    for what, order in json.load(sys.stdin):
        actions[what](**order)


if __name__ == "__main__":
    os.environ["HF_HUB_OFFLINE"] = "1"
    main()
