"""A checkpoint folder: its facts from config.json and safetensors headers, validation, digests.

Reads no weights but for the digest. Raises SourceError with everything that is wrong at once.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from phibuild.architecture import Architecture, read_architecture
from phibuild.backends.base import SourceFiles
from phibuild.backends.companions import GENERATION_FILES, TOKENIZER_FILES
from phibuild.errors import Problem, SourceError
from phibuild.safetensors_io import INDEX, TensorInfo, shard_paths
from phibuild.weights import FETCH, check_tensors, read_tensors

LICENSE_NAMES = ("LICENSE", "LICENSE.txt", "LICENSE.md")
# Read by a build, so part of the digest.
_SMALL_FILES = ("config.json", *TOKENIZER_FILES, *GENERATION_FILES, *LICENSE_NAMES)
_SUPPORTED = "supported: Phi-3, Phi-3.5, Phi-4-mini, Phi-4 (text, Phi3ForCausalLM)"
_TOKENIZER = "copy the tokenizer files of the original checkpoint into the folder"
_ORIGINAL_CONFIG = "compare it with the config.json of the original checkpoint"
_MOST_FACTORS = 1 << 16
_UNSUPPORTED = {
    "phi4flash": "Phi-4-mini-flash (SambaY, hybrid state-space)",
    "phi4mm": "Phi-4-multimodal",
    "phi4_multimodal": "Phi-4-multimodal",
    "phimoe": "Phi-3.5-MoE",
    "phi3_v": "Phi-3-vision",
    "phi3small": "Phi-3-small (block-sparse attention)",
    "phi": "Phi-1 / Phi-2",
}


@dataclass(frozen=True)
class Checkpoint:
    """What is known of a checkpoint. `folder` is None for a Hub model that is not fetched yet:
    then `files` and `weight_bytes` are estimates from the catalogue. `commit` is that of a fetched
    Hub model, `pinned` says that it was asked for by this commit."""

    name: str
    reference: str
    folder: Path | None
    architecture: Architecture
    weight_bytes: int
    files: SourceFiles
    license: str = "see the LICENSE file"
    commit: str | None = None
    pinned: bool = True

    @property
    def is_estimate(self) -> bool:
        return self.folder is None


def load_checkpoint(
    folder: Path, name: str, reference: str, where: str | None = None
) -> Checkpoint:
    """Return the facts of a local checkpoint; raises SourceError if it cannot be built from.

    `where` says where the folder was named.
    """
    wrong = None
    if not folder.exists():
        wrong = "no such folder"
    elif not folder.is_dir():
        wrong = "a file, not a checkpoint folder"
    elif not any(folder.iterdir()):
        wrong = "the folder is empty"
    if wrong:
        raise SourceError(
            Problem(
                f"{wrong}: {folder}", where, "give a checkpoint folder, a model name or org/name"
            )
        )
    config = _read_config(folder)
    problems: list[Problem] = []
    tensors = read_tensors(folder, problems)
    architecture = check_architecture(
        _with_dtype(config, tensors), _json_place(folder / "config.json")
    )
    if tensors:
        problems += check_tensors(tensors, architecture, folder)
    files = _read_tokenizer(folder, problems)
    if problems or files is None:
        raise SourceError(problems)
    return Checkpoint(
        name=name,
        reference=reference,
        folder=folder,
        architecture=architecture,
        weight_bytes=sum(tensor.nbytes for tensor in tensors.values()),
        files=files,
    )


def _read_config(folder: Path) -> dict[str, Any]:
    path = folder / "config.json"
    if not path.is_file():
        raise SourceError(
            Problem(
                "config.json is missing", str(folder), "is this a Hugging Face checkpoint folder?"
            )
        )
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise SourceError(_json_problem(error, path)) from error
    if not isinstance(config, dict):
        raise SourceError(Problem("must be a JSON object", f"{path}:1", FETCH))
    return config


def _json_problem(error: Exception, path: Path) -> Problem:
    """Say what is wrong with a JSON file that could not be read."""
    if isinstance(error, json.JSONDecodeError):
        return Problem(f"not valid JSON: {error.msg}", f"{path}:{error.lineno}", FETCH)
    if isinstance(error, OSError):
        return Problem(f"cannot be read: {error.strerror}", str(path))
    return Problem("not valid JSON: damaged, or not text", str(path), FETCH)


def check_architecture(config: Mapping[str, Any], where: Callable[[str], str]) -> Architecture:
    """Return the architecture of a config.json; raises SourceError if it is none of ours.

    `where` says where a key of it was written.
    """
    names = config.get("architectures") or []
    names = names if isinstance(names, list) else [names]
    kind = str(config.get("model_type", ""))
    if kind in _UNSUPPORTED:
        raise SourceError(
            Problem(
                f"{_UNSUPPORTED[kind]} is not supported yet (model_type {kind!r})",
                where("model_type"),
                _SUPPORTED,
            )
        )
    if kind != "phi3" or (names and "Phi3ForCausalLM" not in names):
        found = ", ".join(map(str, names)) or kind or "no model_type"
        raise SourceError(
            Problem(
                f"not a Phi-3-architecture model ({found})",
                where("architectures" if names else "model_type"),
                _SUPPORTED,
            )
        )
    if config.get("quantization_config"):
        raise SourceError(
            Problem(
                "the checkpoint is quantized already",
                where("quantization_config"),
                "start from the original weights",
            )
        )
    try:
        return read_architecture(config)
    except KeyError as error:
        raise SourceError(
            Problem(f"key {error.args[0]!r} is missing", where(""), _ORIGINAL_CONFIG)
        ) from error
    except (TypeError, ValueError) as error:
        key = str(error).split(maxsplit=1)[0]
        raise SourceError(Problem(str(error), where(key), _ORIGINAL_CONFIG)) from error


def _json_place(path: Path) -> Callable[[str], str]:
    """Return (key) -> file:line of its first line in a JSON file, or the file alone."""

    def where(key: str) -> str:
        lines = path.read_text(encoding="utf-8").splitlines()
        numbers = [number for number, line in enumerate(lines, 1) if key and f'"{key}"' in line]
        return f"{path}:{numbers[0]}" if numbers else str(path)

    return where


def _read_tokenizer(folder: Path, problems: list[Problem]) -> SourceFiles | None:
    """Return the facts of the tokenizer's files, None with the problems if they are not usable."""
    found: dict[str, dict[str, Any]] = {}
    for name in ("tokenizer.json", "tokenizer_config.json"):
        path = folder / name
        if not path.is_file():
            problems.append(Problem(f"{name} is missing", str(folder), _TOKENIZER))
            continue
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError) as error:
            problems.append(replace(_json_problem(error, path), remedy=_TOKENIZER))
            continue
        if isinstance(data, dict):
            found[name] = data
        else:
            problems.append(Problem("must be a JSON object", f"{path}:1", _TOKENIZER))
    if "tokenizer.json" not in found:
        return None
    try:
        return _source_files(folder, found["tokenizer.json"])
    except (ValueError, KeyError, TypeError, AttributeError):
        path = folder / "tokenizer.json"
        problems.append(Problem("its vocabulary is damaged", str(path), _TOKENIZER))
        return None


def _source_files(folder: Path, tokenizer: Mapping[str, Any]) -> SourceFiles:
    sizes = {path.name: path.stat().st_size for path in folder.iterdir() if path.is_file()}
    model = tokenizer["model"]
    vocabulary: dict[str, int] = model["vocab"]
    added = [entry["content"] for entry in tokenizer.get("added_tokens") or []]
    tokens = {*vocabulary.keys(), *added}
    merges = model.get("merges") or []
    return SourceFiles(
        files=sizes,
        tokens=len(tokens),
        token_bytes=sum(len(token.encode()) for token in tokens),
        merges=len(merges),
        merge_bytes=sum(
            len((merge if isinstance(merge, str) else " ".join(merge)).encode()) for merge in merges
        ),
        tokenizer="sentencepiece" if (folder / "tokenizer.model").exists() else "bpe",
    )


def catalogue_checkpoint(
    name: str,
    reference: str,
    config: Mapping[str, Any],
    tokenizer_bytes: int,
    license: str,
    where: Callable[[str], str],
) -> Checkpoint:
    """Return the facts of a published model that is not on this machine. `where` says where a
    key of its configuration was written."""
    with contextlib.suppress(KeyError, TypeError, ValueError, ArithmeticError):
        config = _with_factors(config)
    architecture = check_architecture(config, where)
    vocabulary = architecture.vocab_size
    sentencepiece = vocabulary < 64_000
    return Checkpoint(
        name=name,
        reference=reference,
        folder=None,
        architecture=architecture,
        weight_bytes=2 * architecture.parameters,
        license=license,
        files=SourceFiles(
            files={"tokenizer.json": tokenizer_bytes, "config.json": 3500},
            tokens=vocabulary,
            token_bytes=7 * vocabulary,
            merges=0 if sentencepiece else vocabulary,
            merge_bytes=0 if sentencepiece else 8 * vocabulary,
            tokenizer="sentencepiece" if sentencepiece else "bpe",
        ),
    )


def _with_dtype(config: Mapping[str, Any], tensors: Mapping[str, TensorInfo]) -> dict[str, Any]:
    """Give a config.json that names no dtype the one that the weights have."""
    if config.get("torch_dtype") or config.get("dtype") or not tensors:
        return dict(config)
    names = {"BF16": "bfloat16", "F16": "float16", "F32": "float32"}
    largest = max(tensors.values(), key=lambda tensor: tensor.parameters)
    return {**config, "torch_dtype": names.get(largest.dtype, "bfloat16")}


def _with_factors(config: Mapping[str, Any]) -> dict[str, Any]:
    """Give a longrope entry of the catalogue factor lists of the right length: sizes depend on
    their number, not on their values, and nothing is built from them."""
    scaling = dict(config.get("rope_scaling") or {})
    if scaling and "long_factor" not in scaling:
        head = int(config["hidden_size"]) // int(config["num_attention_heads"])
        count = int(head * float(config.get("partial_rotary_factor", 1.0))) // 2
        count = min(count, _MOST_FACTORS)  # with more, the architecture is refused
        scaling.update(short_factor=[1.0] * count, long_factor=[1.0] * count)
    return {**config, "rope_scaling": scaling or None}


def digest_files(folder: Path) -> list[Path]:
    """Return the files of a checkpoint that a build reads, in a fixed order."""
    small = [folder / name for name in _SMALL_FILES if (folder / name).is_file()]
    index = [folder / INDEX] if (folder / INDEX).is_file() else []
    return sorted({*small, *index, *shard_paths(folder)})


def combine_digests(digests: Mapping[str, str]) -> str:
    """Return the digest of a checkpoint from its files' sha256 by name."""
    text = "".join(f"{name} {digest}\n" for name, digest in sorted(digests.items()))
    return hashlib.sha256(text.encode()).hexdigest()


def license_file(folder: Path) -> Path | None:
    """Return the checkpoint's licence text, if it has one."""
    return next((folder / name for name in LICENSE_NAMES if (folder / name).is_file()), None)
