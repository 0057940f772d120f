"""Export a checkpoint by ExecuTorch's own exporter; runs in the vendor's environment
(executorch.txt).

    python executorch_export.py SOURCE PRECISION OUTPUT CONTEXT

writes OUTPUT/model.pte. The exporter knows Phi-4-mini alone, from a checkpoint in Meta's form; by
its parameters that is any Phi of the same architecture. It asks for torchtune, of which it takes
one class to read checkpoints with, and does not need it here.
"""

from __future__ import annotations

import json
import sys
import tempfile
import types
from pathlib import Path
from typing import Any

MODES = {"int4": "8da4w", "int8": "8da8w"}


def stand_in_for_torchtune() -> None:
    training = types.ModuleType("torchtune.training")
    training.FullModelHFCheckpointer = None  # type: ignore[attr-defined]
    sys.modules["torchtune"] = types.ModuleType("torchtune")
    sys.modules["torchtune.training"] = training


def parameters(config: dict[str, Any]) -> dict[str, Any]:
    """Return a model's shape in the exporter's words."""
    own = {
        "dim": config["hidden_size"],
        "hidden_dim": config["intermediate_size"],
        "n_heads": config["num_attention_heads"],
        "n_kv_heads": config["num_key_value_heads"],
        "n_layers": config["num_hidden_layers"],
        "norm_eps": config["rms_norm_eps"],
        "vocab_size": config["vocab_size"],
        "rope_theta": config.get("rope_theta", 10000.0),
        "partial_rotary_factor": config.get("partial_rotary_factor", 1.0),
        "use_scaled_rope": False,
        "use_hf_rope": True,
        "attention_qkv_bias": False,
        "use_qk_norm": False,
    }
    scaling = config.get("rope_scaling")
    if scaling:
        own |= {
            "rope_scaling_short_factor": scaling["short_factor"],
            "rope_scaling_long_factor": scaling["long_factor"],
            "original_max_position_embeddings": config["original_max_position_embeddings"],
            "max_position_embeddings": config["max_position_embeddings"],
        }
    return own


def convert(source: Path, folder: Path) -> None:
    """Write a checkpoint in Meta's form."""
    import torch
    from executorch.examples.models.phi_4_mini.convert_weights import phi_4_hf_to_meta
    from safetensors.torch import load_file

    config = json.loads((source / "config.json").read_text("utf-8"))
    weights: dict[str, Any] = {}
    for path in sorted(source.glob("*.safetensors")):
        weights |= load_file(str(path))
    weights = phi_4_hf_to_meta(weights)
    if config.get("tie_word_embeddings"):
        weights["output.weight"] = weights["tok_embeddings.weight"]
    torch.save(weights, folder / "checkpoint.pth")
    (folder / "params.json").write_text(json.dumps(parameters(config)), "utf-8")


def main() -> None:
    source, precision, output, context = sys.argv[1:]
    stand_in_for_torchtune()
    from executorch.examples.models.llama.export_llama_lib import export_llama
    from executorch.extension.llm.export.config.llm_config import LlmConfig, ModelType

    target = Path(output)
    target.mkdir(parents=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as scratch:
        convert(Path(source), Path(scratch))
        config = LlmConfig()
        config.base.model_class = ModelType.phi_4_mini
        config.base.checkpoint = f"{scratch}/checkpoint.pth"
        config.base.params = f"{scratch}/params.json"
        config.base.metadata = '{"get_bos_id": 1, "get_eos_ids": [2]}'
        config.model.use_kv_cache = config.model.use_sdpa_with_kv_cache = True
        config.export.max_seq_length = 128
        config.export.max_context_length = int(context)
        config.export.output_name = str(target / "model.pte")
        config.backend.xnnpack.enabled = config.backend.xnnpack.extended_ops = True
        if precision in MODES:
            config.quantization.qmode = MODES[precision]
            config.quantization.group_size = 32 if precision == "int4" else 0
            config.quantization.embedding_quantize = "8,0"
        export_llama(config)


if __name__ == "__main__":
    main()
