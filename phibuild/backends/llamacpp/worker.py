"""The llamacpp backend inside its toolchain: build, inspect, load."""

from __future__ import annotations

import functools
import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from phibuild.worker.protocol import Report, WorkerError, peak_rss_bytes

if TYPE_CHECKING:
    from phibuild.backends.llamacpp.convert import GgufFile
    from phibuild.backends.llamacpp.imatrix import Importance
    from phibuild.backends.llamacpp.runtime import LlamaRuntime
    from phibuild.backends.llamacpp.vocabulary import Vocabulary
    from phibuild.worker.architecture import Architecture

REFERENCE = "logits"
_PROGRESS_SECONDS = 0.2


def build(request: dict[str, Any], report: Report) -> None:
    """Write all items of the request in one pass over the checkpoint."""
    from phibuild.backends.llamacpp import ggml
    from phibuild.backends.llamacpp.convert import write_files
    from phibuild.backends.llamacpp.imatrix import read_importance
    from phibuild.backends.llamacpp.quantizer import choose
    from phibuild.backends.llamacpp.tokenizer import check
    from phibuild.backends.llamacpp.vocabulary import read_vocabulary
    from phibuild.worker.architecture import Architecture
    from phibuild.worker.safetensors import read_checkpoint
    from phibuild.worker.tokenizer_check import read_facts

    items: dict[str, GgufFile] = {}
    try:
        source = Path(request["source"])
        arch = Architecture.from_json(request["architecture"])
        report.stage("reading the tokenizer")
        facts = read_facts(Path(request["facts"]))
        vocabulary = read_vocabulary(facts, source, arch.vocab_size)
        checkpoint = read_checkpoint(source)
        generation = _generation_config(source)
        ggml.library()
    except Exception as error:  # whatever is wrong with the checkpoint, it is so for every item
        for item in request["items"]:
            report.failed(item["item"], error)
        return
    read = functools.cache(read_importance)  # items of one text share it
    for item in request["items"]:
        variant, folder = item["variant"], item.get("activations")
        try:
            file = _file(
                Path(item["output"]) / file_name(variant["name"]),
                variant["options"]["type"],
                arch,
                vocabulary,
                request["model"],
                generation,
                read(Path(folder)) if folder else None,
            )
        except Exception as error:  # activations that cannot be used
            report.failed(item["item"], error)
        else:
            items[item["item"]] = file
    if not items:
        return
    started = last = time.monotonic()

    def progress(done: float) -> None:
        nonlocal last
        now = time.monotonic()
        if done == 1 or now - last >= _PROGRESS_SECONDS:
            last = now
            for key in items:
                report.stage("quantizing", done, key)

    stored = [tensor for file in items.values() for tensor in file.tensors]
    quantize = choose(stored, report.stage)
    write_files(checkpoint, list(items.values()), quantize, request["threads"], progress)
    elapsed, peak = time.monotonic() - started, peak_rss_bytes()
    work = sum(file.seconds for file in items.values()) or 1.0
    checked: dict[str, Any] = {}  # all have the same key/values
    for key, file in items.items():
        try:
            if file.error is not None:
                raise file.error
            result = inspect(file.path.parent)
            report.stage("checking the tokenizer", item=key)
            checked = checked or check(file.path, vocabulary)
            result["tokenizer"] = checked
        except Exception as error:
            report.failed(key, error)
        else:
            # one pass made them all: each gets its share of the time
            share = {"seconds": elapsed * file.seconds / work, "peak_rss_bytes": peak}
            report.item(key, result | share)


def inspect(folder: Path) -> dict[str, Any]:
    """Return the stored types and bytes of a finished artifact."""
    from phibuild.backends.llamacpp.inspect import inspect as run

    return run(folder)


def prepare() -> None:
    """Import what `load` needs, so that timing `load` times the artifact alone."""
    import phibuild.backends.llamacpp.runtime  # noqa: F401


def load(folder: Path, threads: int) -> LlamaRuntime:
    """Return the artifact loaded by llama.cpp."""
    from phibuild.backends.llamacpp.inspect import model_file
    from phibuild.backends.llamacpp.runtime import LlamaRuntime

    return LlamaRuntime(model_file(folder), threads)


def file_name(variant: str) -> str:
    """Return the name of the artifact's one file."""
    return f"model-{variant}.gguf"


def _file(
    output: Path,
    type: str,
    arch: Architecture,
    vocabulary: Vocabulary,
    model: str,
    generation: dict[str, Any],
    importance: Importance | None,
) -> GgufFile:
    from phibuild.backends.llamacpp.convert import GgufFile
    from phibuild.backends.llamacpp.imatrix import check_importance
    from phibuild.backends.llamacpp.layout import ROPE_FACTORS, tensors
    from phibuild.backends.llamacpp.metadata import general_name, imatrix_values, model_values

    name = general_name(model, strips_after_special=vocabulary.strips_after_special)
    values = model_values(arch, type, name, generation)
    stored = tensors(arch, type, imatrix=importance is not None)
    if importance is not None:
        check_importance(importance, stored)
        values += imatrix_values(len(importance.columns), importance.chunks)
    return GgufFile(
        output,
        [*values, *vocabulary.values],
        stored,
        {
            f"{ROPE_FACTORS}long.weight": arch.rope.long,
            f"{ROPE_FACTORS}short.weight": arch.rope.short,
        },
        importance.columns if importance is not None else {},
    )


def _generation_config(source: Path) -> dict[str, Any]:
    path = source / "generation_config.json"
    data = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    if not isinstance(data, dict):
        raise WorkerError(f"{path.name} is not a JSON object")
    return data
