"""What a source is, before anything is made of it: proven, its weights as they are used, and the
facts of its tokenizer."""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Iterable, Mapping
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

from phibuild.backends.pytorch.cut import cut_copy, fuse_copy, loadable
from phibuild.backends.pytorch.merge import Origin, write_canonical
from phibuild.backends.pytorch.threads import use_threads
from phibuild.backends.pytorch.tokenizer_facts import write_tokenizer_facts
from phibuild.backends.pytorch.witness import compare
from phibuild.worker.architecture import Architecture
from phibuild.worker.protocol import Report
from phibuild.worker.requests import SourceRequest
from phibuild.worker.safetensors import INDEX, shard_paths
from phibuild.worker.unfused import EMBEDDING, HEAD

_PACKAGES = ("torch", "transformers", "tokenizers")
Fusing = Mapping[str, list[str]]


def source(request: SourceRequest, report: Report) -> None:
    """Write into the empty folder `output`: witness.json, how far Transformers' logits of the
    folder `original` are from those of phibuild's reading, its view `source` with the
    `architecture`; tokenizer.json and probes.json (tokenizer_facts.py); and the folder weights,
    where by `fusing` or an `adapter` they are not in the files as they are used (merge.py).
    Whatever keeps the two readings apart fails the item."""
    try:
        result = _source(request, report)
    except Exception as error:  # whatever Transformers raises is this item's failure
        report.failed(request["item"], error)
    else:
        report.item(request["item"], result)


def _source(request: SourceRequest, report: Report) -> Mapping[str, object]:
    started = time.perf_counter()
    original, view, output = (Path(request[key]) for key in ("original", "source", "output"))
    arch = Architecture.from_json(request["architecture"])
    fusing, adapter, item = request["fusing"], request["adapter"], request["item"]
    use_threads(request["threads"])
    report.stage("reading the tokenizer", item=item)
    write_tokenizer_facts(view, arch.vocab_size, output)
    with tempfile.TemporaryDirectory(dir=output) as scratch:
        report.stage("asking Transformers", item=item)
        distance = _witness(original, view, arch, request, Path(scratch))
    if fusing or adapter:
        weights = output / "weights"
        weights.mkdir()
        write_canonical(
            Origin(view, arch, fusing, adapter),
            weights,
            allow_nonfinite=request["allow_nonfinite"],
            say=lambda done: report.stage("making the weights", done, item),
        )
    if adapter:
        _replace_weights(view, weights.iterdir())
        distance = max(distance, compare(view, view, arch))
    result = {
        "distance": distance,
        "layers": request["layers"],
        "seconds": time.perf_counter() - started,
        "versions": {name: version(name) for name in _PACKAGES},
    }
    (output / "witness.json").write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    return result


def _witness(
    original: Path, view: Path, arch: Architecture, request: SourceRequest, scratch: Path
) -> float:
    """Return how far Transformers' reading of the base model is from phibuild's; `scratch` is an
    empty folder."""
    fusing: Fusing = request["fusing"]
    # An adapter unties by taking the embedding for a head: that is not the base's.
    if list(fusing.get(HEAD, ())) == [EMBEDDING]:
        arch = replace(arch, tied=True)
        fusing = {name: parts for name, parts in fusing.items() if name != HEAD}
    layers = request["layers"]
    config = json.loads((original / "config.json").read_text(encoding="utf-8"))
    # Transformers' Phi-3 cannot load such projections, nor every name of longrope.
    separate = bool(fusing) and config.get("model_type") == "phi3"
    copied = layers is not None or separate or loadable(config) != config
    if not copied and not fusing:
        return compare(original, view, arch)
    theirs, ours = scratch / "theirs", scratch / "ours"
    theirs.mkdir()
    ours.mkdir()
    if copied:
        kept = range(arch.layers) if layers is None else layers
        cut_copy(original, theirs, kept)
        arch = replace(arch, layers=len(kept))
    else:
        theirs = original
    for path in view.iterdir():
        (ours / path.name).symlink_to(path if theirs == original else theirs / path.name)
    if fusing:
        names = {name for name, _ in arch.tensors()}
        parts = {name: sources for name, sources in fusing.items() if name in names}
        weights = scratch / "weights"
        weights.mkdir()
        write_canonical(Origin(ours, arch, parts), weights, allow_nonfinite=True)
        _replace_weights(ours, weights.iterdir())
        if separate:
            fuse_copy(theirs)
    return compare(theirs, ours, arch)


def _replace_weights(view: Path, weights: Iterable[Path]) -> None:
    """Link other weights into a view."""
    for path in [*shard_paths(view), view / INDEX]:
        path.unlink(missing_ok=True)
    for path in weights:
        (view / path.name).symlink_to(path)
