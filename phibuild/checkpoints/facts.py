"""A checkpoint: facts from its config.json, its tokenizer's files and the headers of its weights.

Reads no weights, but for an lm_head that may be a copy of the embedding. Raises SourceError with
everything that is wrong at once.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from phibuild.backends.base import SourceFiles
from phibuild.checkpoints.config_file import CONFIG, check_architecture, read_config
from phibuild.checkpoints.json_files import json_place
from phibuild.checkpoints.tensors import check_tensors, has_own_head, ignored_weights, read_tensors
from phibuild.checkpoints.tokenizer_files import TokenizerFiles, read_tokenizer, too_many_ids
from phibuild.errors import Problem, SourceError
from phibuild.worker.adapter_merge import ADAPTER, Adapter
from phibuild.worker.architecture import Architecture
from phibuild.worker.companions import GENERATION_FILES
from phibuild.worker.json_values import JsonDict, JsonObject
from phibuild.worker.safetensors import INDEX, SINGLE, TensorInfo, shard_paths
from phibuild.worker.source_config import view_config
from phibuild.worker.unfused import (
    LLAMA_FIED,
    Fusing,
    find_fusing,
    source_tensors,
    unfused_tensors,
)

LICENSE_NAMES = ("LICENSE", "LICENSE.txt", "LICENSE.md")
_MOST_FACTORS = 1 << 16


@dataclass(frozen=True)
class Checkpoint:
    """What is known of a checkpoint. `folder` is None for a Hub model that is not fetched yet:
    then `files` and `weight_bytes` are estimates from the catalogue. `commit` is that of a fetched
    Hub model, `pinned` says that it was asked for by this commit, `lacking` names files of the
    repository that may not be here.

    `links` are the files that are the source, by their names in its view (view.py); `config` is the
    view's config.json, None if it is the source's own; `notes` are what to say of the source.
    `adapter` is what is to be merged into the folder's weights, `fusing` which of them are in
    separate tensors: `architecture` is of what comes of it."""

    name: str
    reference: str
    folder: Path | None
    architecture: Architecture
    weight_bytes: int
    files: SourceFiles
    license: str = "see the LICENSE file"
    commit: str | None = None
    pinned: bool = True
    lacking: tuple[str, ...] = ()
    links: Mapping[str, Path] = field(default_factory=dict)
    config: JsonObject | None = None
    notes: tuple[str, ...] = ()
    adapter: Adapter | None = None
    fusing: Fusing | None = None

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
        remedy = "give a checkpoint folder, a model name or org/name"
        raise SourceError(Problem(f"{wrong}: {folder}", where, remedy))
    config = read_config(folder)
    problems: list[Problem] = []
    tensors = read_tensors(folder, problems)
    architecture, canonical = check_architecture(
        config, json_place(folder / CONFIG), tensors, str(folder)
    )
    fusing = _fusing(config, tensors, architecture)
    notes: list[str] = []
    if tensors:
        problems += check_tensors(
            tensors, architecture, source_tensors(architecture, fusing), folder
        )
        if not problems:
            architecture = _untied(architecture, tensors, notes)
        notes += _notes(config, fusing, folder)
    tokenizer = read_tokenizer(folder)
    problems += tokenizer.problems
    too_many = too_many_ids(tokenizer, architecture.vocab_size, folder)
    if too_many:
        problems.append(too_many)
    if problems:
        raise SourceError(*problems)
    links = _links(folder, tokenizer)
    return Checkpoint(
        name=name,
        reference=reference,
        folder=folder,
        architecture=architecture,
        weight_bytes=sum(tensor.nbytes for tensor in tensors.values()),
        files=source_files(links, tokenizer),
        links=links,
        config=view_config(config, canonical, architecture),
        notes=tuple(notes),
        fusing=fusing,
    )


def _fusing(
    config: JsonObject, tensors: Mapping[str, TensorInfo], architecture: Architecture
) -> Fusing | None:
    """Return what is to be fused: all that Llama's and Mistral's classes hold apart, and whatever
    lies apart in a Phi-3's files."""
    if config.get("model_type") not in LLAMA_FIED:
        return find_fusing(tensors, architecture)
    parts = unfused_tensors(architecture)
    return Fusing({fused: tuple(name for name, _ in some) for fused, some in parts})


def _untied(
    architecture: Architecture, tensors: Mapping[str, TensorInfo], notes: list[str]
) -> Architecture:
    """Return the architecture with a head of its own, if the weights have one."""
    if not architecture.tied or not has_own_head(tensors):
        return architecture
    notes.append(
        "config.json ties lm_head to the embedding, the weights have an lm_head of their own: it "
        "is kept, as Transformers keeps it"
    )
    return replace(architecture, tied=False)


def _notes(config: JsonObject, fusing: Fusing | None, folder: Path) -> list[str]:
    notes = []
    if fusing is not None:
        kind = str((config.get("architectures") or ["a Phi-3"])[0])
        notes.append(f"{kind} with separate q, k, v and gate, up: fused, as Phi-3 has them")
    scaling = config.get("rope_scaling") or config.get("rope_parameters") or {}
    if "su" in (scaling.get("type"), scaling.get("rope_type")):
        notes.append("rope type su is longrope's first name: read as longrope")
    ignored = ignored_weights(folder)
    if ignored:
        notes.append(f"not read, as Transformers does not load it: {', '.join(ignored)}")
    return notes


def _links(folder: Path, tokenizer: TokenizerFiles) -> dict[str, Path]:
    """Return the files of a folder that are the source, by name."""
    weights = shard_paths(folder)
    names = [CONFIG, *tokenizer.names, *(path.name for path in weights)]
    names += [name for name in (*GENERATION_FILES, *LICENSE_NAMES) if (folder / name).is_file()]
    if weights and weights[0].name != SINGLE:
        names.append(INDEX)
    return {name: folder / name for name in sorted(names)}


def source_files(links: Mapping[str, Path], tokenizer: TokenizerFiles) -> SourceFiles:
    """Return what a backend's spec may know of the files of a source."""
    return SourceFiles(
        files={
            name: path.stat().st_size
            for name, path in links.items()
            if not name.startswith(ADAPTER)
        },
        tokens=tokenizer.tokens,
        token_bytes=tokenizer.token_bytes,
        merges=tokenizer.merges,
        merge_bytes=tokenizer.merge_bytes,
        tokenizer=tokenizer.kind,
    )


def catalogue_checkpoint(
    name: str,
    reference: str,
    config: JsonObject,
    tokenizer_bytes: int,
    license: str,
    where: Callable[[str], str],
) -> Checkpoint:
    """Return the facts of a published model that is not on this machine. `where` says where a
    key of its configuration was written."""
    with contextlib.suppress(KeyError, TypeError, ValueError, ArithmeticError):
        config = _with_factors(config)
    architecture, _ = check_architecture(config, where)
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


def _with_factors(config: JsonObject) -> JsonDict:
    """Give a longrope entry of the catalogue factor lists of the right length: sizes depend on
    their number, not on their values, and nothing is built from them."""
    scaling = dict(config.get("rope_scaling") or {})
    if scaling and "long_factor" not in scaling:
        head = int(config["hidden_size"]) // int(config["num_attention_heads"])
        count = int(head * float(config.get("partial_rotary_factor", 1.0))) // 2
        count = min(count, _MOST_FACTORS)  # with more, the architecture is refused
        scaling.update(short_factor=[1.0] * count, long_factor=[1.0] * count)
    return {**config, "rope_scaling": scaling or None}


def combine_digests(digests: Mapping[str, str]) -> str:
    """Return the digest of a checkpoint from its files' sha256 by name."""
    text = "".join(f"{name} {digest}\n" for name, digest in sorted(digests.items()))
    return hashlib.sha256(text.encode()).hexdigest()


def license_file(folder: Path) -> Path | None:
    """Return the checkpoint's licence text, if it has one."""
    return next((folder / name for name in LICENSE_NAMES if (folder / name).is_file()), None)
