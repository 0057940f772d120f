"""A checkpoint's tensors as constants of an OpenVINO graph, mapped instead of copied.

Tensors that are stored as they are stay in the checkpoint's files: the constant points into the
mapping. Those that change their type go, a chunk of rows at a time, through an unnamed temporary
file that is mapped in turn. So the process holds no weights of its own.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import IO, Any, Literal

import numpy as np
import openvino as ov
from numpy.typing import NDArray
from openvino._offline_transformations import compress_model_transformation

from phibuild.architecture import Architecture
from phibuild.backends.openvino.nodes import Output, named, opset
from phibuild.safetensors_io import TensorInfo, read_checkpoint
from phibuild.worker import WorkerError

Stored = Literal["source", "f16", "f32"]

_CHUNK = 1 << 22  # elements that are converted at a time
_ITEM = {"BF16": np.uint16, "F16": np.float16, "F32": np.float32}
_TYPE = {"BF16": ov.Type.bf16, "F16": ov.Type.f16, "F32": ov.Type.f32}
_TARGET = {"f16": "F16", "f32": "F32"}
_FP16_MAX = float(np.finfo(np.float16).max)


class Weights:
    """Constants of the checkpoint in `source`, as it stores them or all as `stored`.

    Matrices that are not f32 are followed by a Convert to f32 that is marked as decompression:
    plugins keep such a constant in its own type. Temporary files go to `scratch`. Close it after
    the model that uses the constants is saved.
    """

    def __init__(self, source: Path, arch: Architecture, stored: Stored, scratch: Path) -> None:
        self._tensors = read_checkpoint(source)
        self._stored = stored
        self._scratch = scratch
        self._files: list[IO[bytes]] = []
        self._arrays: list[NDArray[Any]] = []  # constants point into them without owning them
        self._decompressions = _decompression_nodes(sum(1 for _ in arch.tensors()))

    def matrix(self, name: str, convert_name: str) -> Output:
        """Return the f32 output of a matrix, [out, in]; its constant is `self.<name>`."""
        dtype, values = self._load(name)
        return self._decompressed(self._constant(name, dtype, values), convert_name)

    def vector(self, name: str) -> Output:
        """Return the f32 output of a norm's weights as [1, 1, width]; stored as f16 only where
        everything is, as f32 otherwise."""
        dtype, values = self._load(name)
        if self._stored == "source":
            dtype, values = "F32", _to_float32(dtype, values)
        constant = self._constant(name, dtype, values.reshape(1, 1, -1))
        return self._decompressed(constant, f"self.{name}/Convert")

    def _load(self, name: str) -> tuple[str, NDArray[Any]]:
        tensor = self._tensors[name]
        if tensor.dtype not in _ITEM:
            raise WorkerError(f"tensor {name} is {tensor.dtype}; weights must be BF16, F16 or F32")
        item = np.dtype(_ITEM[tensor.dtype])
        values = np.memmap(
            tensor.path, dtype=item, mode="r", offset=tensor.offset, shape=tensor.shape
        )
        target = tensor.dtype if self._stored == "source" else _TARGET[self._stored]
        aligned = tensor.offset % item.itemsize == 0  # writers pad their headers, but need not
        if target == tensor.dtype and aligned:
            return target, values
        return target, self._convert(tensor, values, target)

    def _convert(self, tensor: TensorInfo, values: NDArray[Any], target: str) -> NDArray[Any]:
        """Return `values` in the type `target`, mapped from a temporary file.

        Raises WorkerError if a value does not fit into it.
        """
        file = tempfile.TemporaryFile(dir=self._scratch)  # noqa: SIM115, closed by close()
        self._files.append(file)
        flat = values.reshape(-1)
        for start in range(0, flat.size, _CHUNK):
            chunk = flat[start : start + _CHUNK]
            if target == tensor.dtype:
                chunk.tofile(file)
                continue
            wide = _to_float32(tensor.dtype, chunk)
            if target == "F32":
                wide.tofile(file)
                continue
            with np.errstate(over="ignore"):
                narrow = wide.astype(np.float16)
            if not np.isfinite(narrow).all():
                raise WorkerError(
                    f"tensor {tensor.name} holds values outside of fp16 (largest "
                    f"{float(np.abs(wide).max()):.6g}, limit {_FP16_MAX:.0f}); build fp32, int8 "
                    "or int4"
                )
            narrow.tofile(file)
        file.flush()
        return np.memmap(file, dtype=_ITEM[target], mode="r", shape=tensor.shape)

    def _constant(self, name: str, dtype: str, values: NDArray[Any]) -> Any:
        self._arrays.append(values)
        tensor = ov.Tensor(values, ov.Shape(values.shape), _TYPE[dtype])  # shares read-only memory
        return named(ov.op.Constant(tensor, shared_memory=True), f"self.{name}")

    def _decompressed(self, constant: Any, name: str) -> Output:
        if constant.get_element_type() == ov.Type.f32:
            return constant.output(0)
        node = self._decompressions.pop()
        node.set_arguments([constant.output(0)])
        node.constructor_validate_and_infer_types()
        node.output(0).get_tensor().set_names(set())
        return named(node, name).output(0)

    def close(self) -> None:
        """Free the temporary files."""
        while self._files:
            self._files.pop().close()

    def __enter__(self) -> Weights:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def _to_float32(dtype: str, values: NDArray[Any]) -> NDArray[np.float32]:
    if dtype == "BF16":  # the upper half of a float32
        return (values.astype(np.uint32) << np.uint32(16)).view(np.float32)
    return values.astype(np.float32)


def _decompression_nodes(count: int) -> list[Any]:
    """Return Convert nodes to f32 that are marked as decompression.

    The mark is a C++ attribute that Python cannot set. OpenVINO's own fp16 compression makes
    nodes that have it: here of `count` placeholders, whose inputs are replaced afterwards.
    """
    placeholders = [opset.result(opset.constant(np.zeros(1, np.float32))) for _ in range(count)]
    model = ov.Model(placeholders, [])
    compress_model_transformation(model)
    return [result.input_value(0).get_node() for result in model.get_results()]
