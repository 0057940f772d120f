"""The pytorch backend as the core sees it: variants, skips, sizes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

from phibuild.backends.base import BackendSpec, SourceFiles, StoredTensor
from phibuild.backends.calibration import calibrated_variant
from phibuild.backends.common import copied_bytes, kv_bytes, make_variant, undivided
from phibuild.backends.pytorch.layout import Scheme, entry_bytes
from phibuild.backends.pytorch.memory import build_memory, judge_memory
from phibuild.backends.pytorch.options import BITS, CAST, PytorchOptions, contradiction
from phibuild.schema import Contradiction, Device, Precision, Skip, Variant
from phibuild.worker.architecture import Architecture
from phibuild.worker.grids import Grid, Zero
from phibuild.worker.safetensors import FLOAT_DTYPES


class PytorchSpec(BackendSpec[PytorchOptions]):
    """Safetensors that Transformers loads and vLLM serves; int8 and int4 by compressed-tensors."""

    name = "pytorch"
    title = "PyTorch (Transformers, vLLM)"
    format = "safetensors"
    library = "transformers"
    options = PytorchOptions

    def contradiction(self, precision: Precision, options: PytorchOptions) -> Contradiction | None:
        """Return options of quantization where nothing is quantized."""
        return contradiction(precision, options)

    def variant(
        self, precision: Precision, options: PytorchOptions, device: Device, arch: Architecture
    ) -> Variant | Skip:
        """Return fp32, fp16, or a weight-only scheme by the name vLLM knows it by (w4a16-g128)."""
        if precision in CAST:
            return make_variant(self, precision, precision, {"dtype": CAST[precision]})
        dtype = arch.dtype if options.dtype == "auto" else options.dtype
        if dtype not in FLOAT_DTYPES:
            return Skip(
                reason=f"the checkpoint's dtype {dtype} cannot hold scales; set dtype to "
                "bfloat16 or float16"
            )
        group_size = _group_size(options.group_size, arch)
        if isinstance(group_size, Skip):
            return group_size
        bits = BITS[precision]
        kind = "" if options.symmetric else "asym-"
        variant = make_variant(
            self,
            precision,
            f"w{bits}a16-{kind}g{group_size}",
            {
                "dtype": dtype,
                "bits": bits,
                "group_size": group_size,
                "symmetric": options.symmetric,
            },
        )
        if not options.is_gptq:
            return variant
        zero: Zero = "middle" if options.symmetric else "code"
        # Kernels for compressed-tensors expect scales as its own observers make them: positive.
        grid = Grid(bits, group_size, zero, FLOAT_DTYPES[dtype], negative=False)
        return calibrated_variant(variant, options, grid)

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
        """Return the bytes of config.json and of the files that are copied."""
        return copied_bytes(source)

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

    def kv_bytes_per_element(self, variant: Variant) -> float:
        """Return the item size of the dtype that the model computes in."""
        return kv_bytes(variant.options["dtype"])

    def run_command(self, variant: Variant) -> str:
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
    reason = None
    for size in (128, 32) if wanted == "auto" else (wanted,):
        reason = undivided(arch, size)
        if reason is None:
            return size
    assert reason is not None
    return Skip(reason=reason)


SPEC = PytorchSpec()
