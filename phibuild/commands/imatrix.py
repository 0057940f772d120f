"""`phibuild imatrix`: the importance matrix of an artifact as a file for llama.cpp's own tools."""

from __future__ import annotations

import argparse

from phibuild.backends.llamacpp.matrix import ImportanceMatrix, encode_matrix, read_activations
from phibuild.errors import EXIT_OK, ConfigError, Problem
from phibuild.report.runs import find_artifact
from phibuild.store.manifest import StoredArtifact
from phibuild.store.store import Store
from phibuild.system.files import write_atomically
from phibuild.system.places import store_folder, user_path


def run(arguments: argparse.Namespace) -> int:
    """Write the matrix of an artifact that was built with `imatrix: TEXT`; say what it holds."""
    target = user_path(arguments.file, "FILE")
    if target.suffix != ".gguf":
        what, remedy = "an importance matrix is a GGUF file", "give a name that ends in .gguf"
        raise ConfigError(Problem(what, str(target), remedy))
    if not target.parent.is_dir():
        raise ConfigError(Problem("no such folder", str(target.parent)))
    if target.exists():
        raise ConfigError(Problem("it is there already", str(target), "give another name"))
    matrix = _matrix(find_artifact(arguments.what, user_path(arguments.output, "--output")))
    write_atomically(target, encode_matrix(matrix))
    text = f"{matrix.chunks} chunks of {matrix.chunk_tokens} tokens"
    print(f"{target}: {len(matrix.entries)} matrices, {text}")
    return EXIT_OK


def _matrix(artifact: StoredArtifact) -> ImportanceMatrix:
    """Return the importance matrix that an artifact was built with, out of the store."""
    manifest, where = artifact.manifest, str(artifact.folder)
    options = manifest.variant.options
    if name := options.get("imatrix_file"):
        what = f"its importance matrix came from a file, {name}"
        raise ConfigError(Problem(what, where, "that file is what llama.cpp's tools read"))
    if not options.get("imatrix") or manifest.activations is None:
        what = f"{manifest.variant.name} of {manifest.backend} was built without one"
        remedy = "build a cell with llamacpp: {int4: {imatrix: TEXT}}"
        raise ConfigError(Problem(what, where, remedy))
    folder = Store(store_folder()).reference(manifest.activations)
    if folder is None:
        what = "what it was made of is no longer in the store"
        remedy = "build it in another one: PHIBUILD_STORE=FOLDER phibuild build ..."
        raise ConfigError(Problem(what, where, remedy))
    # A text is known by its content: its name may be another one tomorrow.
    return read_activations(folder, f"sha256:{options['imatrix']}")
