"""A source's config.json in the words that all vendors' tools read. Standard library only."""

from __future__ import annotations

from phibuild.worker.architecture import LONGROPE, Architecture
from phibuild.worker.config_keys import rope_objects
from phibuild.worker.json_values import JsonDict, JsonObject


def view_config(config: JsonObject, canonical: JsonObject, arch: Architecture) -> JsonDict | None:
    """Return a config.json in the words that all vendors' tools read, None if it is in them.

    `canonical` is the same in Phi-3's words, `arch` what was made of it and the weights: an own
    lm_head unties them.
    """
    said = (
        dict(canonical) if canonical.get("model_type") != config.get("model_type") else {**config}
    )
    if said.get("tie_word_embeddings", False) != arch.tied:
        said["tie_word_embeddings"] = arch.tied
    if said.get("hidden_act") == "swish":
        said["hidden_act"] = "silu"
    if said.get("rope_scaling"):
        said.pop("rope_parameters", None)
    for name, scaling in rope_objects(said):
        said[name] = {
            key: "longrope" if key in ("type", "rope_type") and value in LONGROPE else value
            for key, value in scaling.items()
        }
    if arch.rope.is_longrope and said.get("original_max_position_embeddings") is None:
        said["original_max_position_embeddings"] = arch.original_max_positions
    if "head_dim" in said and said["head_dim"] is None:
        del said["head_dim"]  # Transformers would count with it
    return None if said == dict(config) else said
