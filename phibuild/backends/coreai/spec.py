"""The coreai backend as the core sees it: variants, skips, sizes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from phibuild.backends.base import Best, SourceFiles
from phibuild.backends.common import facts_bytes
from phibuild.backends.coreai.layout import EMBEDDING, encoding, float_kind, integers
from phibuild.backends.coreai.memory import build_memory, judge_memory
from phibuild.backends.coreai.options import FEWEST, CoreAiOptions
from phibuild.backends.mixed import UNMIXED
from phibuild.backends.written import WrittenSpec
from phibuild.schema import Judging, Options, Variant
from phibuild.worker.architecture import Architecture
from phibuild.worker.encodings import Encoding
from phibuild.worker.grids import Grid

_LAYER_BYTES = 6_000
"""Of a layer's operations in the program."""
_PROGRAM_BYTES = 20_000
_ON_A_DEVICE = """\
The folder is a bundle as Apple's coreai-models reads it: `model.aimodel`, `tokenizer` and
`metadata.json`. On iOS 27 and macOS 27 `CoreAILanguageModel(resourcesAt:)` makes a
`LanguageModelSession` of it, and `llm-runner --model FOLDER` runs it. Core AI's libraries, by which
it was written, are a beta; it was opened and judged by their runtime on Linux's CPU. No Apple
device, GPU or Neural Engine ran it."""


class CoreAiSpec(WrittenSpec[CoreAiOptions]):
    """Core AI models with a KV cache, in Apple's bundle of a language model."""

    name = "coreai"
    title = "Core AI (Apple)"
    format = "Core AI"
    library = "coreai"
    toolchain_bytes = 300_000_000
    options = CoreAiOptions
    best = (Best({**UNMIXED, "group_size": 32, "method": "gptq"}),)
    full = "the model is made for no more"
    lacking = "is not written down"
    fewest = FEWEST
    has_cache = False
    building = staticmethod(build_memory)
    opening = staticmethod(judge_memory)

    def integers(self, bits: int, group_size: int) -> Encoding:
        return integers(bits, group_size)

    def grid(self, arch: Architecture, group_size: int) -> Grid:
        """Return the grid: an output layer that is the embedding is fp16."""
        return Grid(4, group_size, "middle", "F16", negative=False, head=not arch.tied)

    def factors(self, arch: Architecture) -> Iterator[tuple[str, tuple[int, ...]]]:
        """Yield what layers multiply by, and the output layer unless it is the embedding."""
        for name, shape in arch.tensors():
            if len(shape) == 2 and name != EMBEDDING:
                yield name, shape

    def stored(
        self, arch: Architecture, options: Options
    ) -> Iterator[tuple[str, tuple[int, ...], Encoding]]:
        for name, shape in arch.tensors():
            yield name, shape, encoding(name, shape, options)

    def other_bytes(self, arch: Architecture, source: SourceFiles, variant: Variant) -> int:
        """Return the bytes of the program, and of the files that are copied: the tokenizer's
        twice."""
        return _PROGRAM_BYTES + _LAYER_BYTES * arch.layers + 2 * facts_bytes(source)

    def judging(self, variant: Variant) -> Judging:
        """Return how far a CPU goes: its fp16 is too slow for more than a few tokens."""
        if float_kind(variant.options) == "FLOAT32":
            return Judging()
        return Judging(how="substitute", note="its graph in float32 on the CPU")

    def kv_bytes_per_element(self, variant: Variant) -> float:
        """Return the bytes of the type that the model is computed in."""
        return 4.0 if float_kind(variant.options) == "FLOAT32" else 2.0

    def card_sections(self, arch: Architecture, variant: Variant) -> Mapping[str, str]:
        """Return where it runs, and how far that was tried."""
        return {"On an Apple device": _ON_A_DEVICE}


SPEC = CoreAiSpec()
