"""Quantize a Core AI model by coreai-opt and compare; runs in the vendor's environment.

`python coreai_vendor.py FOLDER` finds FOLDER/<name>/model.aimodel, quantizes fp32's as each other
name says, and prints as JSON, by name, how many weights ours has, and which of them the vendor's
has not: with the same numbers, and the same scales in fp16.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np

KINDS = {"int4-b32": ("INT4", 32), "int4-b64": ("INT4", 64), "int8": ("INT8", 0)}
CONSTANT = re.compile(r"(%\w+) = coreai.constant dense_resource<([^>]+)> : tensor<([^>]*)>")
INLINE = re.compile(r'(%\w+) = coreai.constant dense<"0x([0-9A-F]+)"> : tensor<[^>]*xf32>')
SCALED = re.compile(r"coreai.blockwise_shift_scale (%\w+), (%\w+),")
BYTES = re.compile(r'^\s*"?([^\s":]+)"?: "0x([0-9A-F]+)"', re.MULTILINE)


def program(folder: Path) -> Any:
    import coreai.authoring  # noqa: F401
    from coreai.authoring import AIModelAsset

    return AIModelAsset.load(folder / "model.aimodel").program


def weights(found: Any) -> dict[str, tuple[str, str, str]]:
    """Return type and digests, of numbers and scales in fp16, of what a program makes floats of."""
    text = str(found)
    # The first four bytes say how the rest is aligned.
    data = {name: bytes.fromhex(value)[4:] for name, value in BYTES.findall(text)}
    constants = {value: (name.strip('"'), kind) for value, name, kind in CONSTANT.findall(text)}
    inline = dict(INLINE.findall(text))
    result = {}
    for numbers, scales in SCALED.findall(text):
        name, kind = constants[numbers]
        if scales in inline:  # there are few
            wide = np.frombuffer(bytes.fromhex(inline[scales]), np.float32)
        else:
            scale, of = constants[scales]
            wide = np.frombuffer(data[scale], np.float32 if of.endswith("f32") else np.float16)
        half = wide.astype(np.float16).tobytes()
        result[name] = kind, *(hashlib.sha256(one).hexdigest() for one in (data[name], half))
    return result


def main() -> None:
    folder = Path(sys.argv[1])
    import coreai_opt.coreai_utils as vendor

    result = {}
    for name, (kind, size) in KINDS.items():
        if not (folder / name).is_dir():
            continue
        ours = weights(program(folder / name))
        granularity = vendor.CompressionGranularity
        quantized = vendor.quantize_weights(
            program(folder / "fp32"),
            dtype=getattr(vendor.DType, kind),
            qscheme=vendor.QScheme.SYMMETRIC,
            granularity=granularity.PER_BLOCK if size else granularity.PER_CHANNEL,
            block_size=size or 32,
            weight_num_threshold=1,
            in_place=True,
        )
        theirs = set(weights(quantized).values())
        wrong = sorted(key for key, value in ours.items() if value not in theirs)
        result[name] = {"weights": len(ours), "differ": wrong}
    print("RESULT " + json.dumps(result), flush=True)
    os._exit(0)  # the runtime's threads do not end with the interpreter


if __name__ == "__main__":
    main()
