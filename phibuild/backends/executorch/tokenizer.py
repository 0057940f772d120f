"""The tokenizer of an artifact against the source's: ExecuTorch's runners read tokenizer.json, and
stop where the program says."""

from __future__ import annotations

from pathlib import Path

from phibuild.backends.executorch.inspect import MODEL, facts, read_program
from phibuild.worker.tokenizer_check import (
    Facts,
    TokenizerCheck,
    check_tokenizer,
    nothing_to_explain,
)
from phibuild.worker.tokenizer_json import TokenizerJson


class ProgramTokenizer(TokenizerJson):
    """What an artifact says of texts."""

    def stops(self) -> list[int]:
        """Return the ids that end generation: those of the program."""
        program, _ = read_program(self.folder / MODEL)
        return facts(program).get("get_eos_ids", [])


def check(folder: Path, expected: Facts) -> TokenizerCheck:
    """Compare an artifact's tokenizer with what Transformers makes of the probes. Raises
    WorkerError if it differs."""
    return check_tokenizer(expected, ProgramTokenizer(folder), nothing_to_explain)
