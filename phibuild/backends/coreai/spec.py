"""The coreai backend as the core sees it: variants, skips, sizes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from phibuild.backends.base import (
    BackendSpec,
    Best,
    ContextLimit,
    MatrixTypes,
    SourceFiles,
    StoredTensor,
    TypeChoice,
)
from phibuild.backends.calibration import calibrated_variant
from phibuild.backends.common import copied_bytes, make_variant, undivided
from phibuild.backends.coreai.layout import (
    EMBEDDING,
    ROW,
    Encoding,
    encoding,
    float_kind,
    type_name,
)
from phibuild.backends.coreai.memory import build_memory, judge_memory
from phibuild.backends.coreai.options import CoreAiOptions, contradiction
from phibuild.backends.mixed import GPTQ_LOSS, UNMIXED, affine_error, mixed_variant
from phibuild.schema import Contradiction, Device, Judging, Misfit, Precision, Skip, Variant
from phibuild.worker.architecture import Architecture
from phibuild.worker.grids import Grid

_GROUP_SIZE = 32
_FEWEST = 64
_LAYER_BYTES = 6_000
"""Of a layer's operations in the program."""
_PROGRAM_BYTES = 20_000
_ON_A_DEVICE = """\
The folder is a bundle as Apple's coreai-models reads it: `model.aimodel`, `tokenizer` and
`metadata.json`. On iOS 27 and macOS 27 `CoreAILanguageModel(resourcesAt:)` makes a
`LanguageModelSession` of it, and `llm-runner --model FOLDER` runs it. Core AI's libraries, by which
it was written, are a beta; it was opened and judged by their runtime on Linux's CPU. No Apple
device, GPU or Neural Engine ran it."""


class CoreAiSpec(BackendSpec[CoreAiOptions]):
    """Core AI models with a KV cache, in Apple's bundle of a language model."""

    name = "coreai"
    title = "Core AI (Apple)"
    format = "Core AI"
    library = "coreai"
    toolchain_bytes = 300_000_000
    options = CoreAiOptions
    best = (Best({**UNMIXED, "group_size": 32, "method": "gptq"}),)

    def contradiction(self, precision: Precision, options: CoreAiOptions) -> Contradiction | None:
        """Return groups where there are none, and options that decide the same."""
        return contradiction(precision, options)

    def variant(
        self, precision: Precision, options: CoreAiOptions, device: Device, arch: Architecture
    ) -> Variant | Skip | Misfit:
        """Return the variant, or why it would not work with this model."""
        limit = _limit(arch)
        context = options.context or min(device.context_length, limit.tokens)
        if context > limit.tokens or context < _FEWEST:
            return Skip(
                reason=f"a context of {context} is not {_FEWEST} to {limit.tokens} tokens: "
                f"{limit.why}"
            )
        own = {"mode": precision, "context": context}
        if precision != "int4":
            return make_variant(self, precision, _name(precision, options), own)
        group_size = options.group_size or _GROUP_SIZE
        reason = undivided(arch, group_size)
        if reason:
            return Skip(reason=f"{reason}; use a smaller group_size")
        own["group_size"] = group_size
        variant = make_variant(self, "int4", _name(f"int4-b{group_size}", options), own)
        grid = Grid(4, group_size, "middle", "F16", negative=False, head=not arch.tied)
        if options.is_gptq:
            variant = calibrated_variant(variant, options, grid)
        return mixed_variant(variant, options, grid, self.matrices(arch, variant))

    def matrices(self, arch: Architecture, variant: Variant) -> list[MatrixTypes]:
        """Return what layers multiply by, and the output layer unless it is the embedding: 4 bits
        in blocks, smaller blocks, or 8 bits with a scale for each row."""
        group_size = variant.options["group_size"]
        gptq = GPTQ_LOSS if variant.options.get("method") == "gptq" else 1.0
        errors = {Encoding("si4", group_size): affine_error(4, group_size) * gptq}
        if group_size > _GROUP_SIZE:
            errors[Encoding("si4", _GROUP_SIZE)] = affine_error(4, _GROUP_SIZE)
        errors[Encoding("si8")] = affine_error(8, ROW)
        return [
            MatrixTypes(
                name,
                name,
                tuple(
                    TypeChoice(
                        type_name(how), how.data_bytes(shape) + how.scale_bytes(shape), error
                    )
                    for how, error in errors.items()
                ),
            )
            for name, shape in arch.tensors()
            if len(shape) == 2 and name != EMBEDDING
        ]

    def layout(self, arch: Architecture, variant: Variant) -> list[StoredTensor]:
        """Return every weight as the model stores it."""
        tensors = []
        for name, shape in arch.tensors():
            how = encoding(name, shape, variant.options)
            nbytes = how.data_bytes(shape) + how.scale_bytes(shape)
            tensors.append(StoredTensor(name, how.kind, math.prod(shape), nbytes))
        return tensors

    def other_bytes(self, arch: Architecture, source: SourceFiles, variant: Variant) -> int:
        """Return the bytes of the program, and of the files that are copied: the tokenizer's
        twice."""
        copied = copied_bytes(source)
        return _PROGRAM_BYTES + _LAYER_BYTES * arch.layers + 2 * copied

    def build_memory(
        self, arch: Architecture, source_bytes: int, variants: Sequence[Variant]
    ) -> int:
        """Return a bound that the weights do not change: they are streamed."""
        return build_memory(arch, [variant.options for variant in variants])

    def judge_memory(
        self, arch: Architecture, variants: Sequence[Variant], window_tokens: int
    ) -> int:
        """Return a bound that holds the weights twice, as Core AI's runtime does."""
        return judge_memory(arch, [variant.options for variant in variants], window_tokens)

    def judging(self, variant: Variant) -> Judging:
        """Return how far a CPU goes: its fp16 is too slow for more than a few tokens."""
        if float_kind(variant.options) == "f32":
            return Judging()
        return Judging(how="substitute", note="its graph in float32 on the CPU")

    def context_limit(self, arch: Architecture, variant: Variant) -> ContextLimit | None:
        """Return the tokens that the model is made for."""
        context = variant.options["context"]
        if context >= arch.max_positions:
            return None
        return ContextLimit(
            context, "the model is made for no more (option context of the coreai backend)"
        )

    def kv_bytes_per_element(self, variant: Variant) -> float:
        """Return the bytes of the type that the model is computed in."""
        return 4.0 if float_kind(variant.options) == "f32" else 2.0

    def card_sections(self, arch: Architecture, variant: Variant) -> Mapping[str, str]:
        """Return where it runs, and how far that was tried."""
        return {"On an Apple device": _ON_A_DEVICE}


def _limit(arch: Architecture) -> ContextLimit:
    """Return the longest context that a model can be made for."""
    limits = [ContextLimit(arch.max_positions, "the model has no more positions")]
    if arch.rope.is_longrope:
        limits.append(
            ContextLimit(
                arch.original_max_positions,
                "the model has longrope's short factors, which it uses up to there",
            )
        )
    if arch.sliding_window:
        limits.append(
            ContextLimit(
                arch.sliding_window,
                "the model's attention reaches back over a window of that many tokens, which is "
                "not written down",
            )
        )
    return min(limits, key=lambda limit: limit.tokens)


def _name(name: str, options: CoreAiOptions) -> str:
    """Return a variant's name, with a context that was asked for: that of a device goes without
    saying."""
    return f"{name}-c{options.context}" if options.context else name


SPEC = CoreAiSpec()
