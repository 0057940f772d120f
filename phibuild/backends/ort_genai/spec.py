"""The ort_genai backend as the core sees it: options, variants, what cannot work.

What the model builder cannot do was tried with onnxruntime-genai 0.18; sizes are in `layout`.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Literal

from pydantic import BaseModel, StrictBool, field_validator

from phibuild.architecture import Architecture
from phibuild.backends.base import SourceFiles, StoredTensor
from phibuild.backends.ort_genai import layout, memory
from phibuild.schema import Accelerator, Device, Frozen, Options, Precision, Skip, Variant

Provider = Literal["cpu", "cuda", "dml", "webgpu", "trt_rtx"]

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
# What has to be installed to run an artifact.
_RUNTIME: dict[Provider, str] = {
    "cpu": "pip install onnxruntime-genai",
    "cuda": "pip install onnxruntime-genai-cuda",
    "dml": "pip install onnxruntime-genai-directml",
    "webgpu": "onnxruntime-genai with the WebGPU execution provider",
    "trt_rtx": "onnxruntime-genai with the NvTensorRtRtx execution provider",
}
_QUANTIZED: tuple[Precision, ...] = ("int4", "int8")


class OrtGenaiOptions(Frozen):
    """Options of ort_genai; the names that the builder gives them are in brackets."""

    provider: Provider = "cpu"
    """Execution provider that the graph is made for; trt_rtx is NvTensorRtRtx."""
    block_size: Literal[16, 32, 64, 128, 256] = 32
    """Weights along the input width that share a scale [block_size]."""
    algorithm: Literal["default", "rtn", "k_quant"] = "default"
    """How weights are rounded [algo_config]: default is ONNX Runtime's own kernel; rtn and
    k_quant are those of Neural Compressor; k_quant searches scales and is much slower."""
    symmetric: StrictBool = True
    """Without zero points [is_symmetric]; k_quant always has zero points."""
    accuracy_level: Literal[0, 1, 2, 3, 4] | None = None
    """Least precision of the activations in MatMulNBits: 1 fp32, 2 fp16, 3 bf16, 4 int8, 0 the
    provider's choice; None is the builder's default, 4 for cpu and webgpu, else 0."""
    int8_matmuls: tuple[Literal["last_matmul", "mixed_layers"], ...] = ()
    """Products kept at int8 in an int4 model [matmul_mixed_precision]: the last (lm_head), and
    those of llama.cpp's mixed rule (qkv and down projection of a third of the layers)."""

    @field_validator("int8_matmuls")
    @classmethod
    def _sorted(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(sorted(set(value)))


class OrtGenaiSpec:
    """ONNX + genai_config for cpu, cuda, dml, webgpu and trt_rtx."""

    name = "ort_genai"
    title = "ONNX Runtime GenAI"
    format = "ONNX"
    library = "onnx"
    options: type[BaseModel] = OrtGenaiOptions

    def variant(
        self, precision: Precision, options: BaseModel, device: Device, arch: Architecture
    ) -> Variant | Skip:
        """Return what to build, or why the builder or the provider cannot do it."""
        assert isinstance(options, OrtGenaiOptions)
        reason = (
            _no_accelerator(options, device)
            or _no_precision(precision, options)
            or _no_quantization(precision, options, arch)
        )
        if reason:
            return Skip(reason=reason)
        chosen: Options = {"provider": options.provider}
        if precision in _QUANTIZED:
            level: int | None = options.accuracy_level
            if level is None:
                level = _default_accuracy_level(options.provider)
            chosen |= {
                "block_size": options.block_size,
                "algorithm": options.algorithm,
                "symmetric": options.symmetric and options.algorithm != "k_quant",
                "accuracy_level": level,
                "int8_matmuls": list(options.int8_matmuls),
            }
        return Variant(
            backend=self.name,
            precision=precision,
            name=_variant_name(precision, options),
            format=self.format,
            options=chosen,
        )

    def layout(self, arch: Architecture, variant: Variant) -> Sequence[StoredTensor]:
        """Return the initializers of the graph that hold weights."""
        return layout.stored_tensors(arch, variant)

    def other_bytes(self, arch: Architecture, source: SourceFiles, variant: Variant) -> int:
        """Return the bytes of rope caches, graph, genai_config.json and tokenizer."""
        return layout.other_bytes(arch, source, variant)

    def build_memory(
        self, arch: Architecture, source_bytes: int, variants: Sequence[Variant]
    ) -> int:
        """Return a bound that grows with the vocabulary, the largest product and the rope tables,
        not with layers: variants are made one after the other, their weights slab by slab."""
        return max(memory.building(arch, variant) for variant in variants)

    def judge_memory(
        self, arch: Architecture, variants: Sequence[Variant], window_tokens: int
    ) -> int:
        """Return a bound that holds the weights as ONNX Runtime's CPU kernels pack them: about
        0.75 bytes a weight for int4, 1.25 for int8, 4 for fp16 and fp32."""
        return max(memory.judging(arch, variant, window_tokens) for variant in variants)

    def kv_bytes_per_element(self, variant: Variant) -> float:
        """Return 4 on cpu, where inputs and outputs are fp32 at any precision; else 2."""
        return float(layout.io_bytes(variant))

    def usage(self, variant: Variant) -> str:
        """Return a Python program. It sets max_length, because genai_config.json asks for the
        whole context of the model, and the KV cache is allocated for all of it at once."""
        runtime = _RUNTIME[variant.options["provider"]]
        prompt = json.dumps("def fibonacci(n):")
        return (
            f"# needs {runtime}\n"
            "import onnxruntime_genai as og\n\n"
            'model = og.Model(".")\n'
            "tokenizer = og.Tokenizer(model)\n"
            "params = og.GeneratorParams(model)\n"
            "params.set_search_options(max_length=256, do_sample=False)\n"
            "generator = og.Generator(model, params)\n"
            f"generator.append_tokens(tokenizer.encode({prompt}))\n"
            "while not generator.is_done():\n"
            "    generator.generate_next_token()\n"
            "print(tokenizer.decode(generator.get_sequence(0)))\n"
        )


def _default_accuracy_level(provider: Provider) -> int:
    """The builder's (`QuantConfig.from_extra_options`)."""
    return 4 if provider in ("cpu", "webgpu") else 0


def _no_accelerator(options: OrtGenaiOptions, device: Device) -> str | None:
    needed = _ACCELERATOR.get(options.provider)
    if needed is None or needed in device.accelerators:
        return None
    return (
        f"provider {options.provider} needs the accelerator {needed}; {device.title} has "
        f"{', '.join(device.accelerators)}"
    )


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
    if precision not in _QUANTIZED:
        given = sorted(options.model_dump(exclude_defaults=True, exclude={"provider"}))
        return f"{precision} is not quantized; {', '.join(given)} cannot apply" if given else None
    if options.int8_matmuls and precision != "int4":
        return "int8_matmuls raises products of an int4 model; this one is int8 already"
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


def _variant_name(precision: Precision, options: OrtGenaiOptions) -> str:
    if precision not in _QUANTIZED:
        return f"{precision}-{options.provider}"
    name = f"{precision}-{options.provider}-b{options.block_size}"
    if options.algorithm != "default":
        name += f"-{options.algorithm}"
    if not options.symmetric and options.algorithm != "k_quant":
        name += "-asym"
    name += "".join(f"-{selector}" for selector in options.int8_matmuls)
    if options.accuracy_level not in (None, _default_accuracy_level(options.provider)):
        name += f"-acc{options.accuracy_level}"
    return name


SPEC = OrtGenaiSpec()
