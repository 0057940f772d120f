"""Files of a checkpoint that an artifact needs beside its weights. Standard library only."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path

from phibuild.worker.json_values import JsonDict, NoObjectError, parse_object
from phibuild.worker.protocol import WorkerError

SPECIAL_TOKENS = (
    "bos_token",
    "eos_token",
    "unk_token",
    "sep_token",
    "pad_token",
    "cls_token",
    "mask_token",
)
"""Roles of special tokens, as tokenizer_config.json names them."""
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
TEMPLATES = "additional_chat_templates"
"""The folder of named chat templates, NAME.jinja each."""
GENERATION_FILES = ("generation_config.json",)


def companions(files: Iterable[str]) -> list[str]:
    """Return those of a checkpoint's files, relative to its folder, that are copied beside the
    weights of an artifact that is a folder."""
    known = {*TOKENIZER_FILES, *GENERATION_FILES}
    return [name for name in files if name in known or _is_template(name)]


def _is_template(name: str) -> bool:
    return name.startswith(f"{TEMPLATES}/") and name.endswith(".jinja")


def copy_companions(
    source: Path, output: Path, names: tuple[str, ...] = TOKENIZER_FILES + GENERATION_FILES
) -> list[str]:
    """Copy those of `names`, and the named chat templates, that the checkpoint has and the
    artifact has not; return their names.

    The licence and the README are the core's work: they are the same for every backend.
    """
    templates = sorted((source / TEMPLATES).glob("*.jinja"))
    copied = []
    for name in (*names, *(f"{TEMPLATES}/{path.name}" for path in templates)):
        if (source / name).is_file() and not (output / name).exists():
            (output / name).parent.mkdir(exist_ok=True)
            shutil.copyfile(source / name, output / name)
            copied.append(name)
    return copied


def complete_generation_config(output: Path, stops: Sequence[int]) -> None:
    """Have the artifact's generation_config.json name the ids that end generation, if it does not
    or is not there: not every runtime looks for them in config.json or in the tokenizer."""
    path = output / "generation_config.json"
    config = read_json(path, optional=True)
    if stops and config.get("eos_token_id") is None:
        config["eos_token_id"] = list(stops) if len(stops) > 1 else stops[0]
        path.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def read_json(path: Path, *, optional: bool = False) -> JsonDict:
    """Return the object that a JSON file holds; {} for an `optional` one that is not there. Raises
    WorkerError if it cannot be read or holds something else."""
    if optional and not path.is_file():
        return {}
    try:
        return parse_object(path.read_text(encoding="utf-8"))
    except NoObjectError as error:
        raise WorkerError(f"{path.name} is not a JSON object") from error
    except (OSError, ValueError) as error:
        raise WorkerError(f"{path.name} cannot be read: {error}") from error
