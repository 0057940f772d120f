"""The tokenizer as OpenVINO models, which openvino-genai runs in place of Transformers'."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import openvino as ov
import openvino_tokenizers
from transformers import AutoTokenizer

from phibuild.worker.tokenizer_check import Difference, Facts, TokenizerCheck, check_tokenizer

_BYTE = re.compile("<0x[0-9A-F]{2}>")
_BYTE_NAMES = (
    "OpenVINO's tokenizer takes the name of a byte in a text, such as <0x0A>, for the byte"
)
_SPACE_SIGN = "\u2581"
_SIGN = (
    "OpenVINO's tokenizer puts a space before a text that begins with sentencepiece's sign of "
    "a space"
)
_TOKENIZER, _DETOKENIZER = "openvino_tokenizer.xml", "openvino_detokenizer.xml"


def convert_tokenizer(source: Path, output: Path) -> None:
    """Write openvino_tokenizer and openvino_detokenizer (.xml, .bin) of the checkpoint `source`.

    Padding and truncation are on the left, as optimum-intel sets them for text generation.
    """
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


class GenaiTokenizer:
    """The tokenizer of an artifact's folder, as openvino-genai runs it."""

    def __init__(self, folder: Path) -> None:
        import openvino_genai

        self._tokenizer = openvino_genai.Tokenizer(str(folder))
        config = folder / "generation_config.json"
        self._config = openvino_genai.GenerationConfig(str(config)) if config.is_file() else None

    def encode(self, text: str, *, around: bool) -> list[int]:
        """Return the ids of a text; `around`: with those that are added to it."""
        found = self._tokenizer.encode(text, add_special_tokens=around)
        return [int(token) for token in found.input_ids.data[0]]

    def stops(self) -> list[int]:
        """Return the ids that end generation: the configuration's, else the tokenizer's."""
        stops = set(self._config.stop_token_ids) if self._config is not None else set()
        eos = self._config.eos_token_id if self._config is not None else -1
        return sorted(stops | {eos if eos != -1 else self._tokenizer.get_eos_token_id()} - {-1})


def check(folder: Path, facts: Facts) -> TokenizerCheck:
    """Compare an artifact's tokenizer with what Transformers makes of the probes.

    Raises WorkerError if it differs where OpenVINO could do as Transformers does.
    """

    def explain(difference: Difference) -> str | None:
        if difference.text.startswith(_SPACE_SIGN):
            return _SIGN
        return _BYTE_NAMES if _BYTE.search(difference.text) else None

    return check_tokenizer(facts, GenaiTokenizer(folder), explain)
