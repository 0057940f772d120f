"""What ONNX Runtime GenAI, its model builder and its providers cannot do, and why.

Tried with onnxruntime-genai 0.18.
"""

from __future__ import annotations

from phibuild.backends.base import ContextLimit
from phibuild.backends.common import missing_accelerator, window_limit
from phibuild.backends.ort_genai.options import QUANTIZED, OrtGenaiOptions, Provider
from phibuild.schema import Accelerator, Device, Precision
from phibuild.worker.architecture import Architecture

_ACCELERATOR: dict[Provider, Accelerator] = {
    "cuda": "cuda",
    "dml": "directml",
    "webgpu": "webgpu",
    "trt_rtx": "cuda",
}
_TITLE: dict[Provider, str] = {
    "cpu": "CPU",
    "cuda": "CUDA",
    "dml": "DirectML",
    "webgpu": "WebGPU",
    "trt_rtx": "TensorRT-RTX",
}

_HEAD_MULTIPLE, _ROTATED_MULTIPLE = 8, 16


def impossible(
    precision: Precision, options: OrtGenaiOptions, device: Device, arch: Architecture
) -> str | None:
    """Return why the builder, the provider or the device cannot do this; None if they can."""
    return (
        _no_accelerator(options, device)
        or _no_attention(arch, options.provider)
        or _no_precision(precision, options)
        or _no_quantization(precision, options, arch)
        or _no_cache(options)
    )


def context(arch: Architecture, provider: Provider) -> ContextLimit | None:
    """Return how many tokens a provider computes rightly: GroupQueryAttention has a window
    (`local_window_size`) on all but DirectML, whose kernel does not read it
    (DmlOperatorGroupQueryAttention.cpp of ONNX Runtime)."""
    if provider != "dml":
        return None
    return window_limit(arch, "DirectML's attention has not")


def _no_accelerator(options: OrtGenaiOptions, device: Device) -> str | None:
    needed = _ACCELERATOR.get(options.provider)
    if needed is None:
        return None
    why = f"provider {options.provider} needs the accelerator {needed}"
    return missing_accelerator(device, needed, why)


def _no_attention(arch: Architecture, provider: Provider) -> str | None:
    """Return why GroupQueryAttention cannot have heads of this shape
    (ONNX Runtime's group_query_attention_helper.h)."""
    if provider == "dml":  # there an operator of its own rotates
        multiple, widths = _HEAD_MULTIPLE, {"heads": arch.head_dim}
    else:
        multiple = _ROTATED_MULTIPLE
        widths = {"heads": arch.head_dim, "a rotary width": arch.rotary_dim}
    for what, width in widths.items():
        if width % multiple:
            return (
                f"this model has {what} of {width}; ONNX Runtime's GroupQueryAttention has only "
                f"multiples of {multiple} for {' and '.join(widths)}"
            )
    return None


def _no_precision(precision: Precision, options: OrtGenaiOptions) -> str | None:
    provider, title = options.provider, _TITLE[options.provider]
    if precision == "fp16" and provider == "cpu":
        return (
            "ONNX Runtime's CPU kernels do not decode an fp16 model made for them "
            "(GroupQueryAttention); fp16 is for cuda, dml, webgpu and trt_rtx"
        )
    if precision == "fp32" and provider == "cuda":
        return "the builder's fp32 graph for cuda is not valid (its present.*.key have no maker)"
    if precision == "fp32" and provider != "cpu":
        return f"{title} computes in fp16; fp32 is for provider cpu"
    if precision == "int8" and provider == "trt_rtx":
        return "the builder quantizes for TensorRT-RTX as DequantizeLinear, which has no int8"
    if precision == "int8" and provider == "dml":
        return "DirectML has no int8 among the builder's combinations; use int4 or fp16"
    return None


def _no_quantization(
    precision: Precision, options: OrtGenaiOptions, arch: Architecture
) -> str | None:
    """Return why these options of quantization cannot work together."""
    if precision not in QUANTIZED:
        return None
    if options.int8_matmuls and options.provider in ("dml", "trt_rtx"):
        return f"{_TITLE[options.provider]} takes int4 products alone; int8_matmuls cannot apply"
    if options.provider == "trt_rtx":
        if options.algorithm != "default" or options.accuracy_level:
            return (
                "TensorRT-RTX graphs hold DequantizeLinear, not MatMulNBits; algorithm and "
                "accuracy_level cannot apply"
            )
    elif precision == "int4" and arch.tied and options.algorithm == "default":
        if not options.symmetric:
            return (
                "with tied embeddings the builder's graph for algorithm default without symmetry "
                "is not valid; use algorithm rtn or k_quant"
            )
        if "last_matmul" in options.int8_matmuls:
            return (
                "with tied embeddings the builder's graph for algorithm default with last_matmul "
                "is not valid; use algorithm rtn or k_quant"
            )
    return _no_zero_points(precision, options, arch)


def _no_cache(options: OrtGenaiOptions) -> str | None:
    """Return why a provider cannot have the KV cache that is asked for."""
    if options.kv_cache is None or options.provider == "cpu":
        return None
    if options.provider == "cuda":
        return "ONNX Runtime's int8 KV cache for CUDA cannot be judged on a CPU; it is for cpu"
    title = _TITLE[options.provider]
    return f"the builder has no int8 KV cache for {title}; it is for provider cpu"


def _no_zero_points(
    precision: Precision, options: OrtGenaiOptions, arch: Architecture
) -> str | None:
    """rtn and k_quant pack 4-bit zero points over row ends; only even rows come out whole."""
    if options.algorithm == "default" or precision != "int4":
        return None
    if options.symmetric and options.algorithm == "rtn":
        return None
    for width in (arch.hidden_size, arch.intermediate_size):
        if -(-width // options.block_size) % 2:
            return (
                f"algorithm {options.algorithm} with zero points needs an even number of blocks; "
                f"a row of {width} has {-(-width // options.block_size)} of {options.block_size}"
            )
    return None
