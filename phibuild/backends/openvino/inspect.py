"""What an IR on disk holds: the types of its weights, read from its XML alone.

Nothing of the writer is used: the file is parsed as any reader of the format would (IR version
11: layers of type Const carry element_type, shape and the size of their bytes in the .bin).
"""

from __future__ import annotations

import math
import xml.etree.ElementTree as ElementTree
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from phibuild.worker.protocol import Contents

MODEL_XML = "openvino_model.xml"
CACHE_PRECISION = ("runtime_options", "KV_CACHE_PRECISION")
"""Where an IR asks for the type of its KV cache: plugins take such options from its rt_info."""
_SMALL = 1024  # constants below are shapes, axes and rope factors


@dataclass(frozen=True)
class _Constant:
    name: str
    kind: str
    parameters: int
    nbytes: int


def inspect(folder: Path) -> Contents:
    """Return what an artifact's IR holds.

    A constant named after a tensor of a checkpoint (`self.*.weight`) is a weight; its scale and
    zero point are named after it. Any other large constant is counted as a weight too, so that
    one which should not be there shows.
    """
    types: Counter[str] = Counter()
    weight_bytes = 0
    for constant in _constants(folder / MODEL_XML):
        _, named, part = constant.name.partition(".weight")
        of_checkpoint = bool(named) and constant.name.startswith("self.")
        if of_checkpoint and part:  # its scale or zero point
            weight_bytes += constant.nbytes
        elif of_checkpoint or constant.parameters >= _SMALL:
            types[constant.kind] += constant.parameters
            weight_bytes += constant.nbytes
    return {"types": dict(types), "weight_bytes": weight_bytes}


def _constants(xml: Path) -> Iterator[_Constant]:
    for _, layer in ElementTree.iterparse(xml):
        if layer.tag != "layer":
            continue
        data = layer.find("data")
        if layer.get("type") == "Const" and data is not None:
            shape = [int(size) for size in (data.get("shape") or "").split(",") if size.strip()]
            yield _Constant(
                layer.get("name") or "",
                data.get("element_type") or "",
                math.prod(shape),
                int(data.get("size") or 0),
            )
        layer.clear()
