"""The `quantization_config` of compressed-tensors: which layers are quantized how. Standard library
only."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import version

from phibuild.backends.pytorch.layout import (
    GroupQuantization,
    Quantization,
    RowQuantization,
    Scheme,
    is_linear,
)
from phibuild.worker.architecture import Architecture
from phibuild.worker.json_values import JsonDict

_ALL = "Linear"


def quantization_config(arch: Architecture, scheme: Scheme) -> JsonDict | None:
    """Return compressed-tensors' description of a scheme, as llm-compressor writes it:
    one group of all linear layers. Where some have types of their own every layer is named, in the
    group of its type, which come in the order of their first layers, or among those that are
    ignored. None where nothing is quantized."""
    if scheme.quantization is None:
        return None
    groups: dict[Quantization, list[str]] = {}
    ignored = []
    for name, _ in arch.tensors():
        if not is_linear(name):
            continue
        how, layer = scheme.quantization_of(name), name.removesuffix(".weight")
        if how is None:
            ignored.append(layer)
        else:
            groups.setdefault(how, []).append(layer)
    if not groups:
        return None
    if not scheme.own:
        groups = {scheme.quantization: [_ALL]}
    return {
        "config_groups": {
            f"group_{number}": _group(how, layers)
            for number, (how, layers) in enumerate(groups.items())
        },
        "format": _format(scheme.quantization),
        "global_compression_ratio": None,
        "ignore": [*ignored, "lm_head"],
        "kv_cache_scheme": None,
        "moe_sparsity_config": None,
        "quant_method": "compressed-tensors",
        "quantization_status": "compressed",
        "sparsity_config": {},
        "transform_config": {},
        "version": version("compressed-tensors"),
    }


def _format(how: Quantization) -> str:
    match how:
        case RowQuantization():
            return f"{how.type}-quantized"
        case GroupQuantization():
            return "pack-quantized"


def _group(how: Quantization, targets: list[str]) -> JsonDict:
    activations: JsonDict | None = None
    weights: JsonDict = {"dynamic": False}
    match how:
        case RowQuantization():
            same = {"group_size": None, "num_bits": 8, "symmetric": True, "type": how.type}
            activations = {**same, "dynamic": True, "strategy": "token"}
            weights |= {**same, "strategy": "channel"}
        case GroupQuantization():
            weights |= {
                "group_size": how.group_size,
                "num_bits": how.bits,
                "strategy": "group",
                "symmetric": how.symmetric,
                "type": "int",
            }
    return {
        "format": _format(how),
        "input_activations": activations,
        "output_activations": None,
        "targets": targets,
        "weights": weights,
    }


class PromisedLayers:
    """What a config.json says of linear layers, by the names of their weights."""

    def __init__(self, config: Mapping[str, JsonDict]) -> None:
        quantization = config.get("quantization_config")
        self.is_quantized = quantization is not None
        self._targets: dict[str, JsonDict] = {}
        self._ignored: set[str] = set()
        if quantization is not None:
            self._ignored.update(quantization.get("ignore") or ())
            for group in quantization["config_groups"].values():
                for target in group["targets"]:
                    self._targets.setdefault(target, group)

    def of(self, weight: str) -> JsonDict | None:
        """Return the weights' arguments of the group that has the layer, by its name or as one of
        all; None if it is ignored, or in no group."""
        group = self._group(weight)
        return None if group is None else dict(group["weights"])

    def activations_of(self, weight: str) -> JsonDict | None:
        """Return the arguments of what a layer takes in; None if that is not rounded."""
        group = self._group(weight)
        return group["input_activations"] if group is not None else None

    def _group(self, weight: str) -> JsonDict | None:
        layer = weight.removesuffix(".weight")
        if layer in self._ignored:
            return None
        return self._targets.get(layer, self._targets.get(_ALL))
