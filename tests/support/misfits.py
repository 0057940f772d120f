"""Adapters whose tensors do not fit their base, and what phibuild says of each."""

from __future__ import annotations

from collections.abc import Callable

from phibuild.checkpoints.facts import Checkpoint
from phibuild.worker.unfused import places
from support.adapters import Tensors, lora

AGAIN = "save the adapter again with PEFT's save_pretrained"
MERGE = "merge it with the tool that trained it and give the merged checkpoint"
PREFIX = "base_model.model."


def rename(tensors: Tensors, old: str, new: str) -> Tensors:
    return {name.replace(old, new): entry for name, entry in tensors.items()}


Change = Callable[[Checkpoint, Tensors], Tensors]
# change of the tensors; what the one error begins with; remedy
TENSORS: dict[str, tuple[Change, str, str]] = {
    "none": (lambda base, found: {}, "it holds no tensors", AGAIN),
    "dora": (
        lambda base, found: found
        | {f"{PREFIX}model.layers.0.mlp.down_proj.lora_magnitude_vector": ("F32", (256,))},
        "DoRA is not supported (base_model.model.model.layers.0.mlp.down_proj.lora_magnitude_vec",
        MERGE,
    ),
    "bias": (
        lambda base, found: found
        | {f"{PREFIX}model.layers.0.mlp.down_proj.lora_B.bias": ("F32", (256,))},
        "LoRA with biases of its own is not supported",
        MERGE,
    ),
    "trained-bias": (
        lambda base, found: found
        | {f"{PREFIX}model.layers.0.mlp.down_proj.base_layer.bias": ("F32", (256,))},
        "LoRA with trained biases is not supported",
        MERGE,
    ),
    "tokens": (
        lambda base, found: found
        | {f"{PREFIX}model.embed_tokens.token_adapter.trainable_tokens_delta": ("F32", (1, 256))},
        "LoRA with single trained tokens is not supported",
        MERGE,
    ),
    "prefix": (
        lambda base, found: rename(found, PREFIX, ""),
        "8 tensor(s) that are no LoRA's: model.layers.0",
        f"{AGAIN}: names begin with base_model.model.",
    ),
    "adapter-name": (
        lambda base, found: rename(found, "lora_A.weight", "lora_A.mine.weight"),
        "4 tensor(s) of modules that the base has not: base_model.model.model.layers.0.self_attn."
        "qkv_proj.lora_A.mine.weight",
        "is it an adapter for another base model?",
    ),
    "compiled": (
        lambda base, found: rename(found, "model.layers.0.", "_orig_mod.layers.0."),
        "2 tensor(s) of modules that the base has not",
        "is it an adapter for another base model?",
    ),
    "layers": (
        lambda base, found: found | rename(found, "layers.3", "layers.4"),
        "2 tensor(s) of modules that the base has not: base_model.model.model.layers.4",
        "is it an adapter for another base model?",
    ),
    "classifier": (
        lambda base, found: found | {f"{PREFIX}score.weight": ("F32", (3, 256))},
        "1 tensor(s) of modules that the base has not: base_model.model.score.weight",
        "is it an adapter for another base model?",
    ),
    "type": (
        lambda base, found: {name: ("F64", shape) for name, (_, shape) in list(found.items())[:1]},
        "tensor base_model.model.model.layers.0.self_attn.qkv_proj.lora_A.weight is F64",
        f"{AGAIN} as BF16, F16, F32",
    ),
    "half": (
        lambda base, found: dict(list(found.items())[1:]),
        "module model.layers.0.self_attn.qkv_proj has lora_B; its LoRA has lora_A and lora_B",
        AGAIN,
    ),
    "embedding-as-linear": (
        lambda base, found: found | {
            f"{PREFIX}model.embed_tokens.lora_A.weight": ("F32", (8, 256)),
            f"{PREFIX}model.embed_tokens.lora_B.weight": ("F32", (2112, 8)),
        },
        "module model.embed_tokens has lora_A, lora_B; its LoRA has lora_embedding_A and",
        AGAIN,
    ),
    "norm": (
        lambda base, found: found | {
            f"{PREFIX}model.norm.lora_A.weight": ("F32", (8, 1)),
            f"{PREFIX}model.norm.lora_B.weight": ("F32", (256, 8)),
        },
        "module model.norm has lora_A, lora_B; its LoRA has nothing: it is a norm",
        AGAIN,
    ),
    "empty": (
        lambda base, found: {
            name: ("F32", (0,)) if "0.self_attn.qkv_proj.lora_A" in name else entry
            for name, entry in found.items()
        },
        "tensor base_model.model.model.layers.0.self_attn.qkv_proj.lora_A.weight is empty, as "
        "DeepSpeed ZeRO-3",
        "gather the weights before saving (zero_to_fp32.py)",
    ),
    "rank": (
        lambda base, found: {
            name: ("F32", (4, 256)) if "0.self_attn.qkv_proj.lora_A" in name else entry
            for name, entry in found.items()
        },
        "tensor base_model.model.model.layers.0.self_attn.qkv_proj.lora_A.weight has shape "
        "[4, 256], [8, 256] is due",
        "is it an adapter for another base model? r and rank_pattern of its configuration must fit "
        "as well",
    ),
    "resized": (
        lambda base, found: found | {f"{PREFIX}lm_head.weight": ("BF16", (2120, 256))},
        "resized embeddings: base_model.model.lm_head.weight has 2,120 tokens, the base 2,112",
        "merge it into the resized model (PEFT's merge_and_unload) and give that",
    ),
    "resized-lora": (
        lambda base, found: found | {
            f"{PREFIX}model.embed_tokens.lora_embedding_A": ("F32", (8, 2100)),
            f"{PREFIX}model.embed_tokens.lora_embedding_B": ("F32", (256, 8)),
        },
        "resized embeddings: base_model.model.model.embed_tokens.lora_embedding_A has 2,100 "
        "tokens, the base 2,112",
        "merge it into the resized model (PEFT's merge_and_unload) and give that",
    ),
    "other-width": (
        lambda base, found: found | {f"{PREFIX}model.norm.weight": ("F32", (128,))},
        "tensor base_model.model.model.norm.weight has shape [128], [256] is due",
        "is it an adapter for another base model? r and rank_pattern of its configuration must fit "
        "as well",
    ),
    "twice": (
        lambda base, found: found
        | {f"{PREFIX}lm_head{part}.weight": ("F32", (2112, 256)) for part in ("", ".base_layer")},
        "base_model.model.lm_head.weight and base_model.model.lm_head.base_layer.weight are of one "
        "module",
        AGAIN,
    ),
    "overlap": (
        lambda base, found: found | lora(places(base.architecture), "layers.1.self_attn.v_proj"),
        "the adapter has model.layers.1.self_attn.qkv_proj.weight both whole and in parts",
        MERGE,
    ),
    "incomplete": (
        lambda base, found: {name: one for name, one in found.items() if "layers.2" not in name},
        "no LoRA of 1 of 4 modules 'qkv_proj': model.layers.2.self_attn.qkv_proj",
        AGAIN,
    ),
}  # fmt: skip
