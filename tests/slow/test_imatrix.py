"""Importance matrices from end to end: the original's activations, artifacts, what they gain."""

from __future__ import annotations

import hashlib
import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from conftest import CommandLine
from phibuild.backends.llamacpp.layout import stored_name
from phibuild.worker.safetensors import read_header
from support.llamacpp_recording import describe

RECIPE = """\
devices:
  intel_n100: {llamacpp: {int4: {type: Q4_K_M}, int8: }}
  ai_pc_intel: {llamacpp: {int4: {type: Q4_K_M, imatrix: TEXT}}}
  raspberry_pi_5: {llamacpp: {int4: {type: Q4_0}}}
  jetson_orin_nano: {llamacpp: {int4: {type: Q4_0, imatrix: TEXT}}}
"""


@pytest.fixture
def work(phibuild: CommandLine, toolchain_python: Callable[[str], Path]) -> CommandLine:
    for name in ("llamacpp", "pytorch"):
        toolchain_python(name)
    (phibuild.folder / "recipes").mkdir()
    return phibuild


def write_recipe(work: CommandLine, text: str) -> None:
    path = work.folder / "recipes" / "mine.yaml"
    path.write_text(RECIPE.replace("TEXT", text), encoding="utf-8")


def test_an_importance_matrix_brings_the_artifact_nearer_to_the_original(
    work: CommandLine,
) -> None:
    write_recipe(work, "embedded")
    # All windows: what the matrix takes from Q4_K_M is less than the figure's error over a few.
    done = work("build", "recipe=mine", "evaluation.adaptive=false")
    assert done.returncode == 0, done.stdout + done.stderr
    report = work.report("mine")
    kl = {cell["variant"]: cell["quality"]["kl_mean"] for cell in report["cells"]}
    sizes = {cell["variant"]: cell["size_bytes"] for cell in report["cells"]}
    assert kl["Q4_0-imatrix"] < 0.9 * kl["Q4_0"]
    assert kl["Q4_K_M-imatrix"] < 0.98 * kl["Q4_K_M"]
    assert sizes["Q4_0-imatrix"] == pytest.approx(sizes["Q4_0"], rel=0.001)
    (activations,) = (s for s in report["steps"] if s["id"].startswith("activations."))
    assert activations["id"].startswith("activations.phi3-tiny-trained.")

    # The same text from another place is the same artifact; another number of tokens is not.
    text = Path(__file__).parents[2] / "phibuild" / "data" / "phi3-tiny-trained" / "calibration.txt"
    (work.folder / "moved.txt").write_bytes(text.read_bytes())
    write_recipe(work, "moved.txt")
    assert work("build", "recipe=mine", "evaluation.adaptive=false").returncode == 0
    assert {cell["status"] for cell in work.report("mine")["cells"]} == {"cached"}
    write_recipe(work, "moved.txt, imatrix_tokens: 1024")
    assert work("build", "recipe=mine", "evaluation=none").returncode == 0
    status = {cell["variant"]: cell["status"] for cell in work.report("mine")["cells"]}
    assert {name for name, found in status.items() if found == "built"} == {
        "Q4_K_M-imatrix", "Q4_0-imatrix",
    }  # fmt: skip


def test_a_text_that_cannot_be_used_fails_the_variants_that_need_it_alone(
    work: CommandLine,
) -> None:
    (work.folder / "short.txt").write_text("too short", encoding="utf-8")
    write_recipe(work, "short.txt")
    done = work("build", "recipe=mine", "evaluation=none")
    assert done.returncode == 1, done.stdout + done.stderr
    reasons = {cell["variant"]: cell["reason"] for cell in work.report("mine")["cells"]}
    for name in ("Q4_K_M-imatrix", "Q4_0-imatrix"):
        reason = reasons.pop(name)
        assert reason.startswith("the original could not be run: the calibration text short.txt")
        assert "give a longer text" in reason
    assert reasons == {"Q4_K_M": None, "Q8_0": None, "Q4_0": None}


READ = """
import json, sys
from gguf import GGUFReader
found = GGUFReader(sys.argv[1])
json.dump({
    "values": {name: field.contents() for name, field in found.fields.items()},
    "tensors": {
        tensor.name: [tensor.tensor_type.name, tensor.data.reshape(-1).tolist()]
        for tensor in found.tensors
    },
}, sys.stdout)
"""


@pytest.mark.case(
    "building",
    "an importance matrix by phibuild, read by the gguf package and built from again",
    "the sums and counts of llama-imatrix's format",
    "the tensors that the text gives",
)
def test_a_matrix_that_is_written_gives_what_its_text_gives(
    work: CommandLine, vendor_python: Callable[[str], Path]
) -> None:
    write_recipe(work, "embedded, imatrix_tokens: 2048")
    words = ("build", "recipe=mine", "evaluation=none")
    assert work(*words).returncode == 0
    done = work("imatrix", "phi3-tiny-trained.ai_pc_intel.llamacpp.int4", "our.gguf")
    assert done.stdout == "our.gguf: 16 matrices, 4 chunks of 512 tokens\n", done.stderr
    read = subprocess.run(
        [vendor_python("gguf"), "-c", READ, "our.gguf"],
        cwd=work.folder,
        capture_output=True,
        text=True,
        check=True,
    )
    found = json.loads(read.stdout)
    text = Path(__file__).parents[2] / "phibuild" / "data" / "phi3-tiny-trained" / "calibration.txt"
    digest = hashlib.sha256(text.read_bytes()).hexdigest()
    values = {"general.type": "imatrix", "imatrix.datasets": [f"sha256:{digest}"],
              "imatrix.chunk_count": 4, "imatrix.chunk_size": 512}  # fmt: skip
    assert found["values"].items() >= values.items()
    (meta,) = work.folder.glob("store/references/*/activations.safetensors")
    tensors = found["tensors"]
    assert len(tensors) == 32
    for tensor in read_header(meta).values():
        name = stored_name(tensor.name)
        assert tensors.pop(f"{name}.counts") == ["F32", [2048.0]]
        sums = np.fromfile(meta, "<f4", tensor.nbytes // 4, offset=tensor.offset)
        assert tensors.pop(f"{name}.in_sum2") == ["F32", sums.tolist()]
    assert tensors == {}

    def made() -> dict[str, dict[str, Any]]:
        paths = (work.folder / "outputs/mine/latest/artifacts").glob("*/*/*-imatrix.gguf")
        return {path.name: describe(path) for path in paths}

    of_text = made()
    write_recipe(work, "our.gguf")
    assert work(*words).returncode == 0
    report = work.report("mine")
    status = {cell["variant"]: cell["status"] for cell in report["cells"]}
    assert status == {
        "Q4_K_M": "cached", "Q8_0": "cached", "Q4_0": "cached",
        "Q4_K_M-imatrix": "built", "Q4_0-imatrix": "built",
    }  # fmt: skip
    assert not [step for step in report["steps"] if step["id"].startswith("activations.")]
    of_file = made()
    assert set(of_file) == {"model-Q4_K_M-imatrix.gguf", "model-Q4_0-imatrix.gguf"}
    for name, file in of_file.items():
        assert file["tensors"] == of_text[name]["tensors"]
        more = file["metadata"].keys() - of_text[name]["metadata"].keys()
        assert more == {"quantize.imatrix.file", "quantize.imatrix.dataset"}
