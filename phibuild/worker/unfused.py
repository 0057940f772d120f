"""Checkpoints whose query, key, value and gate, up projections are separate tensors.

Phi-3 keeps each group in one tensor, one below the other: `qkv_proj` = q, k, v rows and
`gate_up_proj` = gate, up rows (Transformers' modeling_phi3.py). Llama and Mistral have the same
arithmetic with separate tensors, and so trainers save Phi models as `LlamaForCausalLM` (Phi-4) and
`MistralForCausalLM` (Phi-3 with its sliding window). This says when that is the same model, what
its config.json is in Phi-3's words, and which rows of which tensor are what. Standard library only.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from phibuild.worker.architecture import Architecture
from phibuild.worker.json_values import JsonDict, JsonObject, as_object, is_number

LLAMA_FIED = {"llama": "LlamaForCausalLM", "mistral": "MistralForCausalLM"}
HEAD, EMBEDDING = "lm_head.weight", "model.embed_tokens.weight"
_PARTS = {
    "self_attn.qkv_proj": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "mlp.gate_up_proj": ("mlp.gate_proj", "mlp.up_proj"),
}
# What Transformers 5 takes where config.json says nothing (configuration_llama.py, _mistral.py).
DEFAULTS: dict[str, JsonObject] = {
    "llama": {"max_position_embeddings": 2048, "rms_norm_eps": 1e-6, "num_key_value_heads": None},
    "mistral": {
        "max_position_embeddings": 131072,
        "rms_norm_eps": 1e-6,
        "num_key_value_heads": 8,
        "sliding_window": 4096,
    },
}
# Key -> values that are Phi-3's arithmetic; absent is always one of them.
_ONLY: dict[str, tuple[object, ...]] = {
    "hidden_act": ("silu", "swish"),
    "attention_bias": (None, False),
    "mlp_bias": (None, False),
    "pretraining_tp": (None, 1),
    "partial_rotary_factor": (None, 1),
    "layer_types": (None,),
}
_KEPT = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "max_position_embeddings",
    "rms_norm_eps",
    "tie_word_embeddings",
    "rope_theta",
    "rope_scaling",
    "rope_parameters",
    "dtype",
    "torch_dtype",
    "bos_token_id",
    "eos_token_id",
    "pad_token_id",
    "quantization_config",
    "attention_dropout",
    "initializer_range",
    "use_cache",
    "transformers_version",
    "is_encoder_decoder",
    "is_causal",
    "attention_chunk_size",
    "per_layer_config",
    "kv_sharing_modes",
    "transformers_weights",
)


@dataclass(frozen=True)
class Fusing:
    """Tensors of the canonical checkpoint that the source holds under other names: canonical name
    -> the source's tensors, whose rows follow each other."""

    tensors: Mapping[str, tuple[str, ...]]

    def to_json(self) -> dict[str, list[str]]:
        return {name: list(parts) for name, parts in self.tensors.items()}


@dataclass(frozen=True)
class Place:
    """Where the weight of a module lies in the canonical checkpoint: `shape[0]` rows of `tensor`
    from row `first` on."""

    tensor: str
    first: int
    shape: tuple[int, ...]


def canonical_config(config: JsonObject) -> JsonDict:
    """Return the config.json of the same model as a phi3; one of another model_type than llama or
    mistral is returned as it is.

    Raises ValueError, beginning with the key, where the arithmetic is not Phi-3's.
    """
    kind = config.get("model_type")
    if kind not in LLAMA_FIED:
        return dict(config)
    for key, allowed in _ONLY.items():
        if key in config and not any(_same(config[key], value) for value in allowed):
            raise ValueError(f"{key} {config[key]!r} of this {kind} is not the arithmetic of Phi-3")
    match config:
        case {"head_dim": head, "hidden_size": int(hidden), "num_attention_heads": int(heads)} if (
            head is not None and heads and not _same(head, hidden // heads)
        ):
            raise ValueError(f"head_dim {head!r} is not hidden_size / num_attention_heads")
    said = {key: config[key] for key in _KEPT if key in config}
    # Llama reads no sliding window, whatever its config.json has.
    if kind == "mistral" and "sliding_window" in config:
        said["sliding_window"] = config["sliding_window"]
    said = {**DEFAULTS[str(kind)], **said}
    if said["num_key_value_heads"] is None:
        said["num_key_value_heads"] = said.get("num_attention_heads")
    original = _original_positions(config, said["max_position_embeddings"])
    if original is not None:
        said["original_max_position_embeddings"] = original
    names = {"architectures": ["Phi3ForCausalLM"], "model_type": "phi3", "hidden_act": "silu"}
    return {**names, **said}


def _original_positions(config: JsonObject, maximum: object) -> object:
    """Return how many positions longrope's short factors are for, None without longrope."""
    key, name = "original_max_position_embeddings", "rope_parameters"
    if config.get("rope_scaling"):
        name = "rope_scaling"
    scaling = as_object(config.get(name) or {}, name)
    kind = scaling.get("rope_type", scaling.get("type", "default"))
    if kind not in ("default", "longrope"):
        raise ValueError(f"{name} type {kind!r} is not one that Phi-3 has (default, longrope)")
    if not _same(scaling.get("partial_rotary_factor", 1), 1):
        raise ValueError(
            f"partial_rotary_factor {scaling['partial_rotary_factor']!r} is not read by "
            f"{LLAMA_FIED[str(config['model_type'])]}, which rotates whole heads"
        )
    if kind == "default":
        return None
    beside = config.get(key)
    return scaling.get(key, maximum) if beside is None else beside


def _same(value: object, allowed: object) -> bool:
    """Compare as JSON does: 1 and 1.0 are one number, true is none."""
    return value == allowed and is_number(value) == is_number(allowed)


def unfused_tensors(arch: Architecture) -> Iterator[tuple[str, tuple[tuple[str, int], ...]]]:
    """Yield each tensor that Phi-3 fuses with the (name, rows) of its parts, in the order of rows.

    All have `arch.hidden_size` columns.
    """
    keys = arch.kv_heads * arch.head_dim
    rows = {
        "self_attn.qkv_proj": (arch.heads * arch.head_dim, keys, keys),
        "mlp.gate_up_proj": (arch.intermediate_size, arch.intermediate_size),
    }
    for layer in range(arch.layers):
        prefix = f"model.layers.{layer}."
        for fused, parts in _PARTS.items():
            names = [f"{prefix}{part}.weight" for part in parts]
            yield f"{prefix}{fused}.weight", tuple(zip(names, rows[fused], strict=True))


def find_fusing(names: Mapping[str, object], arch: Architecture) -> Fusing | None:
    """Return what is to be fused of a checkpoint with tensors of these names, None if nothing is.

    A group counts as separate where one of its parts is there and the fused tensor is not.
    """
    tensors = {
        fused: tuple(part for part, _ in parts)
        for fused, parts in unfused_tensors(arch)
        if fused not in names and any(part in names for part, _ in parts)
    }
    return Fusing(tensors) if tensors else None


def source_tensors(
    arch: Architecture, fusing: Fusing | None
) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Yield name and shape of every tensor that a checkpoint must hold of which `fusing` is to be
    fused: `arch.tensors()`, with the parts in the place of what they make."""
    parts = dict(unfused_tensors(arch))
    for name, shape in arch.tensors():
        if fusing is None or name not in fusing.tensors:
            yield name, shape
            continue
        for part, rows in parts[name]:
            yield part, (rows, *shape[1:])


def places(arch: Architecture) -> dict[str, Place]:
    """Return where the weight of every module lies, by the module's name: those of Phi3ForCausalLM
    and, as rows of these, the separate projections. lm_head has one in a tied model too."""
    found = {name.removesuffix(".weight"): Place(name, 0, shape) for name, shape in arch.tensors()}
    found["lm_head"] = Place(HEAD, 0, (arch.vocab_size, arch.hidden_size))
    for fused, parts in unfused_tensors(arch):
        first = 0
        for part, rows in parts:
            found[part.removesuffix(".weight")] = Place(fused, first, (rows, arch.hidden_size))
            first += rows
    return found
