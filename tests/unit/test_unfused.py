"""Checkpoints with separate projections: config.json in Phi-3's words, which tensors make which."""

from __future__ import annotations

import math
from typing import Any

import pytest

from phibuild.worker.architecture import Architecture, read_architecture
from phibuild.worker.unfused import (
    Fusing,
    canonical_config,
    find_fusing,
    places,
    source_tensors,
    unfused_tensors,
)

# As the llama-fied Phi-4 and Phi-3-mini-4k are on the Hub.
LLAMA: dict[str, Any] = {
    "_name_or_path": "microsoft/phi-4",
    "architectures": ["LlamaForCausalLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "bos_token_id": 100257,
    "eos_token_id": 100265,
    "head_dim": 128,
    "hidden_act": "silu",
    "hidden_size": 5120,
    "initializer_range": 0.02,
    "intermediate_size": 17920,
    "max_position_embeddings": 16384,
    "mlp_bias": False,
    "model_type": "llama",
    "num_attention_heads": 40,
    "num_hidden_layers": 40,
    "num_key_value_heads": 10,
    "original_max_position_embeddings": 16384,
    "pad_token_id": 100351,
    "pretraining_tp": 1,
    "rms_norm_eps": 1e-05,
    "rope_scaling": None,
    "rope_theta": 250000,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "transformers_version": "4.48.0",
    "unsloth_fixed": True,
    "use_cache": True,
    "vocab_size": 100352,
}
MISTRAL: dict[str, Any] = {
    "architectures": ["MistralForCausalLM"],
    "attention_dropout": 0.0,
    "hidden_act": "silu",
    "hidden_size": 3072,
    "intermediate_size": 8192,
    "max_position_embeddings": 4096,
    "model_type": "mistral",
    "num_attention_heads": 32,
    "num_hidden_layers": 32,
    "num_key_value_heads": 32,
    "rms_norm_eps": 1e-05,
    "rope_theta": 10000.0,
    "sliding_window": 2048,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "vocab_size": 32064,
}
LONGROPE = {"type": "longrope", "short_factor": [1.0] * 64, "long_factor": [2.0] * 64}


def arch_of(config: dict[str, Any], **changes: Any) -> Architecture:
    config = {**config, **changes}
    return read_architecture(
        canonical_config({key: value for key, value in config.items() if value is not ...})
    )


def small(layers: int = 2) -> Architecture:
    return arch_of(
        LLAMA, hidden_size=64, head_dim=16, num_attention_heads=4, num_key_value_heads=2,
        intermediate_size=96, num_hidden_layers=layers, vocab_size=32,
    )  # fmt: skip


def test_llama_fied_phi4_is_phi4() -> None:
    arch = arch_of(LLAMA)
    assert (arch.heads, arch.kv_heads, arch.head_dim, arch.layers) == (40, 10, 128, 40)
    assert (arch.rope.theta, arch.rope.partial, arch.rope.is_longrope) == (250000.0, 1.0, False)
    assert (arch.sliding_window, arch.norm_eps, arch.tied) == (None, 1e-5, False)
    assert (arch.max_positions, arch.dtype) == (16384, "bfloat16")
    said = canonical_config(LLAMA)
    assert (said["model_type"], said["architectures"]) == ("phi3", ["Phi3ForCausalLM"])
    assert (said["bos_token_id"], said["eos_token_id"], said["pad_token_id"]) == (
        100257,
        100265,
        100351,
    )


def test_mistral_fied_phi3_keeps_its_window() -> None:
    assert arch_of(MISTRAL).sliding_window == 2048
    assert arch_of(MISTRAL, sliding_window=None).sliding_window is None
    # What Transformers takes where the file says nothing.
    bare = arch_of(
        MISTRAL, sliding_window=..., max_position_embeddings=..., num_key_value_heads=...,
        rms_norm_eps=...,
    )  # fmt: skip
    assert (bare.sliding_window, bare.max_positions, bare.kv_heads) == (4096, 131072, 8)
    assert bare.norm_eps == 1e-6
    assert arch_of(MISTRAL, num_key_value_heads=None).kv_heads == 32


def test_llama_reads_no_window_and_has_defaults_of_its_own() -> None:
    assert arch_of(LLAMA, sliding_window=100).sliding_window is None
    bare = arch_of(LLAMA, max_position_embeddings=..., num_key_value_heads=..., rms_norm_eps=...)
    assert (bare.max_positions, bare.kv_heads, bare.norm_eps) == (2048, 40, 1e-6)


def test_longrope_is_read_as_llama_reads_it() -> None:
    arch = arch_of(LLAMA, rope_scaling=LONGROPE, original_max_position_embeddings=4096)
    assert arch.rope.long == (2.0,) * 64
    assert arch.original_max_positions == 4096
    assert arch.attention_factor == pytest.approx(math.sqrt(1 + math.log(4) / math.log(4096)))
    inside = {**LONGROPE, "original_max_position_embeddings": 2048}
    spelled = {"rope_scaling": ..., "rope_parameters": {**inside, "rope_theta": 250000}}
    arch = arch_of(LLAMA, original_max_position_embeddings=..., **spelled)
    assert (arch.original_max_positions, arch.rope.theta) == (2048, 250000.0)
    # Where no length is named it is the longest: no scale.
    arch = arch_of(LLAMA, rope_scaling=LONGROPE, original_max_position_embeddings=...)
    assert (arch.original_max_positions, arch.attention_factor) == (16384, 1.0)


def test_other_models_are_left_as_they_are() -> None:
    for kind in ("phi3", "qwen2", None):
        config = {**LLAMA, "model_type": kind, "attention_bias": True}
        assert canonical_config(config) == config


@pytest.mark.parametrize(
    ("key", "value", "what"),
    [
        ("hidden_act", "gelu", "hidden_act 'gelu' of this llama is not the arithmetic of Phi-3"),
        ("attention_bias", True, "attention_bias True of this llama"),
        ("mlp_bias", True, "mlp_bias True of this llama"),
        ("mlp_bias", 0, "mlp_bias 0 of this llama"),
        ("pretraining_tp", 2, "pretraining_tp 2 of this llama"),
        ("partial_rotary_factor", 0.75, "partial_rotary_factor 0.75 of this llama"),
        ("layer_types", ["full_attention"], "layer_types ['full_attention'] of this llama"),
        ("head_dim", 64, "head_dim 64 is not hidden_size / num_attention_heads"),
        ("head_dim", "128", "head_dim '128' is not hidden_size / num_attention_heads"),
        ("rope_scaling", "linear", "rope_scaling must be an object, not 'linear'"),
        *(
            (key, {"rope_type": kind, "factor": 2.0}, f"{key} type {kind!r} is not one that")
            for key in ("rope_scaling", "rope_parameters")
            for kind in ("linear", "dynamic", "yarn", "llama3", "su")
        ),
        (
            "rope_scaling",
            {**LONGROPE, "partial_rotary_factor": 0.5},
            "partial_rotary_factor 0.5 is not read by LlamaForCausalLM",
        ),
    ],
)
def test_other_arithmetic_is_refused_with_the_key(key: str, value: Any, what: str) -> None:
    for config in (LLAMA, MISTRAL):
        with pytest.raises(ValueError, match=r"\w") as caught:
            canonical_config({**config, key: value})
        said = str(caught.value).replace("this mistral", "this llama").replace("Mistral", "Llama")
        assert said.startswith(what)


@pytest.mark.parametrize("key", ["hidden_act", "attention_bias", "mlp_bias", "pretraining_tp"])
def test_absent_keys_are_phi_s(key: str) -> None:
    assert arch_of(LLAMA, **{key: ...}) == arch_of(LLAMA)


def test_parts_follow_each_other_as_rows() -> None:
    arch = small()
    rows = dict(unfused_tensors(arch))
    prefix = "model.layers.1."
    assert rows[f"{prefix}self_attn.qkv_proj.weight"] == (
        (f"{prefix}self_attn.q_proj.weight", 64),
        (f"{prefix}self_attn.k_proj.weight", 32),
        (f"{prefix}self_attn.v_proj.weight", 32),
    )
    assert rows[f"{prefix}mlp.gate_up_proj.weight"] == (
        (f"{prefix}mlp.gate_proj.weight", 96),
        (f"{prefix}mlp.up_proj.weight", 96),
    )
    shapes = dict(arch.tensors())
    assert {name: sum(count for _, count in parts) for name, parts in rows.items()} == {
        name: shapes[name][0] for name in rows
    }
    known = places(arch)
    assert (known[f"{prefix}self_attn.v_proj"].first, known["model.norm"].shape) == (96, (64,))
    assert known[f"{prefix}mlp.up_proj"].first == 96


def test_what_is_separate_is_found_by_the_tensors() -> None:
    arch = small(1)
    assert find_fusing(dict(arch.tensors()), arch) is None
    separate = {part for _, parts in unfused_tensors(arch) for part, _ in parts}
    names = dict.fromkeys({*dict(arch.tensors()), *separate})
    assert find_fusing(names, arch) is None  # the fused ones are there; the others are surplus
    qkv, gate_up = (name for name, _ in unfused_tensors(arch))
    del names[qkv]
    found = find_fusing(names, arch)
    assert found is not None
    assert list(found.tensors) == [qkv]
    assert found.to_json() == {qkv: [part for part, _ in dict(unfused_tensors(arch))[qkv]]}
    # With one part missing the rest is still due, and will be missed by name.
    part = "model.layers.0.mlp.up_proj.weight"
    del names[gate_up], names[part]
    found = find_fusing(names, arch)
    assert found is not None
    assert part in dict(source_tensors(arch, found))


def test_source_tensors_are_what_the_files_must_hold() -> None:
    arch = small(1)
    assert list(source_tensors(arch, None)) == list(arch.tensors())
    fusing = Fusing(
        {name: tuple(part for part, _ in parts) for name, parts in unfused_tensors(arch)}
    )
    due = dict(source_tensors(arch, fusing))
    assert due["model.layers.0.self_attn.k_proj.weight"] == (32, 64)
    assert due["model.layers.0.self_attn.o_proj.weight"] == (64, 64)
    assert not due.keys() & fusing.tensors.keys()
    assert sum(map(math.prod, due.values())) == arch.parameters
