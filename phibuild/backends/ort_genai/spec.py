"""The ort_genai backend as the core sees it: variants, sizes, and what runs them.

What cannot work is in `limits`.
"""

from __future__ import annotations

import json
from collections.abc import Sequence

from phibuild.backends.base import BackendSpec, ContextLimit, SourceFiles, StoredTensor
from phibuild.backends.calibration import calibrated_variant
from phibuild.backends.common import copied_bytes, make_variant, undivided
from phibuild.backends.ort_genai.layout import io_bytes, rope_cache_bytes, stored_tensors
from phibuild.backends.ort_genai.limits import context, impossible
from phibuild.backends.ort_genai.memory import build_memory, judge_memory
from phibuild.backends.ort_genai.options import (
    QUANTIZED,
    OrtGenaiOptions,
    Provider,
    contradiction,
)
from phibuild.schema import Contradiction, Device, Judging, Options, Precision, Skip, Variant
from phibuild.worker.architecture import Architecture
from phibuild.worker.grids import Grid

# What has to be installed to run an artifact.
_RUNTIME: dict[Provider, str] = {
    "cpu": "pip install onnxruntime-genai",
    "cuda": "pip install onnxruntime-genai-cuda",
    "dml": "pip install onnxruntime-genai-directml",
    "webgpu": "onnxruntime-genai with the WebGPU execution provider",
    "trt_rtx": "onnxruntime-genai with the NvTensorRtRtx execution provider",
}


class OrtGenaiSpec(BackendSpec[OrtGenaiOptions]):
    """ONNX + genai_config for cpu, cuda, dml, webgpu and trt_rtx."""

    name = "ort_genai"
    title = "ONNX Runtime GenAI"
    format = "ONNX"
    library = "onnx"
    # onnx 1.21 and later takes external data with several hard links for an attack.
    copied = ("*.onnx.data",)
    options = OrtGenaiOptions

    def contradiction(self, precision: Precision, options: OrtGenaiOptions) -> Contradiction | None:
        """Return options of quantization where nothing is quantized, or as it is already."""
        return contradiction(precision, options)

    def variant(
        self, precision: Precision, options: OrtGenaiOptions, device: Device, arch: Architecture
    ) -> Variant | Skip:
        """Return what to build, or why the builder or the provider cannot do it."""
        reason = impossible(precision, options, device, arch)
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
        variant = make_variant(self, precision, _variant_name(precision, options), chosen)
        return self._calibrated(variant, options, arch) if options.is_gptq else variant

    def _calibrated(
        self, variant: Variant, options: OrtGenaiOptions, arch: Architecture
    ) -> Variant | Skip:
        if options.provider == "trt_rtx":
            return Skip(
                reason="GPTQ's codes go with MatMulNBits, which TensorRT-RTX's graph has not; "
                "remove method"
            )
        if reason := undivided(arch, options.block_size):
            return Skip(reason=f"{reason}, which method gptq needs; use a smaller block_size")
        grid = Grid(
            4,
            options.block_size,
            "middle" if options.symmetric else "code",
            "F32" if options.provider == "cpu" else "F16",
            head="last_matmul" not in options.int8_matmuls,
        )
        return calibrated_variant(variant, options, grid)

    def layout(self, arch: Architecture, variant: Variant) -> Sequence[StoredTensor]:
        """Return the initializers of the graph that hold weights."""
        return stored_tensors(arch, variant)

    def other_bytes(self, arch: Architecture, source: SourceFiles, variant: Variant) -> int:
        """Return the bytes of rope caches and tokenizer, and of the files that are copied."""
        copied = copied_bytes(source) - source.files.get("tokenizer.json", 0)
        return rope_cache_bytes(arch, variant) + _tokenizer_bytes(source) + copied

    def build_memory(
        self, arch: Architecture, source_bytes: int, variants: Sequence[Variant]
    ) -> int:
        """Return a bound that grows with the vocabulary, the largest product and the rope tables,
        not with layers: variants are made one after the other, their weights slab by slab."""
        return max(build_memory(arch, variant) for variant in variants)

    def judge_memory(
        self, arch: Architecture, variants: Sequence[Variant], window_tokens: int
    ) -> int:
        """Return a bound that holds the weights as ONNX Runtime's CPU kernels pack them: about
        0.75 bytes a weight for int4, 1.25 for int8, 4 for fp16 and fp32."""
        return max(judge_memory(arch, variant, window_tokens) for variant in variants)

    def context_limit(self, arch: Architecture, variant: Variant) -> ContextLimit | None:
        """Return the model's window for a provider whose attention has none."""
        return context(arch, variant.options["provider"])

    def judging(self, variant: Variant) -> Judging:
        """The CPU provider runs the graph, whatever provider it is made for."""
        if variant.options["provider"] == "cpu":
            return Judging()
        return Judging(how="substitute", note="its graph on the CPU")

    def kv_bytes_per_element(self, variant: Variant) -> float:
        """Return 4 on cpu, where inputs and outputs are fp32 at any precision; else 2."""
        return float(io_bytes(variant))

    def run_command(self, variant: Variant) -> str:
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


def _tokenizer_bytes(source: SourceFiles) -> int:
    """Return the bytes of tokenizer.json as Transformers saves it, indented: a token is a line
    `      "t": 12345,` and a merge four lines (an array of two strings)."""
    digits = len(str(max(source.tokens, 1)))
    vocabulary = source.token_bytes + source.tokens * (6 + 2 + 2 + digits + 2)
    halves = source.merge_bytes - source.merges  # without the space between two halves
    merges = halves + source.merges * (8 + 11 + 2 + 10 + 2 + 9)
    return max(source.files.get("tokenizer.json", 0), vocabulary + merges)


SPEC = OrtGenaiSpec()
