"""`imatrix: FILE` in recipes and `phibuild imatrix`: what they take, and what is refused."""

from __future__ import annotations

import json
import shutil
import struct
from dataclasses import replace
from pathlib import Path

import pytest

from phibuild.backends.llamacpp.matrix import Entry, ImportanceMatrix, encode_matrix
from phibuild.backends.llamacpp.matrix_file import parse
from phibuild.cli import run_command
from phibuild.store.store import Store
from phibuild.worker.safetensors import SafetensorsWriter
from support.documents import some_facts
from support.matrices import make_matrix
from support.refusals import Refuse, refuse

__all__ = ["refuse"]

RECIPE = "devices:\n  intel_n100:\n    llamacpp:\n      int4:\n        imatrix: our.gguf\n"
WHERE = "recipes/mine.yaml:5: option 'imatrix' of llamacpp"
GIVE = "; give a file that llama-imatrix or phibuild has written"
OF_MODEL = "give one that was made of this model, or a calibration text"


@pytest.mark.parametrize("verb", ["plan", "build"])
def test_a_file_that_is_no_matrix_is_refused_where_it_is_named(verb: str, refuse: Refuse) -> None:
    refuse.write("recipes/mine.yaml", RECIPE)
    missing = f"'our.gguf' cannot be read: No such file or directory{GIVE}"
    assert refuse(verb, "recipe=mine") == [f"{WHERE}: {missing}"]
    refuse.write("our.gguf", encode_matrix(make_matrix())[:-1])
    (error,) = refuse(verb, "recipe=mine")
    assert error.startswith(f"{WHERE}: 'our.gguf' is no importance matrix: blk.")
    assert error.endswith(f"ends after the file: cut off, or damaged{GIVE}")
    refuse.write("our.dat", "a text\n")
    (error,) = refuse(verb, "recipe=mine", "devices.intel_n100.llamacpp.int4.imatrix=our.dat")
    place = "command line: devices.intel_n100.llamacpp.int4.imatrix=our.dat"
    assert error.startswith(f"{place}: option 'imatrix' of llamacpp: 'our.dat' is no importance")


@pytest.mark.parametrize("verb", ["plan", "build"])
@pytest.mark.case(
    "building",
    "an importance matrix of another model",
    "-",
    "refused",
)
def test_a_matrix_of_another_model_is_refused(verb: str, refuse: Refuse) -> None:
    refuse.write("recipes/mine.yaml", RECIPE)
    matrix = make_matrix()
    name = "blk.1.ffn_down.weight"
    short = {**matrix.entries, name: Entry(struct.pack("<f", 1), (1024,))}
    less = {key: entry for key, entry in short.items() if key != name}
    columns = matrix.entries[name].columns
    for entries, why in (
        (short, f"has 1 columns for {name}, not {columns}"),
        (less, f"has no entry for {name}"),
    ):
        refuse.write("our.gguf", encode_matrix(replace(matrix, entries=entries)))
        expected = f"{WHERE} does not suit phi3-tiny-trained: 'our.gguf' {why}\n    {OF_MODEL}"
        assert refuse(verb, "recipe=mine") == [expected]


def test_a_matrix_has_its_tokens_already(refuse: Refuse) -> None:
    refuse.write("recipes/mine.yaml", RECIPE + "        imatrix_tokens: 1024\n")
    refuse.write("our.gguf", encode_matrix(make_matrix()))
    (error,) = refuse("plan", "recipe=mine")
    assert error.startswith("recipes/mine.yaml:6: option 'imatrix_tokens' of llamacpp: 'our.gguf'")
    assert error.endswith("remove imatrix_tokens, which goes with a text")


def publish(store: Store, **changes: object) -> Path:
    """Put an artifact into the store, with activations behind it; return its folder."""
    store.prepare()
    with store.workspace() as folder:
        entries = [("model.layers.0.mlp.down_proj.weight", "F32", (2,))]
        with SafetensorsWriter(folder, entries, metadata={}) as writer:
            writer.write(entries[0][0], struct.pack("<2f", 2, 4))
        (folder / "model.safetensors").rename(folder / "activations.safetensors")
        (folder / "meta.json").write_text(json.dumps({"tokens": 1024, "chunks": 2}))
        store.publish_reference("activations", folder)
    facts = some_facts(activations="activations")
    options = {"type": "Q4_0", "imatrix": "0123", **changes}
    variant = facts.variant.model_copy(update={"options": options})
    with store.workspace() as folder:
        (folder / "model.gguf").write_bytes(b"GGUF")
        facts = facts.model_copy(update={"variant": variant})
        return store.publish("artifact", folder, facts).folder


def test_the_matrix_of_an_artifact_is_written(
    refuse: Refuse, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = str(publish(Store(refuse.folder / "store")))
    assert run_command(["imatrix", folder, "our.gguf"]) == 0
    assert capsys.readouterr().out == "our.gguf: 1 matrices, 2 chunks of 512 tokens\n"
    entries = {"blk.0.ffn_down.weight": Entry(struct.pack("<2f", 2, 4), (1024,))}
    written = Path("our.gguf").read_bytes()
    assert parse(written) == ImportanceMatrix(entries, ("sha256:0123",), 2, 512)
    assert refuse("imatrix", folder, "our.gguf") == [
        "our.gguf: it is there already\n    give another name"
    ]
    assert "ends in .gguf" in refuse("imatrix", folder, "our.dat")[0]
    assert refuse("imatrix", folder, "no/our.gguf") == ["no: no such folder"]
    shutil.rmtree(refuse.folder / "store" / "references" / "activations")
    (error,) = refuse("imatrix", folder, "other.gguf")
    assert "what it was made of is no longer in the store" in error


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"imatrix_file": "their.gguf"}, "its importance matrix came from a file, their.gguf"),
        ({"imatrix": None}, "Q4_0 of llamacpp was built without one"),
    ],
)
def test_an_artifact_without_a_matrix_of_its_own(
    changes: dict[str, object], why: str, refuse: Refuse
) -> None:
    folder = str(publish(Store(refuse.folder / "store"), **changes))
    (error,) = refuse("imatrix", folder, "our.gguf")
    assert error.startswith(f"{folder}: {why}")
