"""Core AI models hold what Apple's own tool makes, and run in fp16 as they do in float32."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from itertools import product
from pathlib import Path

import pytest

from support.kinds import some
from support.told import told
from support.written_build import RunWorker, build

pytestmark = pytest.mark.slow

SUPPORT = Path(__file__).resolve().parents[1] / "support"
SHAPES = ["phi3", "phi4mini", "phi4"]


@pytest.mark.parametrize("shape", some(SHAPES, ["phi4mini"]))
def test_weights_are_those_of_apples_quantization(
    shape: str,
    checkpoint: Callable[..., Path],
    run_worker: RunWorker,
    vendor_python: Callable[[str], Path],
    tmp_path: Path,
) -> None:
    source = checkpoint(shape, dtype="fp32" if shape == "phi3" else "bf16", layers=2)
    names = ["int4-b32", "int4-b64", "int8", "fp32"]
    events = build("coreai", source, tmp_path, names, run_worker)
    assert [event["item"] for event in events if event["event"] == "item"] == names
    script = str(SUPPORT / "coreai_vendor.py")
    compared = told([str(vendor_python("coreai")), script, str(tmp_path)])
    assert set(compared) == set(names) - {"fp32"}
    for name, result in compared.items():
        assert result["weights"] == 2 * 6 + (shape != "phi4mini"), name
        assert not result["differ"], name


@pytest.mark.parametrize(
    ("name", "shape"),
    some(
        product(("int4-b32", "fp16"), SHAPES),
        [("int4-b32", "phi3"), ("fp16", "phi4mini"), ("fp16", "phi4")],
    ),
)
def test_fp16_computes_what_float32_does(
    name: str,
    shape: str,
    checkpoint: Callable[..., Path],
    run_worker: RunWorker,
    toolchain_python: Callable[[str], Path],
    tmp_path: Path,
) -> None:
    """The artifact as it is, of which the judge sees the float32 form: a prompt, and a token."""
    build("coreai", checkpoint(shape, layers=1), tmp_path, [name], run_worker)
    python, script = str(toolchain_python("coreai")), str(SUPPORT / "coreai_native.py")
    assert told([python, script, str(tmp_path / name)]) < 1e-3


def test_a_bundle_is_what_apples_runner_reads(
    checkpoint: Callable[..., Path], run_worker: RunWorker, tmp_path: Path
) -> None:
    """The keys of coreai-models' LanguageBundle and LanguageConfig; the stops are the source's."""
    source = checkpoint("phi3", layers=1)
    build("coreai", source, tmp_path, ["fp16"], run_worker)
    folder = tmp_path / "fp16"
    metadata = json.loads((folder / "metadata.json").read_text())
    assert metadata["metadata_version"] == "0.2"
    assert metadata["kind"] == "llm"
    assert (folder / metadata["assets"]["main"]).is_dir()
    language = metadata["language"]
    config = json.loads((source / "config.json").read_text())
    assert language["vocab_size"] == config["vocab_size"]
    assert language["max_context_length"] == 4096
    assert language["embedded_tokenizer"]
    program = (folder / "model.aimodel" / "main.mlirb").read_bytes()
    assert (folder / "model.aimodel" / "main.hash").read_bytes() == hashlib.sha256(program).digest()
    tokenizer = json.loads((folder / "tokenizer" / "tokenizer.json").read_text())
    ids = {token["content"]: token["id"] for token in tokenizer["added_tokens"]}
    own = json.loads((folder / "tokenizer" / "tokenizer_config.json").read_text())
    eos = own["eos_token"]
    texts = [eos["content"] if isinstance(eos, dict) else eos, *own["additional_special_tokens"]]
    stops = json.loads((source / "generation_config.json").read_text())["eos_token_id"]
    assert sorted(ids[text] for text in texts) == sorted(
        stops if isinstance(stops, list) else [stops]
    )
