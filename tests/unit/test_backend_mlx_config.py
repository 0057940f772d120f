"""config.json of an MLX artifact: what mlx_lm.convert writes, and what mlx-lm needs beyond it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from phibuild.backends.mlx.model_config import write_config
from phibuild.worker.architecture import read_architecture

Q4 = {"mode": "affine", "bits": 4, "group_size": 64, "dtype": "bfloat16"}
CONFIG = {
    "_name_or_path": "elsewhere",
    "auto_map": {"AutoConfig": "configuration_phi3.Phi3Config"},
    "model_type": "phi3",
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "vocab_size": 100,
    "rms_norm_eps": 1e-5,
    "max_position_embeddings": 131072,
    "eos_token_id": 7,
    "torch_dtype": "bfloat16",
}
FACTORS = {"short_factor": [1.0] * 16, "long_factor": [2.0] * 16}


def _written(tmp_path: Path, config: dict[str, Any], options: dict[str, Any]) -> dict[str, Any]:
    (tmp_path / "config.json").write_text(json.dumps(config))
    output = tmp_path / "output"
    output.mkdir()
    write_config(tmp_path, output, read_architecture(config), options, [7, 8])
    written: dict[str, Any] = json.loads((output / "config.json").read_text())
    return written


def test_config_as_mlx_lm_writes_it(tmp_path: Path) -> None:
    published = CONFIG | {
        "rope_scaling": FACTORS | {"type": "longrope"},
        "original_max_position_embeddings": 4096,
    }
    written = _written(tmp_path, published, Q4)
    parameters = {"group_size": 64, "bits": 4, "mode": "affine"}
    kept = {k: v for k, v in published.items() if k not in ("_name_or_path", "auto_map")}
    assert written == kept | {
        "eos_token_id": [7, 8],
        "quantization": parameters,
        "quantization_config": parameters,
    }


def test_config_names_the_bits_that_a_recipe_chose(tmp_path: Path) -> None:
    written = _written(tmp_path, CONFIG, Q4 | {"recipe": "mixed_3_6"})
    quantization = written["quantization"]
    assert quantization == written["quantization_config"]
    assert (quantization["bits"], quantization["group_size"]) == (4, 64)
    assert quantization["lm_head"] == {"group_size": 64, "bits": 6, "mode": "affine"}
    assert quantization["model.embed_tokens"]["bits"] == 3
    assert quantization["model.layers.0.mlp.down_proj"]["bits"] == 3
    assert quantization["model.layers.1.mlp.down_proj"]["bits"] == 6
    assert "model.norm" not in quantization


def test_config_names_the_float_type_that_is_stored(tmp_path: Path) -> None:
    written = _written(tmp_path, CONFIG | {"dtype": "bfloat16"}, {"dtype": "float16"})
    assert (written["torch_dtype"], written["dtype"]) == ("float16", "float16")
    assert "quantization" not in written


def test_rope_as_transformers_5_writes_it_is_put_where_mlx_lm_looks(tmp_path: Path) -> None:
    rope = FACTORS | {
        "rope_type": "longrope",
        "rope_theta": 250000.0,
        "partial_rotary_factor": 0.75,
        "original_max_position_embeddings": 2048,
    }
    rope |= {"short_factor": [1.0] * 12, "long_factor": [2.0] * 12}
    written = _written(
        tmp_path,
        CONFIG | {"rope_parameters": rope, "original_max_position_embeddings": 2048},
        {"dtype": "float32"},
    )
    assert written["rope_scaling"] == {
        "type": "longrope",
        "short_factor": [1.0] * 12,
        "long_factor": [2.0] * 12,
    }
    assert written["rope_theta"] == 250000.0
    assert written["partial_rotary_factor"] == 0.75
    assert written["original_max_position_embeddings"] == 2048
