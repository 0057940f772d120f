"""A checkpoint's config.json: read, and held against what phibuild builds."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from phibuild.checkpoints.json_files import read_json_object
from phibuild.checkpoints.refused_formats import refused_format
from phibuild.checkpoints.tensors import FETCH
from phibuild.errors import Problem, SourceError
from phibuild.worker.architecture import Architecture, read_architecture
from phibuild.worker.json_values import JsonDict, JsonObject
from phibuild.worker.safetensors import TensorInfo
from phibuild.worker.unfused import LLAMA_FIED, canonical_config

CONFIG = "config.json"
_SUPPORTED = "supported: Phi-3, Phi-3.5, Phi-4-mini, Phi-4 (text, Phi3ForCausalLM)"
_ORIGINAL_CONFIG = "compare it with the config.json of the original checkpoint"
_UNSUPPORTED = {
    "phi4flash": "Phi-4-mini-flash (SambaY, hybrid state-space)",
    "phi4mm": "Phi-4-multimodal",
    "phi4_multimodal": "Phi-4-multimodal",
    "phimoe": "Phi-3.5-MoE",
    "phi3_v": "Phi-3-vision",
    "phi3small": "Phi-3-small (block-sparse attention)",
    "phi": "Phi-1 / Phi-2",
}
_CLASSES = {"phi3": "Phi3ForCausalLM", **LLAMA_FIED}


def read_config(folder: Path) -> JsonDict:
    """Return the content of a folder's config.json. Raises SourceError."""
    path = folder / CONFIG
    if not path.is_file():
        remedy = "is this a Hugging Face checkpoint folder?"
        raise SourceError(Problem("config.json is missing", str(folder), remedy))
    return read_json_object(path, FETCH)


def check_architecture(
    config: JsonObject,
    where: Callable[[str], str],
    tensors: Mapping[str, TensorInfo] | None = None,
    folder: str = "",
) -> tuple[Architecture, JsonDict]:
    """Return the architecture of a config.json, and the config.json in Phi-3's words; raises
    SourceError if it is none of ours.

    `where` says where a key of it was written; `tensors` are those of the weights in `folder`, as
    far as they are known: their names tell what config.json may not say.
    """
    refused = refused_format(config, tensors or {}, where, folder)
    if refused:
        raise SourceError(refused)
    names = config.get("architectures") or []
    names = names if isinstance(names, list) else [names]
    kind = str(config.get("model_type", ""))
    if kind in _UNSUPPORTED:
        what = f"{_UNSUPPORTED[kind]} is not supported yet (model_type {kind!r})"
        raise SourceError(Problem(what, where("model_type"), _SUPPORTED))
    if kind not in _CLASSES or (names and _CLASSES[kind] not in names):
        found = ", ".join(map(str, names)) or kind or "no model_type"
        place = where("architectures" if names else "model_type")
        raise SourceError(Problem(f"not a Phi-3-architecture model ({found})", place, _SUPPORTED))
    try:
        canonical = _with_dtype(canonical_config(config), tensors or {})
        return read_architecture(canonical), canonical
    except KeyError as error:
        what = f"key {error.args[0]!r} is missing"
        raise SourceError(Problem(what, where(""), _ORIGINAL_CONFIG)) from error
    except (TypeError, ValueError) as error:
        key = str(error).split(maxsplit=1)[0]
        raise SourceError(Problem(str(error), where(key), _ORIGINAL_CONFIG)) from error


def _with_dtype(config: JsonObject, tensors: Mapping[str, TensorInfo]) -> JsonDict:
    """Give a config.json that names no dtype the one that the weights have."""
    if config.get("torch_dtype") or config.get("dtype") or not tensors:
        return dict(config)
    names = {"BF16": "bfloat16", "F16": "float16", "F32": "float32"}
    largest = max(tensors.values(), key=lambda tensor: tensor.parameters)
    return {**config, "torch_dtype": names.get(largest.dtype, "bfloat16")}
