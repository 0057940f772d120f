"""What the PyTorch backend makes, in the core: variants, layout, sizes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

from pydantic import BaseModel, StrictBool

from phibuild.backends.base import ContextLimit, SourceFiles, StoredTensor, chosen, joined
from phibuild.backends.pytorch.layout import (
    MAX_SHARD_BYTES,
    SAFETENSORS_DTYPE,
    Scheme,
    entry_bytes,
    file_entries,
)
from phibuild.backends.pytorch.memory import build_memory, judge_memory
from phibuild.schema import Contradiction, Device, Frozen, Judging, Precision, Skip, Variant
from phibuild.worker.architecture import Architecture
from phibuild.worker.companions import companions

_BITS: dict[Precision, int] = {"int4": 4, "int8": 8}
_DTYPE: dict[Precision, str] = {"fp16": "float16", "fp32": "float32"}
_HEADER_ENTRY_BYTES = 62
"""JSON of one tensor in a safetensors header besides its name and its numbers: quotes, the keys
dtype, shape and data_offsets, brackets."""
_INDEX_ENTRY_BYTES = 52
"""One line of model.safetensors.index.json besides the tensor's name."""
_QUANTIZATION_CONFIG_BYTES = 930


class PytorchOptions(Frozen):
    """Options of the int4 and int8 variants; fp16 and fp32 have none."""

    group_size: Literal["auto", 32, 64, 128] = "auto"
    """Columns that share a scale. auto: 128, or 32 where 128 does not divide the width of every
    quantized layer; one size for the whole model."""
    symmetric: StrictBool = True
    """Codes signed around zero, no zero points. false: asymmetric, with packed zero points, for
    vLLM; Transformers 5.23 loads those with `CompressedTensorsConfig(dequantize=True)` alone."""
    dtype: Literal["auto", "bfloat16", "float16"] = "auto"
    """Type of scales, embeddings, norms and lm_head. auto: the checkpoint's."""


class PytorchSpec:
    """Safetensors that Transformers loads and vLLM serves; int8 and int4 by compressed-tensors."""

    name = "pytorch"
    title = "PyTorch (Transformers, vLLM)"
    format = "safetensors"
    library = "transformers"
    copied: tuple[str, ...] = ()
    options: type[BaseModel] = PytorchOptions

    def contradiction(self, precision: Precision, options: BaseModel) -> Contradiction | None:
        """Return options of quantization where nothing is quantized."""
        wrong = chosen(options) if precision not in _BITS else ()
        if not wrong:
            return None
        return Contradiction(
            reason=f"{precision} weights are plain, without {joined(wrong)}",
            options=wrong,
            remedy=f"remove {joined(wrong)}, or ask for int4 or int8",
        )

    def variant(
        self, precision: Precision, options: BaseModel, device: Device, arch: Architecture
    ) -> Variant | Skip:
        """Return fp32, fp16, or a weight-only scheme by the name vLLM knows it by (w4a16-g128)."""
        assert isinstance(options, PytorchOptions)
        if precision not in _BITS:
            return self._variant(precision, precision, {"dtype": _DTYPE[precision]})
        dtype = arch.dtype if options.dtype == "auto" else options.dtype
        if dtype not in SAFETENSORS_DTYPE:
            return Skip(
                reason=f"the checkpoint's dtype {dtype} cannot hold scales; set dtype to "
                "bfloat16 or float16"
            )
        group_size = _group_size(options.group_size, arch)
        if isinstance(group_size, Skip):
            return group_size
        bits = _BITS[precision]
        kind = "" if options.symmetric else "asym-"
        return self._variant(
            precision,
            f"w{bits}a16-{kind}g{group_size}",
            {
                "dtype": dtype,
                "bits": bits,
                "group_size": group_size,
                "symmetric": options.symmetric,
            },
        )

    def _variant(self, precision: Precision, name: str, options: dict[str, Any]) -> Variant:
        return Variant(
            backend=self.name, precision=precision, name=name, format=self.format, options=options
        )

    def layout(self, arch: Architecture, variant: Variant) -> list[StoredTensor]:
        """Return every weight as safetensors stores it."""
        scheme = Scheme.from_options(variant.options)
        return [
            StoredTensor(
                name,
                scheme.kind(name),
                math.prod(shape),
                sum(map(entry_bytes, scheme.entries(name, shape))),
            )
            for name, shape in arch.tensors()
        ]

    def other_bytes(self, arch: Architecture, source: SourceFiles, variant: Variant) -> int:
        """Return the bytes of headers, index, config.json and the files that are copied."""
        scheme = Scheme.from_options(variant.options)
        entries = file_entries(arch, scheme)
        total = sum(map(entry_bytes, entries))
        digits = len(str(total))
        copied = ("config.json", *companions(source.files))
        size = sum(source.files.get(name, 0) for name in copied)
        size += sum(
            len(name) + _HEADER_ENTRY_BYTES + len(str(list(shape))) + 2 * digits
            for name, _, shape in entries
        )
        if total > MAX_SHARD_BYTES:
            size += sum(len(name) + _INDEX_ENTRY_BYTES for name, _, _ in entries)
        if scheme.quantization is not None:
            size += _QUANTIZATION_CONFIG_BYTES
        return size

    def build_memory(
        self, arch: Architecture, source_bytes: int, variants: Sequence[Variant]
    ) -> int:
        """Return a bound that grows neither with layers nor with variants: rows are streamed."""
        return build_memory(arch)

    def judge_memory(
        self, arch: Architecture, variants: Sequence[Variant], window_tokens: int
    ) -> int:
        """Return a bound that grows with the width of a layer and the vocabulary alone, once the
        weights exceed what is kept of them."""
        return judge_memory(arch, window_tokens)

    def context_limit(self, arch: Architecture, variant: Variant) -> ContextLimit | None:
        """Return None: Transformers and vLLM have windows."""
        return None

    def judging(self, variant: Variant) -> Judging:
        """Transformers' own modules load the files."""
        return Judging()

    def kv_bytes_per_element(self, variant: Variant) -> float:
        """Return the item size of the dtype that the model computes in."""
        return 4.0 if variant.options["dtype"] == "float32" else 2.0

    def usage(self, variant: Variant) -> str:
        """Return the vLLM command, or Python for Transformers."""
        if "bits" in variant.options:
            return "vllm serve ."
        dtype = variant.options["dtype"]
        return (
            "from transformers import AutoModelForCausalLM, AutoTokenizer\n"
            "tokenizer = AutoTokenizer.from_pretrained('.')\n"
            f"model = AutoModelForCausalLM.from_pretrained('.', dtype='{dtype}')\n"
            "inputs = tokenizer('def ', return_tensors='pt')\n"
            "print(tokenizer.decode(model.generate(**inputs, max_new_tokens=32)[0]))"
        )


def _group_size(wanted: Literal["auto", 32, 64, 128], arch: Architecture) -> int | Skip:
    """Return the group size that divides the width of every quantized layer."""
    # Inputs of qkv_proj and gate_up_proj, of o_proj, of down_proj.
    widths = {
        "hidden_size": arch.hidden_size,
        "the attention's width": arch.heads * arch.head_dim,
        "intermediate_size": arch.intermediate_size,
    }
    candidates = (128, 32) if wanted == "auto" else (wanted,)
    for size in candidates:
        if all(width % size == 0 for width in widths.values()):
            return size
    smallest = candidates[-1]
    what, width = next(item for item in widths.items() if item[1] % smallest)
    return Skip(reason=f"groups of {smallest} do not divide {what} ({width})")


SPEC = PytorchSpec()
