"""What a bundle says of its model, for Apple's runner (coreai-models, LanguageBundle)."""

from __future__ import annotations

import json

from phibuild.worker.architecture import Architecture
from phibuild.worker.json_values import JsonDict

NAME = "model"
BUNDLE, MODEL, TOKENIZER_FOLDER = "metadata.json", f"{NAME}.aimodel", "tokenizer"
"""Files and folders of an artifact."""
FUNCTION = "main"
_VERSION = "0.2"


def bundle(arch: Architecture, name: str, context: int, compression: str | None) -> bytes:
    """Return metadata.json; no date, so that equal bundles are equal."""
    document: JsonDict = {
        "metadata_version": _VERSION,
        "kind": "llm",
        "name": name,
        "assets": {"main": MODEL},
        "language": {
            "tokenizer": name,
            "vocab_size": arch.vocab_size,
            "max_context_length": context,
            "embedded_tokenizer": True,
            "function_map": {"main": [FUNCTION]},
        },
        "source": {"model_definition": "phibuild", "hf_model_id": name},
        "compression": compression,
        "compilation": {"date": None, "targets": []},
    }
    return json.dumps(document, indent=2).encode()


def asset() -> bytes:
    """Return an .aimodel's metadata.json."""
    return json.dumps({"producer": "phibuild", "assetVersion": "2.0"}, indent=2).encode()
