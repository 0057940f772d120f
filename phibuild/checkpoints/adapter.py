"""A base model with a LoRA adapter merged into it: the facts of the result.

An adapter folder, as PEFT saves it, holds adapter_config.json and adapter_model.safetensors, which
are read here by their headers; backends/pytorch/merge.py merges the weights in the source step.
"""

from __future__ import annotations

import filecmp
from dataclasses import replace
from pathlib import Path

from phibuild.checkpoints.adapter_config import MERGE, AdapterConfig, read_adapter_config
from phibuild.checkpoints.adapter_tensors import (
    Modules,
    incomplete,
    module_changes,
    overlaps,
    read_adapter_tensors,
)
from phibuild.checkpoints.config_file import read_config
from phibuild.checkpoints.facts import Checkpoint, source_files
from phibuild.checkpoints.tensors import first_problems, same_content
from phibuild.checkpoints.tokenizer_files import TokenizerFiles, read_tokenizer, too_many_ids
from phibuild.errors import Problem, SourceError
from phibuild.worker.adapter_merge import (
    ADAPTER_WEIGHTS,
    Adapter,
    Delta,
    Replacement,
)
from phibuild.worker.companions import TEMPLATES, TOKENIZER_FILES
from phibuild.worker.safetensors import ITEM_BYTES
from phibuild.worker.source_config import view_config
from phibuild.worker.unfused import EMBEDDING, HEAD, Fusing, places

_EMBEDDING, _HEAD = EMBEDDING.removesuffix(".weight"), HEAD.removesuffix(".weight")
_WHOLE = ("tokenizer.json", "tokenizer_config.json")  # a tokenizer that has these is complete
_DTYPES = {"bfloat16": "BF16", "float16": "F16", "float32": "F32"}


def base_reference(folder: Path, where: str | None) -> str:
    """Return the model that an adapter folder names as its base; `where` says where the folder was
    named. Raises SourceError if it is no plain LoRA, or names none."""
    config = read_adapter_config(folder, where)
    if config.base is None:
        raise SourceError(
            Problem(
                "the adapter does not name its base (base_model_name_or_path)",
                config.where("base_model_name_or_path"),
                f"name it in the recipe: model: {{base: ..., adapter: {folder}}}",
            )
        )
    return config.base


def load_adapted(
    base: Checkpoint, folder: Path, name: str, reference: str, where: str | None
) -> Checkpoint:
    """Return the facts of `base` with the adapter of `folder` merged into it: its canonical
    architecture, untied where the merge unties it, and what is to be merged.

    `where` says where the folder was named. Raises SourceError with everything that is wrong.
    """
    config = read_adapter_config(folder, where)
    arch = base.architecture
    known = places(arch)
    modules = read_adapter_tensors(folder, known)
    deltas: dict[str, list[Delta]] = {}
    replacements: dict[str, list[Replacement]] = {}
    misfits: list[Problem] = []
    for module, parts in modules.items():
        try:
            replacement, delta = module_changes(module, parts, known[module], config)
        except SourceError as error:
            misfits += error.problems
            continue
        tensor = known[module].tensor
        if replacement is not None:
            replacements.setdefault(tensor, []).append(replacement)
        if delta is not None:
            deltas.setdefault(tensor, []).append(delta)
    weights = folder / ADAPTER_WEIGHTS
    problems = list(first_problems(misfits))
    problems += first_problems([*overlaps(deltas, weights), *overlaps(replacements, weights)])
    problems += incomplete(modules, known, config, weights)
    if problems:
        raise SourceError(*problems)
    tied = arch.tied and _stays_tied(modules, config, weights)
    fusing, weight_bytes = base.fusing, base.weight_bytes
    if tied:
        replacements.pop(HEAD, None)  # a copy of the embedding's
    elif arch.tied:
        fusing = Fusing({**(fusing.tensors if fusing else {}), HEAD: (EMBEDDING,)})
        item = ITEM_BYTES[_DTYPES.get(arch.dtype, "BF16")]
        weight_bytes += item * arch.vocab_size * arch.hidden_size
    tokenizer = _own_tokenizer(folder, arch.vocab_size)
    arch = replace(arch, tied=tied)
    adapter = Adapter(
        folder=folder,
        deltas={tensor: tuple(found) for tensor, found in deltas.items()},
        replacements={tensor: tuple(found) for tensor, found in replacements.items()},
        tokenizer={name: folder / name for name in tokenizer.names} if tokenizer else {},
    )
    links = adapter.links(base.links) if base.links else {}
    base_config = base.config
    if base_config is None:
        base_config = read_config(base.folder) if base.folder else {}
    notes = [f"the LoRA adapter in {folder.name} is merged into {base.reference}"]
    if tokenizer:
        notes.append("the tokenizer is the adapter's own")
    elif unused := _unused_files(folder, base.folder):
        missing = " and no ".join(name for name in _WHOLE if not (folder / name).is_file())
        notes.append(
            f"the adapter's own {', '.join(unused)} not used, since it has no {missing}: the "
            "tokenizer and its chat template are the base's"
        )
    return replace(
        base,
        name=name,
        reference=reference,
        architecture=arch,
        weight_bytes=weight_bytes,
        files=source_files(links, tokenizer) if tokenizer and links else base.files,
        fusing=fusing,
        adapter=adapter,
        links=links,
        config=view_config(base_config, base_config, arch) or base.config,
        notes=(*base.notes, *notes),
    )


def _stays_tied(modules: Modules, config: AdapterConfig, weights: Path) -> bool:
    """Return whether a tied base is still tied after the merge.

    `modules_to_save` makes a copy of the embedding or the head, which PEFT's merge puts in its
    place: they are two tensors then, unless they are equal. A whole tensor of a module that is not
    in `modules_to_save` is loaded into the one tensor that both share.
    """
    for module in (_EMBEDDING, _HEAD):
        if set(modules.get(module, ())) - {"weight"}:
            raise SourceError(
                Problem(
                    f"LoRA on {module} of a model with tied embeddings: PEFT's merge changes "
                    "embedding and lm_head alike, the training did not",
                    str(weights),
                    "train it with modules_to_save, or untie the base before training",
                )
            )
    embedding, head = (modules.get(module, {}).get("weight") for module in (_EMBEDDING, _HEAD))
    if head is None:
        return embedding is None or not config.saves(_EMBEDDING)
    if embedding is not None and same_content(embedding, head):
        return True
    if config.saves(_HEAD) or (embedding is not None and config.saves(_EMBEDDING)):
        return False
    raise SourceError(
        Problem(
            "the adapter has an lm_head that modules_to_save does not name; the base has one "
            "tensor for it and the embedding",
            config.where("modules_to_save"),
            MERGE,
        )
    )


def _own_tokenizer(folder: Path, embeddings: int) -> TokenizerFiles | None:
    """Return the tokenizer of an adapter's folder, None if there is no complete one. Raises
    SourceError if it cannot be used, or does not suit a model of so many embeddings."""
    if not all((folder / name).is_file() for name in _WHOLE):
        return None
    found = read_tokenizer(folder)
    too_many = too_many_ids(found, embeddings, folder)
    problems = [*found.problems, *([too_many] if too_many else [])]
    if problems:
        raise SourceError(*problems)
    return found


def _unused_files(folder: Path, base: Path | None) -> list[str]:
    """Return the files of a tokenizer in an adapter's folder that are not those of the base, byte
    for byte; all if the base is not on this machine."""
    templates = sorted(f"{TEMPLATES}/{path.name}" for path in (folder / TEMPLATES).glob("*.jinja"))
    there = [name for name in (*TOKENIZER_FILES, *templates) if (folder / name).is_file()]
    return [name for name in there if base is None or not _same(folder / name, base / name)]


def _same(path: Path, other: Path) -> bool:
    try:
        return filecmp.cmp(path, other, shallow=False)
    except OSError:  # the base has no such file, or one of them may not be read
        return False
