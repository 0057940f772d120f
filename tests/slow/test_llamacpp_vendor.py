"""GGUF files equal those of llama.cpp's own converter and quantizer, and llama.cpp runs them.

The vendor's side is recorded (tests/vendors/record_llamacpp.py): its quantizer has to be compiled.
"""

from __future__ import annotations

import hashlib
import json
import platform
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from phibuild.backends.llamacpp.layout import FILE_TYPES
from phibuild.backends.llamacpp.matrix import encode_matrix
from phibuild.backends.llamacpp.spec import SPEC
from phibuild.schema import Precision, Variant
from phibuild.worker.architecture import Architecture, read_architecture
from phibuild.worker.safetensors import SafetensorsWriter, read_checkpoint
from support.kinds import some
from support.llamacpp_recording import (
    CASES,
    IMATRIX_CHUNKS,
    IMATRIX_FILE,
    IMATRIX_TOKENS,
    IMATRIX_TYPES,
    MODEL_NAME,
    RECORDING,
    ROOT,
    Case,
    describe,
    digest,
    fixed_matrix,
    folder_digest,
    squared_inputs,
    text_lines,
)

pytestmark = pytest.mark.slow

Events = list[dict[str, Any]]
RunWorker = Callable[[str, dict[str, Any]], Events]
MakeCheckpoint = Callable[..., Path]
MakeFacts = Callable[[Path], Path]

# Where phibuild's metadata differs, on purpose. The vendor guesses these from a model's name:
GUESSED = {"general.basename", "general.finetune", "general.size_label"}
# The vendor's name comes without "phi-3", whatever the tokenizer does after special tokens:
DELIBERATE = {"general.name"}
# What stands between two texts; only rerankers have a use for it:
UNUSED = {"tokenizer.ggml.add_sep_token"}
# The vendor leaves to llama.cpp's defaults whether EOS is added, and does not know of the tokens
# besides EOS that end generation (Phi-3's <|assistant|>):
ADDED = {"tokenizer.ggml.add_eos_token", "tokenizer.ggml.eom_token_id"}
ALLOWED = GUESSED | DELIBERATE | UNUSED | ADDED

RECORDED = json.loads(RECORDING.read_text(encoding="utf-8"))["cases"]
_WITH_MATRIX = [case for case in CASES if case.imatrix_types]
WITH_MATRIX = some(_WITH_MATRIX, [case for case in _WITH_MATRIX if case.shape == "phi3"])
PRECISIONS: dict[str, Precision] = {"Q8_0": "int8", "F16": "fp16", "F32": "fp32"}
TOKENIZE = """
import json, sys
from pathlib import Path
from phibuild.backends.llamacpp.worker import load
runtime = load(Path(sys.argv[1]), 1)
json.dump([runtime.tokenize(line) for line in json.load(sys.stdin)], sys.stdout)
"""
KERNELS = ROOT / "tests" / "support" / "llamacpp_kernels.py"
COMPILED = """
import json, sys
from phibuild.backends.llamacpp import quantizer, worker
from phibuild.worker.protocol import Report
quantizer.COMPILING_PAYS = 0
worker.build(json.load(sys.stdin), Report(sys.stdout))
"""
compiles_searches = pytest.mark.skipif(
    (sys.platform, platform.machine()) != ("linux", "x86_64"),
    reason="llama.cpp's own searches are used on this machine",
)


def _variant(name: str) -> Variant:
    """Return the variant of a type, with "-imatrix" at its end of one with an importance matrix."""
    type, _, imatrix = name.partition("-")
    options = {"type": type} | ({"imatrix": "0" * 64} if imatrix else {})
    precision = PRECISIONS.get(type, "int4")
    return Variant(
        backend="llamacpp", precision=precision, name=name, format="GGUF", options=options
    )


def _architecture(source: Path) -> Architecture:
    return read_architecture(json.loads((source / "config.json").read_text(encoding="utf-8")))


def _request(source: Path, output: Path, *types: str, threads: int = 2) -> dict[str, Any]:
    items = []
    for type in types:
        (output / type).mkdir(parents=True)
        item = {"item": type, "variant": _variant(type).model_dump(), "output": str(output / type)}
        items.append(item | ({"activations": str(output)} if "-" in type else {}))
    return {
        "verb": "build",
        "source": str(source),
        "architecture": _architecture(source).to_json(),
        "model": MODEL_NAME,
        "threads": threads,
        "items": items,
    }


def _write_activations(folder: Path, checkpoint: Path) -> None:
    """Write the fixed importance matrix of a checkpoint as the activations step writes its own."""
    sums = squared_inputs(checkpoint)
    entries = [(name, "F32", values.shape) for name, values in sums.items()]
    with SafetensorsWriter(folder, entries, metadata={}) as writer:
        for name, values in sums.items():
            writer.write(name, values.tobytes())
    (folder / "model.safetensors").rename(folder / "activations.safetensors")
    meta = {"tokens": IMATRIX_TOKENS, "chunks": IMATRIX_CHUNKS}
    (folder / "meta.json").write_text(json.dumps(meta), encoding="utf-8")


def _of_file(request: dict[str, Any], path: Path) -> dict[str, Any]:
    """Return a request whose importance matrices come from a file."""
    for item in request["items"]:
        if item.pop("activations", None):
            given = {"imatrix": _sha256(path), "imatrix_file": path.name}
            item["variant"]["options"] |= given
            item["file"] = str(path)
    return request


def _results(events: Events) -> dict[str, dict[str, Any]]:
    assert not [event for event in events if event["event"] == "failed"]
    return {event["item"]: event["result"] for event in events if event["event"] == "item"}


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _tokenize(python: Path, artifact: Path, texts: list[str]) -> list[list[int]]:
    """Return the ids that llama.cpp gives each text."""
    done = subprocess.run(
        [python, "-c", TOKENIZE, artifact],
        input=json.dumps(texts),
        env={"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=True,
    )
    ids: list[list[int]] = json.loads(done.stdout)
    return ids


@pytest.fixture(params=CASES, ids=lambda case: case.name)
def case(request: pytest.FixtureRequest) -> Case:
    found = request.param
    assert isinstance(found, Case)
    return found


def test_tensors_and_metadata_equal_the_vendors(
    case: Case, checkpoint: MakeCheckpoint, run_worker: RunWorker, tmp_path: Path
) -> None:
    source = checkpoint(case.shape, dtype=case.dtype, layers=case.layers)
    recorded = RECORDED[case.name]
    assert folder_digest(source) == recorded["checkpoint"], (
        "the test checkpoint has changed: run tests/vendors/record_llamacpp.py"
    )
    results = _results(run_worker("llamacpp", _request(source, tmp_path, *case.types)))
    arch = _architecture(source)
    for type in case.types:
        made = describe(tmp_path / type / f"model-{type}.gguf")
        assert made["tensors"] == recorded["tensors"][type], type
        assert made["metadata"].pop("general.file_type") == recorded["file_type"][type]
        theirs = recorded["metadata"]
        differing = {
            key
            for key in {*made["metadata"], *theirs}
            if made["metadata"].get(key) != theirs.get(key)
        }
        assert differing <= ALLOWED
        promised: dict[str, int] = {}
        for tensor in SPEC.layout(arch, _variant(type)):
            promised[tensor.kind] = promised.get(tensor.kind, 0) + tensor.parameters
        assert results[type]["types"] == promised


@compiles_searches
def test_compiled_searches_equal_ggmls(toolchain_python: Callable[[str], Path]) -> None:
    """Zeros, ties, equal weights, what is out of range: random checkpoints hardly have them."""
    done = subprocess.run(
        [toolchain_python("llamacpp"), KERNELS], capture_output=True, text=True, check=True
    )
    assert done.stdout + done.stderr == ""


@compiles_searches
def test_without_a_compiler_the_same_file_is_made(
    checkpoint: MakeCheckpoint,
    facts: MakeFacts,
    toolchain_python: Callable[[str], Path],
    tmp_path: Path,
) -> None:
    case = next(case for case in CASES if case.shape == "phi3" and case.imatrix_types)
    source = checkpoint(case.shape, dtype=case.dtype, layers=case.layers)
    done = subprocess.run(
        [toolchain_python("llamacpp"), "-c", COMPILED],
        input=json.dumps(_request(source, tmp_path, "Q4_K_M") | {"facts": str(facts(source))}),
        env={"PYTHONPATH": str(ROOT), "NUMBA_DISABLE_JIT": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert "ggml's own K-quant searches are used: NUMBA_DISABLE_JIT" in done.stderr
    made = describe(tmp_path / "Q4_K_M" / "model-Q4_K_M.gguf")
    assert made["tensors"] == RECORDED[case.name]["tensors"]["Q4_K_M"]


@compiles_searches
@pytest.mark.parametrize("shape", some(["phi3", "phi4mini", "phi4"], ["phi3"]))
def test_files_made_by_compiled_searches_equal_the_vendors(
    shape: str,
    checkpoint: MakeCheckpoint,
    facts: MakeFacts,
    toolchain_python: Callable[[str], Path],
    tmp_path: Path,
) -> None:
    case = next(case for case in CASES if case.shape == shape and case.imatrix_types)
    source = checkpoint(case.shape, dtype=case.dtype, layers=case.layers)
    _write_activations(tmp_path, source)
    names = [*case.types, *(f"{type}-imatrix" for type in case.imatrix_types)]
    done = subprocess.run(
        [toolchain_python("llamacpp"), "-c", COMPILED],
        input=json.dumps(_request(source, tmp_path, *names) | {"facts": str(facts(source))}),
        env={"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=True,
    )
    events = [json.loads(line) for line in done.stdout.splitlines()]
    assert {"compiling the searches"} < {event.get("stage") for event in events}
    assert set(_results(events)) == set(names)
    for name in names:
        made = describe(tmp_path / name / f"model-{name}.gguf")
        assert made["tensors"] == RECORDED[case.name]["tensors"][name], name


@pytest.mark.parametrize("case", WITH_MATRIX, ids=lambda c: c.name)
def test_tensors_with_an_importance_matrix_equal_the_vendors(
    case: Case, checkpoint: MakeCheckpoint, run_worker: RunWorker, tmp_path: Path
) -> None:
    source = checkpoint(case.shape, dtype=case.dtype, layers=case.layers)
    recorded = RECORDED[case.name]
    _write_activations(tmp_path, source)
    names = [f"{type}-imatrix" for type in case.imatrix_types]
    if case.shape == "phi3":
        names += case.imatrix_types  # made in the same pass, they share what is alike
    results = _results(run_worker("llamacpp", _request(source, tmp_path, *names)))
    arch = _architecture(source)
    for name in names:
        made = describe(tmp_path / name / f"model-{name}.gguf")
        assert made["tensors"] == recorded["tensors"][name], name
        told = {key: value for key, value in made["metadata"].items() if "imatrix" in key}
        counts = {key: value for key, value in recorded["imatrix"].get(name, {}).items()
                  if key.endswith("_count")}  # fmt: skip
        assert told == counts
        promised: dict[str, int] = {}
        for tensor in SPEC.layout(arch, _variant(name)):
            promised[tensor.kind] = promised.get(tensor.kind, 0) + tensor.parameters
        assert results[name]["types"] == promised


@pytest.mark.parametrize("case", WITH_MATRIX, ids=lambda c: c.name)
def test_a_file_of_an_importance_matrix_is_read_as_the_vendor_reads_it(
    case: Case, checkpoint: MakeCheckpoint, run_worker: RunWorker, tmp_path: Path
) -> None:
    """The recorded llama-quantize had a file of the same bytes."""
    source = checkpoint(case.shape, dtype=case.dtype, layers=case.layers)
    matrix = tmp_path / IMATRIX_FILE
    matrix.write_bytes(encode_matrix(fixed_matrix(source)))
    # What a type makes of a matrix is the same wherever it comes from: see the test above.
    names = [f"{type}-imatrix" for type in case.imatrix_types[:2]]
    _results(run_worker("llamacpp", _of_file(_request(source, tmp_path, *names), matrix)))
    for name in names:
        made = describe(tmp_path / name / f"model-{name}.gguf")
        assert made["tensors"] == RECORDED[case.name]["tensors"][name], name
        told = {key: value for key, value in made["metadata"].items() if "imatrix" in key}
        assert told == RECORDED[case.name]["imatrix"][name]


def test_a_file_that_was_changed_since_the_plan_fails_its_variant_alone(
    checkpoint: MakeCheckpoint, run_worker: RunWorker, tmp_path: Path
) -> None:
    source, matrix = checkpoint("phi3"), tmp_path / IMATRIX_FILE
    matrix.write_bytes(encode_matrix(fixed_matrix(source)))
    request = _of_file(_request(source, tmp_path, "Q4_0-imatrix", "Q4_0"), matrix)
    matrix.write_bytes(encode_matrix(fixed_matrix(checkpoint("phi4mini"))))
    events = run_worker("llamacpp", request)
    failed = {event["item"]: event["error"] for event in events if event["event"] == "failed"}
    why = "it was changed since the build began; build again"
    assert failed == {"Q4_0-imatrix": f"the importance matrix {IMATRIX_FILE}: {why}"}
    assert (tmp_path / "Q4_0" / "model-Q4_0.gguf").exists()


def test_activations_that_do_not_suit_fail_their_variant_alone(
    checkpoint: MakeCheckpoint, run_worker: RunWorker, tmp_path: Path
) -> None:
    source = checkpoint("phi3")
    _write_activations(tmp_path, checkpoint("phi4mini"))
    events = run_worker("llamacpp", _request(source, tmp_path, "Q4_0-imatrix", "Q4_0"))
    failed = {event["item"]: event["error"] for event in events if event["event"] == "failed"}
    assert failed == {
        "Q4_0-imatrix": "the importance matrix is of another model: "
        "it has 384 columns for blk.0.attn_output.weight, not 256"
    }
    assert (tmp_path / "Q4_0" / "model-Q4_0.gguf").exists()


@pytest.mark.parametrize("case_name", ["phi3-bf16", "phi4mini-bf16", "phi4-bf16"])
def test_text_gets_the_ids_of_the_checkpoints_own_tokenizer(
    case_name: str,
    checkpoint: MakeCheckpoint,
    run_worker: RunWorker,
    toolchain_python: Callable[[str], Path],
    tmp_path: Path,
) -> None:
    case = next(case for case in CASES if case.name == case_name)
    source = checkpoint(case.shape, dtype=case.dtype, layers=case.layers)
    run_worker("llamacpp", _request(source, tmp_path, "Q8_0"))
    ids = _tokenize(toolchain_python("llamacpp"), tmp_path / "Q8_0", text_lines())
    assert len(ids) > 200
    assert digest(ids) == RECORDED[case_name]["token_ids"]


def test_shards_threads_and_folders_do_not_change_the_bytes(
    checkpoint: MakeCheckpoint, run_worker: RunWorker, tmp_path: Path
) -> None:
    types = ("Q4_K_M", "F16")
    whole = checkpoint("phi4mini")
    run_worker("llamacpp", _request(whole, tmp_path / "a", *types, threads=1))
    sharded = checkpoint("phi4mini", shards=3)
    run_worker("llamacpp", _request(sharded, tmp_path / "b", *types, threads=4))
    run_worker("llamacpp", _request(whole, tmp_path / "c", "Q4_K_M"))
    for type in types:
        name = f"{type}/model-{type}.gguf"
        assert _sha256(tmp_path / "a" / name) == _sha256(tmp_path / "b" / name)
    alone = tmp_path / "c" / "Q4_K_M" / "model-Q4_K_M.gguf"
    assert _sha256(alone) == _sha256(tmp_path / "a" / "Q4_K_M" / "model-Q4_K_M.gguf")


def test_a_value_that_half_precision_cannot_hold_fails_that_type_alone(
    checkpoint: MakeCheckpoint, run_worker: RunWorker, tmp_path: Path
) -> None:
    source = tmp_path / "source"
    source.mkdir()
    for path in checkpoint("phi3").iterdir():
        (source / path.name).write_bytes(path.read_bytes())
    tensor = read_checkpoint(source)["model.layers.1.mlp.down_proj.weight"]
    assert tensor.dtype == "BF16"
    with tensor.path.open("r+b") as file:
        file.seek(tensor.offset)
        file.write((np.array([131072.0], np.float32).view(np.uint32) >> 16).astype("<u2").tobytes())
    events = run_worker("llamacpp", _request(source, tmp_path / "out", "F16", "F32", "Q8_0"))
    failed = {event["item"]: event["error"] for event in events if event["event"] == "failed"}
    assert set(failed) == {"F16"}
    assert "model.layers.1.mlp.down_proj.weight cannot be stored as F16" in failed["F16"]
    assert "1.311e+05" in failed["F16"]
    assert not list((tmp_path / "out" / "F16").iterdir())


def test_tokenizer_without_tokenizer_model_is_the_same(
    checkpoint: MakeCheckpoint, run_worker: RunWorker, tmp_path: Path
) -> None:
    """Transformers 5 saves a sentencepiece tokenizer as tokenizer.json alone."""
    source = tmp_path / "source"
    source.mkdir()
    for path in checkpoint("phi3").iterdir():
        if path.name != "tokenizer.model":
            (source / path.name).symlink_to(path)
    run_worker("llamacpp", _request(source, tmp_path / "out", "Q4_0"))
    metadata = describe(tmp_path / "out" / "Q4_0" / "model-Q4_0.gguf")["metadata"]
    for key in ("model", "tokens", "token_type", "scores"):
        key = f"tokenizer.ggml.{key}"
        assert metadata[key] == RECORDED["phi3-bf16"]["metadata"][key]


@pytest.mark.parametrize("strips", [True, False])
def test_white_space_after_special_tokens_is_kept_or_not_as_the_tokenizer_says(
    strips: bool,
    checkpoint: MakeCheckpoint,
    run_worker: RunWorker,
    toolchain_python: Callable[[str], Path],
    tmp_path: Path,
) -> None:
    """Published Phi-3 tokenizers strip it; llama.cpp goes by the name in the file."""
    source = tmp_path / "source"
    source.mkdir()
    for path in checkpoint("phi3").iterdir():
        if path.name != "tokenizer.json":
            (source / path.name).symlink_to(path)
    tokenizer = json.loads((checkpoint("phi3") / "tokenizer.json").read_text(encoding="utf-8"))
    for token in tokenizer["added_tokens"]:
        token["rstrip"] = strips and token["content"] not in ("<unk>", "<s>", "<|endoftext|>")
    (source / "tokenizer.json").write_text(json.dumps(tokenizer), encoding="utf-8")
    run_worker("llamacpp", _request(source, tmp_path, "Q8_0") | {"model": "phi-3-tuned"})
    spaced, close = _tokenize(
        toolchain_python("llamacpp"), tmp_path / "Q8_0", ["<|user|>\n\nhello", "<|user|>hello"]
    )
    assert (spaced == close) is strips


def test_every_file_type_is_known_to_the_recording() -> None:
    recorded = {type for case in RECORDED.values() for type in case["tensors"]}
    assert recorded == {*FILE_TYPES, *(f"{type}-imatrix" for type in IMATRIX_TYPES)}
