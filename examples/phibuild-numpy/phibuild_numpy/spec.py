"""What phibuild knows of the backend without its toolchain: variants, bytes, memory."""

import math
from collections.abc import Sequence

from pydantic import Field

from phibuild.backends.base import BackendSpec, SourceFiles, StoredTensor
from phibuild.backends.common import chosen, facts_bytes, make_variant
from phibuild.schema import Contradiction, Device, Frozen, Precision, Skip, Variant
from phibuild.worker.architecture import Architecture


class NumpyOptions(Frozen):
    clip: float = Field(1.0, gt=0, le=1)
    """int8 only: how much of a row's range has codes of its own; all beyond takes the last one."""


class NumpySpec(BackendSpec[NumpyOptions]):
    name, title, format, library = "numpy", "NumPy arrays", "NumPy", "numpy"
    options = NumpyOptions

    def contradiction(self, precision: Precision, options: NumpyOptions) -> Contradiction | None:
        wrong = chosen(options) if precision != "int8" else ()
        if not wrong:
            return None
        return Contradiction(reason="only int8 has codes", options=wrong, remedy="remove it")

    def variant(
        self, precision: Precision, options: NumpyOptions, device: Device, arch: Architecture
    ) -> Variant | Skip:
        if precision == "fp32":
            return make_variant(self, precision, "fp32", {})
        if precision != "int8":
            return Skip(reason=f"the arrays are int8 or fp32, not {precision}")
        name = "int8" if options.clip == 1 else f"int8-clip{options.clip:g}"
        return make_variant(self, precision, name, {"clip": options.clip})

    def layout(self, arch: Architecture, variant: Variant) -> list[StoredTensor]:
        stored = []
        for name, shape in arch.tensors():
            int8, count = variant.precision == "int8" and len(shape) == 2, math.prod(shape)
            nbytes = count + 4 * shape[0] if int8 else 4 * count  # a float32 scale for each row
            stored.append(StoredTensor(name, "int8" if int8 else "float32", count, nbytes))
        return stored

    def other_bytes(self, arch: Architecture, source: SourceFiles, variant: Variant) -> int:
        return facts_bytes(source)

    def build_memory(
        self, arch: Architecture, source_bytes: int, variants: Sequence[Variant]
    ) -> int:
        return (192 << 20) + 2048 * arch.vocab_size  # Python, numpy, some blocks; the tokenizer

    def judge_memory(
        self, arch: Architecture, variants: Sequence[Variant], window_tokens: int
    ) -> int:
        """Weights stay in their files. Logits are held four times, 64 rows of them in float64."""
        cache = 6 * arch.layers * arch.kv_heads * arch.head_dim
        values = 8 * (arch.intermediate_size + arch.hidden_size) + 6 * window_tokens + cache
        logits = 4 * arch.vocab_size * (4 * window_tokens + 6 * 2 * 64)
        return self.build_memory(arch, 0, variants) + logits + 4 * window_tokens * values

    def kv_bytes_per_element(self, variant: Variant) -> float:
        return 4.0


SPEC = NumpySpec()
