"""The tokenizer of an artifact against the source's: ExecuTorch's runners read tokenizer.json, and
stop where the program says."""

from __future__ import annotations

import json
from pathlib import Path

from phibuild.backends.executorch.inspect import MODEL, facts, read_program
from phibuild.worker.json_values import JsonDict
from phibuild.worker.tokenizer_check import (
    Facts,
    TokenizerCheck,
    check_tokenizer,
    nothing_to_explain,
)
from phibuild.worker.tokenizer_json import TokenizerJson

RUNNER_TOKENIZER = "runner_tokenizer.json"
"""What ExecuTorch's runner is to be given where it would lose spaces by tokenizer.json."""


class ProgramTokenizer(TokenizerJson):
    """What an artifact says of texts."""

    def stops(self) -> list[int]:
        """Return the ids that end generation: those of the program."""
        program, _ = read_program(self.folder / MODEL)
        return facts(program).get("get_eos_ids", [])


def runner_tokenizer(path: Path) -> bytes | None:
    """Return a tokenizer.json without the step that takes the first space off a text, or None if it
    has no such step: ExecuTorch's runner decodes token by token, and would take one off each."""
    document: JsonDict = json.loads(path.read_text("utf-8"))
    decoder = document.get("decoder") or {}
    steps = decoder.get("decoders", [])
    kept = [step for step in steps if step.get("type") != "Strip"]
    if kept == steps:
        return None
    document["decoder"] = {**decoder, "decoders": kept}
    return json.dumps(document, ensure_ascii=False).encode()


def check(folder: Path, expected: Facts) -> TokenizerCheck:
    """Compare an artifact's tokenizer with what Transformers makes of the probes. Raises
    WorkerError if it differs."""
    return check_tokenizer(expected, ProgramTokenizer(folder), nothing_to_explain)
