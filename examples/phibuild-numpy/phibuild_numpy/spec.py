"""What phibuild knows of the backend without its toolchain: variants, bytes, memory."""

import json
import math
from collections.abc import Sequence

from pydantic import BaseModel, Field

from phibuild.backends.base import BackendSpec, SourceFiles, StoredTensor
from phibuild.schema import Contradiction, Device, Frozen, Precision, Skip, Variant
from phibuild.worker.architecture import Architecture
from phibuild.worker.companions import companions

Variants = Sequence[Variant]


class NumpyOptions(Frozen):
    clip: float = Field(1.0, gt=0, le=1)
    """int8 only: how much of a row's range has codes of its own; all beyond takes the last one."""


class NumpySpec(BackendSpec):
    name, title, format, library = "numpy", "NumPy arrays", "NumPy", "numpy"
    options: type[BaseModel] = NumpyOptions

    def contradiction(self, precision: Precision, options: BaseModel) -> Contradiction | None:
        if precision == "int8" or "clip" not in options.model_fields_set:
            return None
        return Contradiction(reason="only int8 has codes", options=("clip",), remedy="remove it")

    def variant(
        self, precision: Precision, options: BaseModel, device: Device, arch: Architecture
    ) -> Variant | Skip:
        if precision not in ("int8", "fp32"):
            return Skip(reason=f"the arrays are int8 or fp32, not {precision}")
        own = options.model_dump() if precision == "int8" else {}
        name = precision if own.get("clip", 1) == 1 else f"int8-clip{own['clip']:g}"
        return Variant(backend="numpy", precision=precision, name=name, format="NumPy", options=own)

    def layout(self, arch: Architecture, variant: Variant) -> list[StoredTensor]:
        stored = []
        for name, shape in arch.tensors():
            int8, count = variant.precision == "int8" and len(shape) == 2, math.prod(shape)
            nbytes = count + 4 * shape[0] if int8 else 4 * count  # a float32 scale for each row
            stored.append(StoredTensor(name, "int8" if int8 else "float32", count, nbytes))
        return stored

    def other_bytes(self, arch: Architecture, source: SourceFiles, variant: Variant) -> int:
        files = sum(1 + (tensor.kind == "int8") for tensor in self.layout(arch, variant))
        copied = sum(source.files[name] for name in companions(source.files))
        return 128 * files + len(json.dumps(arch.to_json())) + copied  # 128: a .npy file's header

    def build_memory(self, arch: Architecture, source_bytes: int, variants: Variants) -> int:
        return (192 << 20) + 2048 * arch.vocab_size  # Python, numpy, some blocks; the tokenizer

    def judge_memory(self, arch: Architecture, variants: Variants, window_tokens: int) -> int:
        """Weights stay in their files. Logits are held four times, 64 rows of them in float64."""
        values = 8 * (arch.intermediate_size + arch.hidden_size) + 6 * window_tokens
        values += 6 * arch.layers * arch.kv_heads * arch.head_dim
        logits = 4 * arch.vocab_size * (4 * window_tokens + 6 * 2 * 64)
        return self.build_memory(arch, 0, variants) + logits + 4 * window_tokens * values

    def kv_bytes_per_element(self, variant: Variant) -> float:
        return 4.0


SPEC = NumpySpec()
