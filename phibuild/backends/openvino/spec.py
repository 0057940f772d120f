"""What the openvino backend makes, in the core: variants, layout, sizes."""

from __future__ import annotations

import math
from collections.abc import Sequence

from pydantic import BaseModel

from phibuild.backends.base import ContextLimit, SourceFiles, StoredTensor
from phibuild.backends.openvino.layout import constant_bytes, tokenizer_bytes, xml_bytes
from phibuild.backends.openvino.options import MODES, Mode, OpenVinoOptions, contradiction
from phibuild.schema import (
    Accelerator,
    Contradiction,
    Device,
    Judging,
    Options,
    Precision,
    Skip,
    Variant,
)
from phibuild.worker.architecture import Architecture
from phibuild.worker.companions import companions
from phibuild.worker.write_buffers import BUFFERS_BYTES

_GROUP_SIZE = {"int4_asym": 64, "int4_sym": 128}
_ROW = -1
"""The group size that stands for one scale for each row; Intel calls such models channel-wise."""
_NPU_GROUP_SIZES = (128, _ROW)
_ACCELERATOR: dict[str, Accelerator] = {
    "cpu": "cpu",
    "gpu": "openvino_gpu",
    "npu": "openvino_npu",
}
_FLOAT = {"fp16": ("f16", 2), "fp32": ("f32", 4)}
_INTEGER = {"int4_asym": "u4", "int4_sym": "i4", "int8_asym": "u8", "int8_sym": "i8"}
_SCALE_BYTES = 2  # scales are f16

_HEAD = 96
"""Smallest head_dim of the published Phi models."""

# Anonymous bytes of a worker that builds: Python, OpenVINO, Transformers' tokenizers, a graph and
# the threads' chunks (measured: 75 MB, and 9 MB more with 32 layers).
_BUILD_BYTES = 256 << 20
# What a token takes while the tokenizer is converted (measured: 1.25 kB with a vocabulary of 200k).
_TOKEN_BYTES = 1536

# Judging, in anonymous bytes: Python, OpenVINO, the compiled graph.
_JUDGE_BYTES = 256 << 20
_LOGITS_COPIES = 6  # of a window's logits, as f32, with what compares them (measured: 5.2)


class OpenVinoSpec:
    """OpenVINO IR with tokenizers, for openvino-genai."""

    name = "openvino"
    title = "OpenVINO (openvino-genai)"
    format = "OpenVINO IR"
    library = "openvino"
    copied: tuple[str, ...] = ()
    options: type[BaseModel] = OpenVinoOptions

    def contradiction(self, precision: Precision, options: BaseModel) -> Contradiction | None:
        """Return a mode of another precision, or groups where there are none."""
        assert isinstance(options, OpenVinoOptions)
        return contradiction(precision, options)

    def variant(
        self, precision: Precision, options: BaseModel, device: Device, arch: Architecture
    ) -> Variant | Skip:
        """Return the variant, or why it would not work on this device or with this model."""
        assert isinstance(options, OpenVinoOptions)
        needed = _ACCELERATOR[options.target]
        if needed not in device.accelerators:
            return Skip(
                reason=f"target {options.target} needs the accelerator {needed}; {device.title} "
                f"has {', '.join(device.accelerators)}"
            )
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

    def _int4(self, mode: Mode, options: OpenVinoOptions, arch: Architecture) -> Variant | Skip:
        group_size = options.group_size or _GROUP_SIZE[mode]
        if options.target == "npu" and group_size not in _NPU_GROUP_SIZES:
            return Skip(
                reason=f"the NPU takes groups of 128 or whole rows (-1), not of {group_size}"
            )
        widths = {
            "hidden_size": arch.hidden_size,
            "the attention's width": arch.heads * arch.head_dim,
            "intermediate_size": arch.intermediate_size,
        }
        for what, width in widths.items():
            if group_size != _ROW and width % group_size:
                return Skip(
                    reason=f"groups of {group_size} do not divide {what} ({width}), which nncf "
                    "refuses; use a smaller group_size, or -1 for one scale for each row"
                )
        groups = "cw" if group_size == _ROW else f"g{group_size}"
        return self._variant(
            "int4",
            f"{mode.replace('_', '-')}-{groups}",
            {"mode": mode, "group_size": group_size},
            options.target,
        )

    def _variant(self, precision: Precision, name: str, options: Options, target: str) -> Variant:
        return Variant(
            backend=self.name,
            precision=precision,
            name=name,
            format=self.format,
            options={**options, "target": target},
        )

    def layout(self, arch: Architecture, variant: Variant) -> list[StoredTensor]:
        """Return every weight as the IR stores it.

        nncf leaves norms as they are (f32) and gives the embedding and the output layer of an
        int4 model 8 bits with zero points.
        """
        mode, group_size = variant.options["mode"], variant.options.get("group_size", _ROW)
        tensors = []
        for name, shape in arch.tensors():
            parameters = math.prod(shape)
            if mode in _FLOAT:
                kind, size = _FLOAT[mode]
                tensors.append(StoredTensor(name, kind, parameters, size * parameters))
            elif len(shape) == 1:
                tensors.append(StoredTensor(name, "f32", parameters, 4 * parameters))
            elif name.startswith("model.layers."):
                tensors.append(_integer_tensor(name, shape, mode, group_size))
            else:
                backup = mode if mode.startswith("int8") else "int8_asym"
                tensors.append(_integer_tensor(name, shape, backup, _ROW))
        return tensors

    def other_bytes(self, arch: Architecture, source: SourceFiles, variant: Variant) -> int:
        """Return the bytes of graph, tokenizer models and the files that are copied."""
        copied = ("config.json", *companions(source.files))
        return (
            xml_bytes(arch, variant.options["mode"], variant.options.get("group_size"))
            + constant_bytes(arch)
            + tokenizer_bytes(source)
            + sum(source.files.get(name, 0) for name in copied)
        )

    def build_memory(
        self, arch: Architecture, source_bytes: int, variants: Sequence[Variant]
    ) -> int:
        """Return the bound, which neither layers nor variants change: weights go from the
        checkpoint to the artifacts a chunk of rows at a time, through the buffers of files."""
        return _BUILD_BYTES + BUFFERS_BYTES + _TOKEN_BYTES * arch.vocab_size

    def judge_memory(
        self, arch: Architecture, variants: Sequence[Variant], window_tokens: int
    ) -> int:
        """Return the bound: the weights of the largest variant, a window's logits, activations
        and KV cache in f32.

        The CPU plugin packs every matrix for its kernels, in its stored type.
        """
        weights = max(
            sum(_packed_bytes(tensor) for tensor in self.layout(arch, variant))
            for variant in variants
        )
        activations = 4 * (arch.hidden_size + arch.intermediate_size)
        scores = arch.heads * window_tokens
        cache = 2 * arch.layers * arch.kv_heads * arch.head_dim
        values = _LOGITS_COPIES * arch.vocab_size + activations + scores + cache
        return _JUDGE_BYTES + 4 * window_tokens * values + weights

    def context_limit(self, arch: Architecture, variant: Variant) -> ContextLimit | None:
        """Return None: a window is in the graph, as a mask."""
        return None

    def judging(self, variant: Variant) -> Judging:
        """The CPU's plugin runs the IR, whatever device it is made for."""
        if variant.options["target"] == "cpu":
            return Judging()
        return Judging(how="substitute", note="OpenVINO's CPU plugin")

    def kv_bytes_per_element(self, variant: Variant) -> float:
        """Return 2 (f16) on GPU and NPU and where the weights are floats, for which the IR asks
        for f16; the CPU plugin's default is u8 with a scale and a zero point (f32) for each head.
        """
        if variant.options["target"] != "cpu" or variant.options["mode"] in _FLOAT:
            return 2.0
        return 1.0 + 8.0 / _HEAD

    def usage(self, variant: Variant) -> str:
        """Return Python for openvino-genai."""
        device = variant.options["target"].upper()
        return (
            "import openvino_genai\n"
            f'pipeline = openvino_genai.LLMPipeline(".", "{device}")\n'
            'print(pipeline.generate("Why is the sky blue?", max_new_tokens=256))'
        )


def _integer_tensor(name: str, shape: tuple[int, ...], mode: str, group_size: int) -> StoredTensor:
    """Return a matrix [out, in] with an f16 scale, and with _asym a zero point of the weights'
    own width, for each group of a row."""
    bits = int(mode[3])
    groups = math.prod(shape) // (shape[1] if group_size == _ROW else group_size)
    zero_point_bits = bits * groups if mode.endswith("_asym") else 0
    nbytes = (bits * math.prod(shape) + 7) // 8 + _SCALE_BYTES * groups + (zero_point_bits + 7) // 8
    return StoredTensor(name, _INTEGER[mode], math.prod(shape), nbytes)


def _packed_bytes(tensor: StoredTensor) -> int:
    """Return what the CPU plugin holds of a tensor: for 4 bits, scales and zero points several
    times over and wider (measured: 7 bytes a group more than is stored)."""
    if tensor.kind not in ("u4", "i4"):
        return tensor.nbytes
    return tensor.nbytes + 4 * (tensor.nbytes - tensor.parameters // 2)


SPEC = OpenVinoSpec()
