"""The openvino backend as the core sees it: variants, skips, sizes."""

from __future__ import annotations

import math
from collections.abc import Sequence

from phibuild.backends.base import (
    BackendSpec,
    Best,
    MatrixTypes,
    SourceFiles,
    StoredTensor,
    TypeChoice,
    changed,
)
from phibuild.backends.calibration import calibrated_variant
from phibuild.backends.common import (
    cached_variant,
    copied_bytes,
    make_variant,
    missing_accelerator,
    undivided,
)
from phibuild.backends.mixed import GPTQ_LOSS, UNMIXED, affine_error, mixed_variant
from phibuild.backends.openvino.layout import ROW, encoding, whole_kind
from phibuild.backends.openvino.memory import build_memory, judge_memory
from phibuild.backends.openvino.options import MODES, Mode, OpenVinoOptions, contradiction
from phibuild.schema import (
    Accelerator,
    Contradiction,
    Device,
    Judging,
    Misfit,
    Options,
    Precision,
    Skip,
    Variant,
)
from phibuild.worker.architecture import Architecture
from phibuild.worker.grids import Grid, Zero

_GROUP_SIZE = {"int4_asym": 64, "int4_sym": 128}
_SMALL_GROUP = 32
_NPU_GROUP_SIZES = (128, ROW)
_ACCELERATOR: dict[str, Accelerator] = {
    "cpu": "cpu",
    "gpu": "openvino_gpu",
    "npu": "openvino_npu",
}

_CACHE_BITS = {"u8": 8, "f16": 16}
_HEAD = 96
"""Smallest head_dim of the published Phi models."""

_XML_BYTES, _TOKENIZER_XML_BYTES = 65_000, 35_000
"""Of the nodes around the layers in the .xml, and of those of tokenizer and detokenizer."""
_LAYER_XML_BYTES, _PARTIAL_XML_BYTES = {"": 62_000, "sym": 70_000, "asym": 75_000}, 10_000
"""Of a layer's nodes, names and ports, by what its weights are; more where heads rotate in part."""


class OpenVinoSpec(BackendSpec[OpenVinoOptions]):
    """OpenVINO IR with tokenizers, for openvino-genai."""

    name = "openvino"
    title = "OpenVINO (openvino-genai)"
    format = "OpenVINO IR"
    library = "openvino"
    toolchain_bytes = 390_000_000
    options = OpenVinoOptions
    best = (
        Best({**UNMIXED, "mode": "int4_asym", "group_size": 32, "method": "gptq"}),
        Best({**UNMIXED, "mode": "int4_sym", "group_size": 128, "method": "gptq"}),  # the NPU's
    )

    def contradiction(self, precision: Precision, options: OpenVinoOptions) -> Contradiction | None:
        """Return a mode of another precision, or groups where there are none."""
        return contradiction(precision, options)

    def variant(
        self, precision: Precision, options: OpenVinoOptions, device: Device, arch: Architecture
    ) -> Variant | Skip | Misfit:
        """Return the variant, or why it would not work on this device or with this model."""
        made = self._of_weights(precision, options, device, arch)
        return changed(made, lambda variant: self._with_cache(variant, options))

    def _with_cache(self, variant: Variant, options: OpenVinoOptions) -> Variant | Skip:
        if options.kv_cache in (None, self._cache(variant)):
            return variant
        if options.target == "npu":
            return Skip(
                reason="a quantized KV cache is experimental on the NPU, its values another type "
                "than the CPU's, which it would be judged by; use f16"
            )
        return cached_variant(variant, options.kv_cache, _CACHE_BITS[options.kv_cache])

    def _cache(self, variant: Variant) -> str | None:
        """Return the type of the cache, None where it is the CPU plugin's default: on GPU and NPU
        and where the weights are floats, for which the IR asks for it, it is f16."""
        own = variant.options["target"] == "cpu" and variant.precision in MODES
        cache: str | None = variant.options.get("kv_cache", None if own else "f16")
        return cache

    def _of_weights(
        self, precision: Precision, options: OpenVinoOptions, device: Device, arch: Architecture
    ) -> Variant | Skip | Misfit:
        needed = _ACCELERATOR[options.target]
        reason = missing_accelerator(
            device, needed, f"target {options.target} needs the accelerator {needed}"
        )
        if reason:
            return Skip(reason=reason)
        if precision not in MODES:
            return self._variant(precision, precision, {"mode": precision}, options.target)
        mode = options.mode or self._default_mode(precision, options.target)
        if options.target == "npu" and mode.endswith("_asym"):
            return Skip(
                reason=f"the NPU takes symmetric weights alone, not {mode}; use mode "
                f"{precision}_sym, or target cpu or gpu"
            )
        if precision == "int8":
            return self._variant(precision, mode.replace("_", "-"), {"mode": mode}, options.target)
        return self._int4(mode, options, arch)

    def _default_mode(self, precision: Precision, target: str) -> Mode:
        return MODES[precision][1 if target == "npu" else 0]

    def _int4(
        self, mode: Mode, options: OpenVinoOptions, arch: Architecture
    ) -> Variant | Skip | Misfit:
        group_size = options.group_size or _GROUP_SIZE[mode]
        if options.target == "npu" and group_size not in _NPU_GROUP_SIZES:
            return Skip(
                reason=f"the NPU takes groups of 128 or whole rows (-1), not of {group_size}"
            )
        reason = None if group_size == ROW else undivided(arch, group_size)
        if reason:
            return Skip(
                reason=f"{reason}, which nncf refuses; use a smaller group_size, or -1 for one "
                "scale for each row"
            )
        groups = "cw" if group_size == ROW else f"g{group_size}"
        variant = self._variant(
            "int4",
            f"{mode.replace('_', '-')}-{groups}",
            {"mode": mode, "group_size": group_size},
            options.target,
        )
        zero: Zero = "code" if mode == "int4_asym" else "middle"
        grid = Grid(4, group_size, zero, "F16")
        if options.is_gptq:
            variant = calibrated_variant(variant, options, grid)
        return mixed_variant(variant, options, grid, self.matrices(arch, variant))

    def _variant(self, precision: Precision, name: str, options: Options, target: str) -> Variant:
        return make_variant(self, precision, name, {**options, "target": target})

    def matrices(self, arch: Architecture, variant: Variant) -> list[MatrixTypes]:
        """Return the matrices of the layers: 4 bits in groups, smaller groups, or 8 bits with a
        scale for each row. The embedding and lm_head have 8 as it is."""
        mode, group_size = variant.options["mode"], variant.options["group_size"]
        kind = whole_kind(mode)
        gptq = GPTQ_LOSS if variant.options.get("method") == "gptq" else 1.0
        kinds = {kind: affine_error(4, group_size) * gptq}
        if group_size > _SMALL_GROUP and variant.options["target"] != "npu":
            kinds[f"{kind}g{_SMALL_GROUP}"] = affine_error(4, _SMALL_GROUP)
        kinds[f"{kind[0]}8"] = affine_error(8, ROW)

        def nbytes(name: str, shape: tuple[int, ...], own: str) -> int:
            how = encoding(name, shape, {**variant.options, "tensor_types": {name: own}})
            return sum(part.nbytes for part in how.parts(shape))

        return [
            MatrixTypes(
                name,
                name,
                tuple(
                    TypeChoice(own, nbytes(name, shape, own), error) for own, error in kinds.items()
                ),
            )
            for name, shape in arch.tensors()
            if len(shape) == 2 and name.startswith("model.layers.")
        ]

    def layout(self, arch: Architecture, variant: Variant) -> list[StoredTensor]:
        """Return every weight as the IR stores it."""
        tensors = []
        for name, shape in arch.tensors():
            stored = encoding(name, shape, variant.options)
            nbytes = sum(part.nbytes for part in stored.parts(shape))
            tensors.append(StoredTensor(name, stored.kind, math.prod(shape), nbytes))
        return tensors

    def other_bytes(self, arch: Architecture, source: SourceFiles, variant: Variant) -> int:
        """Return the bytes of graph, tokenizer models and the files that are copied."""
        layer = _LAYER_XML_BYTES[variant.options["mode"].partition("_")[2]]
        if arch.rotary_dim < arch.head_dim:
            layer += _PARTIAL_XML_BYTES
        graphs = _XML_BYTES + layer * arch.layers + _TOKENIZER_XML_BYTES
        return graphs + _tokenizer_bytes(source) + copied_bytes(source)

    def build_memory(
        self, arch: Architecture, source_bytes: int, variants: Sequence[Variant]
    ) -> int:
        """Return a bound that neither layers nor variants change: weights are streamed."""
        return build_memory(arch.vocab_size)

    def judge_memory(
        self, arch: Architecture, variants: Sequence[Variant], window_tokens: int
    ) -> int:
        """Return a bound that holds the weights of the largest variant."""
        return judge_memory(arch, [variant.options for variant in variants], window_tokens)

    def judging(self, variant: Variant) -> Judging:
        """The CPU's plugin runs the IR, whatever device it is made for."""
        if variant.options["target"] == "cpu":
            return Judging()
        return Judging(how="substitute", note="OpenVINO's CPU plugin")

    def kv_bytes_per_element(self, variant: Variant) -> float:
        """Return 2 (f16), or what u8 takes, which is the CPU plugin's default, with a scale and a
        zero point (f32) for each head."""
        return 2.0 if self._cache(variant) == "f16" else 1.0 + 8.0 / _HEAD

    def run_command(self, variant: Variant) -> str:
        """Return Python for openvino-genai."""
        device = variant.options["target"].upper()
        return (
            "import openvino_genai\n"
            f'pipeline = openvino_genai.LLMPipeline(".", "{device}")\n'
            'print(pipeline.generate("Why is the sky blue?", max_new_tokens=256))'
        )


def _tokenizer_bytes(source: SourceFiles) -> int:
    """Return the bytes of openvino_tokenizer.bin and openvino_detokenizer.bin.

    Both hold the vocabulary (8 bytes of offsets a token, and its text), the tokenizer the two
    halves of each merge too.
    """
    # Byte-level BPE writes bytes above 127 and blanks as two; the models hold the bytes.
    text = 1.0 if source.tokenizer == "sentencepiece" else 0.87
    vocabulary = 8 * source.tokens + text * source.token_bytes
    merges = 16 * source.merges + text * (source.merge_bytes - source.merges)
    return round(2 * vocabulary + merges)


SPEC = OpenVinoSpec()
