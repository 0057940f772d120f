"""The ort_genai backend as the core sees it: variants and usage.

What cannot work is in `limits`, sizes are in `layout`.
"""

from __future__ import annotations

import json
from collections.abc import Sequence

from pydantic import BaseModel

from phibuild.backends.base import ContextLimit, SourceFiles, StoredTensor
from phibuild.backends.ort_genai import layout, limits, memory
from phibuild.backends.ort_genai.options import QUANTIZED, OrtGenaiOptions, Provider
from phibuild.schema import Contradiction, Device, Judging, Options, Precision, Skip, Variant
from phibuild.worker.architecture import Architecture

# What has to be installed to run an artifact.
_RUNTIME: dict[Provider, str] = {
    "cpu": "pip install onnxruntime-genai",
    "cuda": "pip install onnxruntime-genai-cuda",
    "dml": "pip install onnxruntime-genai-directml",
    "webgpu": "onnxruntime-genai with the WebGPU execution provider",
    "trt_rtx": "onnxruntime-genai with the NvTensorRtRtx execution provider",
}


class OrtGenaiSpec:
    """ONNX + genai_config for cpu, cuda, dml, webgpu and trt_rtx."""

    name = "ort_genai"
    title = "ONNX Runtime GenAI"
    format = "ONNX"
    library = "onnx"
    # onnx 1.21 and later takes external data with several hard links for an attack.
    copied: tuple[str, ...] = ("*.onnx.data",)
    options: type[BaseModel] = OrtGenaiOptions

    def contradiction(self, precision: Precision, options: BaseModel) -> Contradiction | None:
        """Return options of quantization where nothing is quantized, or as it is already."""
        assert isinstance(options, OrtGenaiOptions)
        return limits.contradiction(precision, options)

    def variant(
        self, precision: Precision, options: BaseModel, device: Device, arch: Architecture
    ) -> Variant | Skip:
        """Return what to build, or why the builder or the provider cannot do it."""
        assert isinstance(options, OrtGenaiOptions)
        reason = limits.impossible(precision, options, device, arch)
        if reason:
            return Skip(reason=reason)
        chosen: Options = {"provider": options.provider}
        if precision in QUANTIZED:
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

    def context_limit(self, arch: Architecture, variant: Variant) -> ContextLimit | None:
        """Return the model's window for a provider whose attention has none."""
        return limits.context(arch, variant.options["provider"])

    def judging(self, variant: Variant) -> Judging:
        """The CPU provider runs the graph, whatever provider it is made for."""
        if variant.options["provider"] == "cpu":
            return Judging()
        return Judging(how="substitute", note="its graph on the CPU")

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


def _variant_name(precision: Precision, options: OrtGenaiOptions) -> str:
    if precision not in QUANTIZED:
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
