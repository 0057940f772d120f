"""The tokenizer as OpenVINO models, which openvino-genai runs in place of Transformers'."""

from __future__ import annotations

import shutil
from pathlib import Path

import openvino as ov

_TOKENIZER, _DETOKENIZER = "openvino_tokenizer.xml", "openvino_detokenizer.xml"


def convert_tokenizer(source: Path, output: Path) -> None:
    """Write openvino_tokenizer and openvino_detokenizer (.xml, .bin) of the checkpoint `source`.

    Padding and truncation are on the left, as optimum-intel sets them for text generation.
    """
    import openvino_tokenizers
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(source, local_files_only=True)
    tokenizer.padding_side = "left"
    tokenizer.truncation_side = "left"
    models = openvino_tokenizers.convert_tokenizer(tokenizer, with_detokenizer=True)
    for model, name in zip(models, (_TOKENIZER, _DETOKENIZER), strict=True):
        _name_in_order(model)
        ov.save_model(model, output / name)


def copy_tokenizer(folder: Path, output: Path) -> None:
    """Copy what `convert_tokenizer` wrote into `folder`."""
    for name in (_TOKENIZER, _DETOKENIZER):
        for path in (folder / name, (folder / name).with_suffix(".bin")):
            shutil.copyfile(path, output / path.name)


def _name_in_order(model: ov.Model) -> None:
    """Name every node after its position: the converter leaves process-wide counters in names.

    Parameters and results keep theirs: openvino-genai finds them by name.
    """
    for position, node in enumerate(model.get_ordered_ops()):
        if node.get_type_name() not in ("Parameter", "Result"):
            node.set_friendly_name(f"{node.get_type_name()}_{position}")
