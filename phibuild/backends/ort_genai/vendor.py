"""The vendor's model builder, driven so that it never holds the weights.

`onnxruntime_genai.models.builder.create_model` does all the work. Its two Phi-3 classes are
replaced by subclasses that differ in where weights come from (mapped files) and when they are
cast and quantized (when they are written). Graph, configuration and tokenizer are the vendor's.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import TypedDict

import onnx_ir as ir
import onnxruntime_genai.models  # puts the builder's own packages on sys.path
import torch
from onnxruntime_genai.models import builder
from safetensors import safe_open
from torch.nn import Linear
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig, PreTrainedModel

from phibuild.backends.ort_genai.cache import cache_options
from phibuild.backends.ort_genai.coded import find_coded
from phibuild.backends.ort_genai.nodes import quantized_product
from phibuild.backends.ort_genai.products import source_of
from phibuild.backends.ort_genai.rounding import Rounding
from phibuild.backends.ort_genai.tensors import (
    QuantizedMatrix,
    StreamedMatrix,
    Streaming,
    checked_cast,
)
from phibuild.worker.architecture import Architecture
from phibuild.worker.codes import CodedWeights
from phibuild.worker.companions import copy_companions
from phibuild.worker.passes import find_tensors
from phibuild.worker.protocol import WorkerError
from phibuild.worker.requests import Options, VariantData

_PROVIDERS = {"trt_rtx": "NvTensorRtRtx"}


def map_checkpoint(source: Path, arch: Architecture) -> dict[str, torch.Tensor]:
    """Return the tensors of a checkpoint by name, mapped from its files: none is read yet.

    Raises WorkerError if one is missing or of another shape or type.
    """
    found = find_tensors(source, arch.tensors(), ("BF16", "F16", "F32"))
    tensors: dict[str, torch.Tensor] = {}
    for path in dict.fromkeys(tensor.path for tensor in found):
        with safe_open(path, framework="pt") as file:
            names = (tensor.name for tensor in found if tensor.path == path)
            tensors |= {name: file.get_tensor(name) for name in names}
    return tensors


class _QuantAttributes(TypedDict):
    """How the builder's Model quantizes; the first fields mean what they mean in `Rounding`."""

    bits: int
    matmul_block_size: int
    is_symmetric: bool
    use_qdq: bool
    accuracy_level: int
    nodes_to_exclude: list[str]


class _Streamed:
    """What the builder's Phi-3 classes get: the mapped weights, and tensors that stream."""

    checkpoint: Mapping[str, torch.Tensor] = {}
    streaming: Streaming
    coded: CodedWeights | None = None
    types: Mapping[str, str] = {}
    """Matrices of the checkpoint with types of their own: int4 or int8."""

    # Of the builder's Model.
    graph: ir.Graph
    model: ir.Model
    context_length: int
    window_size: int | None
    quant_attrs: _QuantAttributes
    quantization_algo: str
    int4_customized_weight_config: dict[str, dict[str, int]]

    def load_weights(self, input_path: str) -> PreTrainedModel:
        """Return the model's modules around the mapped weights; nothing is copied."""
        config = AutoConfig.from_pretrained(input_path, trust_remote_code=False)
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
        model.load_state_dict(dict(self.checkpoint), strict=False, assign=True)
        if "lm_head.weight" not in self.checkpoint:
            model.lm_head.weight = model.model.embed_tokens.weight
        empty = [name for name, weight in model.named_parameters() if weight.is_meta]
        if empty:
            raise WorkerError(f"the checkpoint lacks {len(empty)} weights, the first {empty[0]}")
        return model

    def is_local(self, layer_id: int) -> bool:
        """Return whether a layer's attention has a window: all of Phi's have it, or none.

        The builder goes by `layer_types`, which Phi's configurations have not, and leaves the
        window out of the graph: beyond it that would be another model, until the runtime, which
        sizes its cache by the window all the same, fails.
        """
        return 0 < (self.window_size or 0) < self.context_length

    def make_attention_unpacked_regular(self, *args: object, **kwargs: object) -> None:
        # The linear layers that it makes get views of weights; their own are never used.
        with torch.device("meta"):
            super().make_attention_unpacked_regular(*args, **kwargs)  # type: ignore[misc]

    def make_mlp_unpacked_regular(self, *args: object, **kwargs: object) -> None:
        with torch.device("meta"):
            super().make_mlp_unpacked_regular(*args, **kwargs)  # type: ignore[misc]

    def make_packed_matmul_float_class(
        self, q_matmul: Linear, k_matmul: Linear, v_matmul: Linear, **kwargs: object
    ) -> object:
        """Join query, key and value without a copy: they are views of one weight."""
        weights = [matmul.weight for matmul in (q_matmul, k_matmul, v_matmul)]
        offset = weights[0].storage_offset()
        for weight in weights:
            same = weight.untyped_storage().data_ptr() == weights[0].untyped_storage().data_ptr()
            if not (same and weight.is_contiguous() and weight.storage_offset() == offset):
                return super().make_packed_matmul_float_class(  # type: ignore[misc]
                    q_matmul, k_matmul, v_matmul, **kwargs
                )
            offset += weight.numel()
        shape = (sum(weight.shape[0] for weight in weights), weights[0].shape[1])
        joined = weights[0].as_strided(shape, weights[0].stride())
        return SimpleNamespace(weight=joined)

    def make_initializer(
        self, tensor: object, /, name: str, *, to: ir.DataType | None = None, raw: bool = False
    ) -> None:
        """Register an initializer; a matrix that is cast becomes one that streams."""
        if to == ir.DataType.FLOAT16 and isinstance(tensor, torch.Tensor) and tensor.dim() == 1:
            checked_cast(tensor.detach(), torch.float16, name)  # a norm
        if to is None or raw or not isinstance(tensor, torch.Tensor) or tensor.dim() != 2:
            super().make_initializer(tensor, name, to=to, raw=raw)  # type: ignore[misc]
            return
        streamed = StreamedMatrix(tensor.detach(), to, name, self.streaming)
        value = self.make_value(name, streamed.dtype, streamed.shape)  # type: ignore[attr-defined]
        value.const_value = streamed
        self.graph.register_initializer(value)

    def to_nbits(self) -> ir.Model:
        """Quantize every product of the graph, in the order in which the vendor's tool does."""
        for node in self.graph:
            if any(value.type == ir.AttributeType.GRAPH for value in node.attributes.values()):
                # The vendor's tool makes such nodes anew, their attributes sorted.
                for name in sorted(node.attributes):
                    node.attributes[name] = node.attributes.pop(name)
        algorithm = self.quantization_algo
        raised = self.int4_customized_weight_config
        nodes = [
            node
            for node in self.graph
            if node.op_type == "MatMul"
            and isinstance(node.inputs[1].const_value, StreamedMatrix)
            and node.name not in self.quant_attrs["nodes_to_exclude"]
        ]
        if algorithm == "default":  # products of other widths take another pass of the vendor's
            nodes.sort(key=lambda node: node.name in raised)
        for node in nodes:
            bits = raised.get(node.name, {}).get("bits", self.quant_attrs["bits"])
            if own := self.types.get(source_of(node.inputs[1].name)):
                bits = int(own.removeprefix("int"))
            self._quantize(
                node,
                Rounding(
                    bits=bits,
                    block_size=self.quant_attrs["matmul_block_size"],
                    symmetric=self.quant_attrs["is_symmetric"],
                    algorithm=algorithm,
                    qdq=self.quant_attrs["use_qdq"],
                ),
            )
        return self.model

    def _quantize(self, node: ir.Node, rounding: Rounding) -> None:
        """Replace a MatMul by MatMulNBits, or its weight by DequantizeLinear, with the vendor's
        names and attributes."""
        weight = node.inputs[1]
        coded = None
        if self.coded is not None and rounding.bits == self.coded.grid.bits:
            coded = find_coded(weight.const_value.source, self.checkpoint, self.coded)
        matrix = QuantizedMatrix(weight.const_value, rounding, coded)
        parts = []
        for tensor in matrix.tensors:
            # The embedding of a tied model may refer to the product's weight already.
            value = self.make_value(tensor.name, tensor.dtype, tensor.shape)  # type: ignore[attr-defined]
            value.const_value = tensor
            self.graph.register_initializer(value)
            parts.append(value)
        made = quantized_product(node, matrix, parts, self.quant_attrs["accuracy_level"])
        output = node.outputs[0]
        ir.convenience.replace_nodes_and_values(
            self.graph, node, [node], made, [output], made[-1].outputs
        )
        if not weight.uses():
            del self.graph.initializers[weight.name]


class _Phi(_Streamed, builder.Phi3MiniModel):  # type: ignore[misc]
    """Phi without scaled rope (Phi-3 4k, Phi-4)."""


class _LongRopePhi(_Streamed, builder.Phi3MiniLongRoPEModel):  # type: ignore[misc]
    """Phi with longrope (Phi-3 128k, Phi-3.5, Phi-4-mini)."""


def build(
    source: Path,
    arch: Architecture,
    checkpoint: Mapping[str, torch.Tensor],
    variant: VariantData,
    output: Path,
    streaming: Streaming,
    coded: CodedWeights | None,
    cache_ranges: Path | None,
) -> None:
    """Make one artifact, of a `variant` as JSON, in the folder `output`; `coded` are weights that
    are on its grid already, `cache_ranges` the folder of what the original keeps in its cache, for
    one that is quantized.

    Raises WorkerError if the builder would reach for the network; passes on what it raises.
    """
    if not (source / "config.json").is_file():  # the builder would take the name for a Hub id
        raise WorkerError(f"{source} is not a checkpoint folder")
    precision, options = variant["precision"], variant["options"]
    provider = _PROVIDERS.get(options["provider"], options["provider"])
    _Streamed.checkpoint, _Streamed.streaming, _Streamed.coded = checkpoint, streaming, coded
    _Streamed.types = options.get("tensor_types", {})
    # The builder chooses by whether two lengths differ, which says nothing of the type of rope.
    phi = _LongRopePhi if arch.rope.is_longrope else _Phi
    builder.Phi3MiniModel = builder.Phi3MiniLongRoPEModel = phi
    builder.Model.get_genai_commit = staticmethod(_package_commit)
    with tempfile.TemporaryDirectory(prefix="phibuild-ort-", ignore_cleanup_errors=True) as folder:
        cache = str(Path(folder) / "cache")
        arguments = (str(source), str(output), precision, provider, cache)
        wanted = _extra_options(precision, options, arch)
        if cache_ranges:
            wanted += cache_options(cache_ranges, Path(folder))
        extra = builder.parse_extra_options(None, *arguments, wanted)
        _complete_config(extra["hf_details"]["hf_config"], arch)
        builder.create_model(None, *arguments, **extra)
    copy_companions(source, output)


def _package_commit() -> str | None:
    """Return the commit of the installed package, which the graph names as its producer.

    The builder asks git first, and so would name any repository that the toolchain lies in.
    """
    commit: str | None = getattr(onnxruntime_genai, "__commit__", None)
    return commit


def _extra_options(precision: str, options: Options, arch: Architecture) -> list[str]:
    """Return the builder's KEY=VALUE options. It ignores unknown ones without a word: every key
    here is one that it reads."""
    extra = ["hf_token=false", "hf_remote=false"]
    windowed = 0 < (arch.sliding_window or 0) < arch.max_positions
    if windowed and options["provider"] == "trt_rtx":
        # A cache of a window's size is TensorRT-RTX's own affair, and fails on any other provider.
        extra.append("windowed_kv_cache=false")
    if precision not in ("int4", "int8"):
        return extra
    extra += [
        f"block_size={options['block_size']}",
        f"algo_config={options['algorithm']}",
        f"is_symmetric={str(options['symmetric']).lower()}",
        f"accuracy_level={options['accuracy_level']}",
    ]
    if options["int8_matmuls"]:
        pairs = ",".join(f"{selector}:int8" for selector in options["int8_matmuls"])
        extra.append(f"matmul_mixed_precision={pairs}")
    if options["provider"] == "trt_rtx" and arch.tied:
        # Sharing would make it quantize the embedding, which its format for TensorRT-RTX lacks.
        extra.append("shared_embeddings=false")
    return extra


def _complete_config(config: PretrainedConfig, arch: Architecture) -> None:
    """Give the configuration what the builder reads and not every spelling has."""
    config.original_max_position_embeddings = arch.original_max_positions
    if arch.rope.is_longrope:
        config.rope_parameters.setdefault("type", "longrope")
        if arch.rope.attention_factor is not None:  # the builder's names for it
            config.rope_parameters["short_mscale"] = arch.rope.attention_factor
            config.rope_parameters["long_mscale"] = arch.rope.attention_factor
