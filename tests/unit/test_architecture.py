"""Facts of a model from its config.json: shapes, parameters, both spellings of rope, bad values."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from phibuild.worker.architecture import Architecture, read_architecture
from support.checkpoints import ROOT, tensor_shapes

PHI35: dict[str, Any] = {
    "hidden_size": 3072,
    "intermediate_size": 8192,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 32,
    "vocab_size": 32064,
    "max_position_embeddings": 131072,
    "original_max_position_embeddings": 4096,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "sliding_window": 262144,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "rope_scaling": {
        "type": "longrope",
        "short_factor": [1.0] * 48,
        "long_factor": [2.0 + n for n in range(48)],
    },
}


def change(**values: Any) -> dict[str, Any]:
    return {key: value for key, value in {**PHI35, **values}.items() if value is not ...}


def catalogue_config(name: str) -> dict[str, Any]:
    data = yaml.safe_load((ROOT / "conf" / "model" / f"{name}.yaml").read_text(encoding="utf-8"))
    config: dict[str, Any] = data["config"]
    return {**config, "rope_scaling": None}


@pytest.mark.parametrize(
    ("name", "billions"),
    [
        ("phi-3-mini-4k", 3.82),
        ("phi-3-mini-128k", 3.82),
        ("phi-3-medium-4k", 13.96),
        ("phi-3.5-mini", 3.82),
        ("phi-4-mini", 3.84),
        ("phi-4-mini-reasoning", 3.84),
        ("phi-4", 14.66),
        ("phi-4-reasoning", 14.66),
    ],
)
def test_published_models_have_the_parameters_of_their_cards(name: str, billions: float) -> None:
    parameters = read_architecture(catalogue_config(name)).parameters
    assert round(parameters / 1e9, 2) == billions


def test_parameters_of_phi_35_by_hand() -> None:
    layer = 3 * 3072 * 3072 + 3072 * 3072 + 3 * 3072 * 8192 + 2 * 3072
    assert read_architecture(PHI35).parameters == 2 * 32064 * 3072 + 32 * layer + 3072


def test_a_tied_embedding_counts_once() -> None:
    untied, tied = read_architecture(PHI35), read_architecture(change(tie_word_embeddings=True))
    assert untied.parameters - tied.parameters == 32064 * 3072
    assert "lm_head.weight" not in dict(tied.tensors())


@pytest.mark.parametrize("shape", ["phi3", "phi4mini", "phi4"])
def test_tensors_are_those_of_a_checkpoint(shape: str, checkpoint: Any) -> None:
    config = json.loads((checkpoint(shape) / "config.json").read_text(encoding="utf-8"))
    assert list(read_architecture(config).tensors()) == list(tensor_shapes(config))


@pytest.mark.parametrize("shape", ["phi3", "phi4mini", "phi4"])
def test_both_spellings_of_rope_say_the_same(shape: str, checkpoint: Any) -> None:
    """As published, and as Transformers 5 saves the same model."""
    folder: Path = checkpoint(shape)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    modern = dict(config)
    scaling = modern.pop("rope_scaling") or {"type": "default"}
    scaling = {**scaling, "rope_type": scaling["type"], "rope_theta": modern.pop("rope_theta")}
    del scaling["type"]
    if "partial_rotary_factor" in modern:
        scaling["partial_rotary_factor"] = modern.pop("partial_rotary_factor")
    scaling["original_max_position_embeddings"] = modern.pop("original_max_position_embeddings")
    modern["rope_parameters"] = scaling
    modern["dtype"] = modern.pop("torch_dtype")
    assert read_architecture(modern) == read_architecture(config)


def test_rope_of_phi_35() -> None:
    arch = read_architecture(PHI35)
    assert arch.rope.is_longrope
    assert (arch.rope.short[0], arch.rope.long[47], arch.rope.theta) == (1.0, 49.0, 10000.0)
    # sqrt(1 + ln(131072/4096) / ln(4096)), as in modeling_phi3
    assert arch.attention_factor == pytest.approx(1.1902380714, abs=1e-9)


def test_without_scaling_attention_is_not_scaled() -> None:
    arch = read_architecture(change(rope_scaling=None))
    assert (arch.rope.is_longrope, arch.attention_factor) == (False, 1.0)


def test_su_is_the_old_name_of_longrope() -> None:
    scaling = {**PHI35["rope_scaling"], "type": "su"}
    assert read_architecture(change(rope_scaling=scaling)) == read_architecture(PHI35)


def test_partial_rotary_needs_fewer_factors() -> None:
    scaling = {**PHI35["rope_scaling"], "short_factor": [1.0] * 36, "long_factor": [2.0] * 36}
    arch = read_architecture(change(partial_rotary_factor=0.75, rope_scaling=scaling))
    assert (arch.head_dim, arch.rotary_dim, len(arch.rope.long)) == (96, 72, 36)


@pytest.mark.parametrize("name", ["short_factor", "long_factor"])
@pytest.mark.parametrize("count", [0, 47, 49, 96])
def test_factor_lists_of_a_wrong_length_are_named(name: str, count: int) -> None:
    scaling = {**PHI35["rope_scaling"], name: [1.0] * count}
    with pytest.raises(ValueError, match=f"{name} has {count} entries.*needs 48"):
        read_architecture(change(rope_scaling=scaling))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"num_attention_heads": 31}, "hidden_size 3072 is not a multiple"),
        ({"num_key_value_heads": 5}, "not a multiple of num_key_value_heads 5"),
        ({"num_attention_heads": 0}, "num_attention_heads must be .* not 0"),
        ({"hidden_size": -3072}, "hidden_size must be"),
        ({"hidden_size": "wide"}, "hidden_size must be .* not 'wide'"),
        ({"num_hidden_layers": 2.5}, "num_hidden_layers must be"),
        ({"vocab_size": True}, "vocab_size must be"),
        ({"rms_norm_eps": "small"}, "rms_norm_eps must be"),
        ({"rope_theta": 0}, "rope_theta must be"),
        ({"partial_rotary_factor": 1.5}, "partial_rotary_factor"),
        ({"partial_rotary_factor": 0.99, "rope_scaling": None}, "a rotary width of 95: it must be"),
        ({"rope_scaling": [1, 2]}, "rope_scaling must be an object"),
        ({"rope_scaling": {"type": "llama3"}}, "'llama3' is not one"),
        ({"rope_scaling": {**PHI35["rope_scaling"], "long_factor": None}}, "long_factor must be"),
        ({"rope_scaling": {**PHI35["rope_scaling"], "long_factor": ["a"] * 48}}, "long_factor"),
    ],
)
def test_what_cannot_be_is_named(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_architecture(change(**values))


@pytest.mark.parametrize(
    "key",
    ["hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "vocab_size",
     "max_position_embeddings", "rms_norm_eps"],
)  # fmt: skip
def test_a_missing_key_is_named(key: str) -> None:
    with pytest.raises(KeyError, match=key):
        read_architecture(change(**{key: ...}))


@pytest.mark.parametrize("config", [PHI35, change(rope_scaling=None, sliding_window=None)])
def test_json_round_trip(config: dict[str, Any]) -> None:
    arch = read_architecture(config)
    assert Architecture.from_json(json.loads(json.dumps(arch.to_json()))) == arch


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=5,
)


@given(st.dictionaries(st.sampled_from(sorted(PHI35)), JSON, max_size=3))
def test_any_value_is_read_or_refused(values: dict[str, Any]) -> None:
    try:
        arch = read_architecture({**PHI35, **values})
    except (KeyError, TypeError, ValueError):
        return
    assert min(arch.hidden_size, arch.layers, arch.heads, arch.kv_heads, arch.vocab_size) > 0
