"""Export a checkpoint by litert-torch and quantize it by ai-edge-quantizer; runs in the vendors'
environment (litert_torch.txt).

    python litert_export.py SOURCE PRECISION OUTPUT CONTEXT

writes OUTPUT/model.tflite. Two things must be worked around for Phi: litert-torch imports a schema
from tensorflow, which it does not ask for, and traces neither a sliding window nor longrope's
choice of factors.
"""

from __future__ import annotations

import importlib.machinery
import inspect
import json
import shutil
import sys
import tempfile
import types
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from support.litert_vendor import recipes

NAMES = {"int4": "int4-b32"}
"""Recipes by precision, where they have another name."""


def stand_in_for_tensorflow() -> None:
    from ai_edge_litert import schema_py_generated as schema

    for name in ("tensorflow", "tensorflow.lite", "tensorflow.lite.python"):
        module = types.ModuleType(name)
        module.__path__ = []
        module.__spec__ = importlib.machinery.ModuleSpec(name, None, is_package=True)
        sys.modules[name] = module
    sys.modules["tensorflow.lite.python"].schema_py_generated = schema  # type: ignore[attr-defined]
    sys.modules["tensorflow.lite.python.schema_py_generated"] = schema


def export(source: Path, output: Path, context: int) -> Path:
    """Return the model in fp32, with the short factors of longrope."""
    import torch
    import transformers.models.phi3.modeling_phi3 as phi3

    forward = phi3.Phi3RotaryEmbedding.forward
    phi3.Phi3RotaryEmbedding.forward = torch.no_grad()(inspect.unwrap(forward))
    from litert_torch.generative.export_hf import export as library

    library.export(
        model=str(source),
        output_dir=str(output),
        prefill_lengths=[128],
        cache_length=context,
        quantization_recipe="",
        bundle_litert_lm=False,
    )
    return next(output.rglob("model.tflite"))


def main() -> None:
    source, precision, output, context = sys.argv[1:]
    stand_in_for_tensorflow()
    target = Path(output) / "model.tflite"
    target.parent.mkdir(parents=True)
    with tempfile.TemporaryDirectory(dir=target.parent.parent) as scratch:
        copy = Path(scratch) / "source"
        copy.mkdir()
        for path in Path(source).iterdir():
            (copy / path.name).symlink_to(path.resolve())
        config = json.loads((copy / "config.json").read_text("utf-8"))
        (copy / "config.json").unlink()
        (copy / "config.json").write_text(json.dumps({**config, "sliding_window": None}), "utf-8")
        exported = export(copy, Path(scratch) / "exported", int(context))
        if precision == "fp32":
            shutil.move(exported, target)
            return
        from ai_edge_quantizer import quantizer

        work = quantizer.Quantizer(str(exported))
        work.load_quantization_recipe(recipes()[NAMES.get(precision, precision)])
        work.quantize().export_model(str(target))


if __name__ == "__main__":
    main()
