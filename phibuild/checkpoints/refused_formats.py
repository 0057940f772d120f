"""Checkpoints that are no original: quantized ones, and those saved from inside a wrapper.

Both are refused by the name of what made them. config.json says it (`quantization_config`, in
Transformers' words; `quantization`, in MLX's), or the tensors' names do where it does not.
"""

from __future__ import annotations

from collections.abc import Callable, Collection

from phibuild.checkpoints.tensors import first_names
from phibuild.errors import Problem
from phibuild.worker.json_values import JsonObject, object_or_empty

# quant_method -> name.
_METHODS = {
    "gptq": "GPTQ",
    "awq": "AWQ",
    "bitsandbytes": "bitsandbytes",
    "compressed-tensors": "compressed-tensors",
    "auto-round": "AutoRound",
    "torchao": "torchao",
    "fp8": "FP8",
    "fbgemm_fp8": "FBGEMM FP8",
    "mxfp4": "MXFP4",
    "quark": "AMD Quark",
    "modelopt": "NVIDIA ModelOpt",
    "quanto": "Quanto",
    "mlx": "MLX",
    "hqq": "HQQ",
    "eetq": "EETQ",
    "aqlm": "AQLM",
    "vptq": "VPTQ",
    "spqr": "SpQR",
    "higgs": "HIGGS",
    "bitnet": "BitNet",
}
# What makes plain weights of them again, where it is not the tool that made them.
_TOOLS = {
    "bitsandbytes": "Transformers: model.dequantize(), then save_pretrained",
    "compressed-tensors": "Transformers: CompressedTensorsConfig(dequantize=True)",
    "fp8": "Transformers: FineGrainedFP8Config(dequantize=True)",
    "mxfp4": "Transformers: Mxfp4Config(dequantize=True)",
    "mlx": "mlx_lm.convert --dequantize",
}
# Ends of names that quantized tensors alone have -> the method; the surest first.
_MARKS = {
    ".weight_packed": "compressed-tensors",
    ".weight.absmax": "bitsandbytes",
    ".weight.nested_absmax": "bitsandbytes",
    ".weight.quant_map": "bitsandbytes",
    ".SCB": "bitsandbytes",
    ".g_idx": "gptq",
    ".qweight": "awq",
    ".qzeros": "awq",
    ".weight_scale_inv": "fp8",
    ".W_q": "hqq",
    ".codebooks": "aqlm",
    ".centroids.weight": "vptq",
    ".dense_weights": "spqr",
    ".weight._data": "quanto",
    ".weight_qdata": "torchao",
    ".weight_scales": "eetq",
    ".weight_blocks": "mxfp4",
    ".weight_scale_2": "modelopt",
    ".biases": "mlx",
    ".weight_scale": "",
    ".weight_zero_point": "",
    ".scales": "",
}
_ORIGINAL = "start from the original weights"
_ADAPTER = ", an adapter that was trained on it too: model: {base: ..., adapter: ...}"
# Part of a name -> what saved it, and what to do.
_WRAPPERS = {
    "base_model": (
        "PEFT",
        "call merge_and_unload() and save what it returns, or give the adapter's own folder",
    ),
    "lora_A": ("PEFT", "call merge_and_unload() and save what it returns"),
    "_orig_mod": ("torch.compile", "save the model that was compiled (model._orig_mod)"),
    "module": ("DistributedDataParallel", "save the model inside (model.module)"),
    "_fsdp_wrapped_module": (
        "FSDP",
        "gather the full state when saving (accelerate merge-weights)",
    ),
    "_checkpoint_wrapped_module": (
        "activation checkpointing",
        "save the model without the wrapper",
    ),
}


def refused_format(
    config: JsonObject,
    tensors: Collection[str],
    where: Callable[[str], str],
    folder: str,
) -> Problem | None:
    """Return why a checkpoint with this config.json and tensors of these names is no original, None
    if it may be one. `where` says where a key of config.json is written."""
    return _quantized(config, tensors, where, folder) or _wrapped(tensors, folder)


def _quantized(
    config: JsonObject,
    tensors: Collection[str],
    where: Callable[[str], str],
    folder: str,
) -> Problem | None:
    found, method = _marked(tensors)
    unnamed = {"quantization_config": method, "quantization": "mlx"}
    for key in ("quantization_config", "compression_config", "quantization"):
        settings = config.get(key)
        if not settings:
            continue
        problem = _problem(_method(settings) or unnamed.get(key, ""), where(key))
        if tensors and not found:
            extra = f"; if the weights are plain (merged after training), remove {key}"
            return Problem(problem.what, problem.where, f"{problem.remedy}{extra}")
        return problem
    if not found:
        return None
    problem = _problem(method, folder)
    return Problem(f"{problem.what} ({first_names(found)})", folder, problem.remedy)


def _marked(tensors: Collection[str]) -> tuple[list[str], str]:
    """Return the tensors whose names tell the method, and the method ("" if they do not tell it);
    [] if none is quantized."""
    for mark, method in _MARKS.items():
        if found := [name for name in tensors if name.endswith(mark)]:
            return found, method
    return [], ""


def _method(found: object) -> str:
    """Return the quant_method of a quantization_config, in lower case."""
    settings = object_or_empty(found)
    if settings.get("load_in_4bit") or settings.get("load_in_8bit"):
        return "bitsandbytes"  # written so before there was a quant_method
    return str(settings.get("quant_method") or "").lower()


def _problem(method: str, where: str) -> Problem:
    name, tool = _METHODS.get(method, method), _TOOLS.get(method, "the tool that made it")
    by = f" with {name}" if name else ""
    adapter = _ADAPTER if method == "bitsandbytes" else ""
    return Problem(
        f"the checkpoint is quantized already{by}",
        where,
        f"{_ORIGINAL}{adapter}, or dequantize it with {tool}",
    )


def _wrapped(tensors: Collection[str], folder: str) -> Problem | None:
    for part, (wrapper, remedy) in _WRAPPERS.items():
        found = [
            name
            for name in tensors
            if name.startswith(f"{part}.") or (part != "module" and f".{part}." in name)
        ]
        if found:
            what = f"saved from inside {wrapper}: {first_names(sorted(found))}"
            return Problem(what, folder, remedy)
    return None
