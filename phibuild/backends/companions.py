"""Files of a checkpoint that an artifact needs beside its weights. Standard library only."""

from __future__ import annotations

import shutil
from pathlib import Path

TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
)
GENERATION_FILES = ("generation_config.json",)


def copy_companions(
    source: Path, output: Path, names: tuple[str, ...] = TOKENIZER_FILES + GENERATION_FILES
) -> list[str]:
    """Copy those of `names` that the checkpoint has and the artifact has not; return their names.

    The licence and the README are the core's work: they are the same for every backend.
    """
    copied = []
    for name in names:
        if (source / name).is_file() and not (output / name).exists():
            shutil.copyfile(source / name, output / name)
            copied.append(name)
    return copied
