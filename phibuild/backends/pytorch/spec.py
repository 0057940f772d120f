"""The pytorch backend as the core sees it: variants, skips, sizes."""

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
)
from phibuild.backends.calibration import calibrated_variant
from phibuild.backends.common import copied_bytes, kv_bytes, make_variant, undivided
from phibuild.backends.mixed import GPTQ_LOSS, UNMIXED, affine_error, mixed_variant
from phibuild.backends.pytorch.layout import ROWS, Scheme, entry_bytes, is_linear
from phibuild.backends.pytorch.memory import build_memory, judge_memory
from phibuild.backends.pytorch.options import BITS, CAST, PytorchOptions, contradiction
from phibuild.schema import Contradiction, Device, Judging, Misfit, Precision, Skip, Variant
from phibuild.worker.architecture import Architecture
from phibuild.worker.grids import Grid, Zero
from phibuild.worker.safetensors import FLOAT_DTYPES

_SMALL_GROUP = 32


class PytorchSpec(BackendSpec[PytorchOptions]):
    """Safetensors that Transformers loads and vLLM serves; int8 and int4 by compressed-tensors."""

    name = "pytorch"
    title = "PyTorch (Transformers, vLLM)"
    format = "safetensors"
    library = "transformers"
    toolchain_bytes = 970_000_000
    options = PytorchOptions
    best = (Best({**UNMIXED, "group_size": 32, "symmetric": True, "method": "gptq"}),)

    def contradiction(self, precision: Precision, options: PytorchOptions) -> Contradiction | None:
        """Return options of quantization where nothing is quantized."""
        return contradiction(precision, options)

    def variant(
        self, precision: Precision, options: PytorchOptions, device: Device, arch: Architecture
    ) -> Variant | Skip | Misfit:
        """Return fp32, fp16, or a scheme by the name vLLM knows it by (w4a16-g128, w8a8, fp8)."""
        if precision in CAST:
            return make_variant(self, precision, precision, {"dtype": CAST[precision]})
        dtype = arch.dtype if options.dtype == "auto" else options.dtype
        if dtype not in FLOAT_DTYPES:
            return Skip(
                reason=f"the checkpoint's dtype {dtype} cannot hold scales; set dtype to "
                "bfloat16 or float16"
            )
        if options.scheme is not None:
            own = {"dtype": dtype, "bits": 8, "scheme": options.scheme}
            return make_variant(self, precision, ROWS[options.scheme].kind, own)
        sizes = (128, _SMALL_GROUP) if options.group_size == "auto" else (options.group_size,)
        group_size = next((size for size in sizes if not undivided(arch, size)), sizes[-1])
        if reason := undivided(arch, group_size):
            return Skip(reason=reason)
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
        zero: Zero = "middle" if options.symmetric else "code"
        # Kernels for compressed-tensors expect scales as its own observers make them: positive.
        grid = Grid(bits, group_size, zero, FLOAT_DTYPES[dtype], negative=False)
        if options.is_gptq:
            variant = calibrated_variant(variant, options, grid)
        return mixed_variant(variant, options, grid, _matrices(arch, variant, FLOAT_DTYPES[dtype]))

    def matrices(self, arch: Architecture, variant: Variant) -> list[MatrixTypes]:
        """Return the matrices of the layers: 4 bits, 4 bits in smaller groups, or 8. What is left
        of the loss at 8 is less than a target could ask for; by name they can be left unquantized
        too."""
        return _matrices(arch, variant)

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

    def judging(self, variant: Variant) -> Judging:
        """Products of 16 bits are a GPU's, those of 8 bits a server's: here widened weights, and
        rounded activations, meet in fp32."""
        if variant.precision == "fp32":
            return Judging()
        if "scheme" in variant.options:
            return Judging(how="substitute", note="its rounded weights and activations in float32")
        return Judging(how="substitute", note="its weights in float32 on the CPU")

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


def _matrices(arch: Architecture, variant: Variant, *more: str) -> list[MatrixTypes]:
    """Return the matrices with their types; `more` are types without a loss that counts."""
    group_size = variant.options["group_size"]
    gptq = GPTQ_LOSS if variant.options.get("method") == "gptq" else 1.0
    kinds = {"w4": affine_error(4, group_size) * gptq}
    if group_size > _SMALL_GROUP:
        kinds[f"w4g{_SMALL_GROUP}"] = affine_error(4, _SMALL_GROUP)
    kinds["w8"] = affine_error(8, group_size)
    kinds |= dict.fromkeys(more, 0.0)

    def nbytes(name: str, shape: tuple[int, ...], own: str) -> int:
        scheme = Scheme.from_options({**variant.options, "tensor_types": {name: own}})
        return sum(map(entry_bytes, scheme.entries(name, shape)))

    return [
        MatrixTypes(
            name,
            name,
            tuple(TypeChoice(own, nbytes(name, shape, own), error) for own, error in kinds.items()),
        )
        for name, shape in arch.tensors()
        if is_linear(name)
    ]


SPEC = PytorchSpec()
