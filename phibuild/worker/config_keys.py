"""What phibuild makes of every key of a Phi config.json: read, without effect, or one value only.

`READ` and `WITHOUT_EFFECT` name all keys of Transformers' `Phi3Config` (a test compares them);
`ONLY` has those, of that class or read by Transformers from any configuration, whose other values
would make another model than phibuild builds. A key that stands in none of them is not known to
Transformers' Phi3ForCausalLM either, and changes nothing. Standard library only.
"""

from __future__ import annotations

from collections.abc import Iterator

from phibuild.worker.json_values import JsonObject, object_or_empty

READ = {
    "architectures": "checkpoint.py",
    "model_type": "checkpoint.py",
    "dtype": "architecture.py (torch_dtype is its older name)",
    "vocab_size": "architecture.py",
    "hidden_size": "architecture.py",
    "intermediate_size": "architecture.py",
    "num_hidden_layers": "architecture.py",
    "num_attention_heads": "architecture.py",
    "num_key_value_heads": "architecture.py",
    "max_position_embeddings": "architecture.py",
    "original_max_position_embeddings": "architecture.py",
    "rms_norm_eps": "architecture.py",
    "rope_parameters": "architecture.py (rope_scaling is its older name)",
    "sliding_window": "architecture.py",
    "tie_word_embeddings": "architecture.py; an own lm_head.weight unties (weights.py)",
    "bos_token_id": "the tokenizer's facts",
    "eos_token_id": "the tokenizer's facts: what ends generation",
    "pad_token_id": "the tokenizer's facts",
}
WITHOUT_EFFECT = {
    "attention_dropout": "dropout is for training",
    "embd_pdrop": "dropout is for training",
    "resid_pdrop": "dropout is for training",
    "initializer_range": "the weights are there",
    "use_cache": "how a program generates",
    "output_attentions": "what a program gets back",
    "output_hidden_states": "what a program gets back",
    "return_dict": "what a program gets back",
    "id2label": "for classifiers",
    "label2id": "for classifiers",
    "problem_type": "for classifiers",
    "chunk_size_feed_forward": "no module of Phi-3 reads it",
    "transformers_version": "who wrote the file",
    "_name_or_path": "where the checkpoint once was",
    "auto_map": "code beside a checkpoint is never run",
}
# Key -> the values that make the model which phibuild builds; absent is always one of them.
ONLY: dict[str, tuple[object, ...]] = {
    "hidden_act": ("silu", "swish"),
    "is_encoder_decoder": (False,),
    # Read from any configuration by Transformers' masks, caches and loader.
    "is_causal": (None, True),
    "attention_chunk_size": (None,),
    "layer_types": (None,),
    "per_layer_config": (None,),
    "kv_sharing_modes": (None,),
    "transformers_weights": (None,),
    # Read by the code that came with the first checkpoints, whose modules have no biases.
    "attention_bias": (None, False),
    "mlp_bias": (None, False),
    "lm_head_bias": (None, False),
    "full_attn_mod": (None, 1),
    "interpolate_factor": (None, 1),
}
ROPE_KEYS = (
    "rope_type",
    "type",
    "rope_theta",
    "partial_rotary_factor",
    "short_factor",
    "long_factor",
    "factor",
    "attention_factor",
    "original_max_position_embeddings",
)
"""What rope_scaling, or rope_parameters, may hold."""


def refused_values(config: JsonObject) -> Iterator[tuple[str, str]]:
    """Yield (key, what is wrong) of every key whose value phibuild does not build."""
    for key, allowed in ONLY.items():
        if key in config and not any(
            config[key] is value or (config[key] == value and type(config[key]) is type(value))
            for value in allowed
        ):
            known = " or ".join("null" if value is None else repr(value) for value in allowed)
            yield key, f"{key} {config[key]!r} makes another model than phibuild builds ({known})"
    match config:
        case {"head_dim": head, "hidden_size": int(hidden), "num_attention_heads": int(heads)} if (
            head is not None and heads > 0 and head != hidden // heads
        ):
            usual = hidden // heads
            what = f"head_dim {head!r} is not hidden_size / num_attention_heads ({usual})"
            yield "head_dim", f"{what}: no format keeps such heads of a Phi"
    for name, scaling in rope_objects(config):
        for key in scaling:
            if key not in ROPE_KEYS:
                yield key, f"{name} has {key!r}, which Transformers' Phi-3 does not read"


def rope_objects(config: JsonObject) -> Iterator[tuple[str, JsonObject]]:
    """Yield name and content of what a config.json may say of rope, where it is an object."""
    for name in ("rope_scaling", "rope_parameters"):
        if scaling := object_or_empty(config.get(name)):
            yield name, scaling
