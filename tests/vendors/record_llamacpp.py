"""Record what llama.cpp's own converter and quantizer make of the test checkpoints.

    python tests/vendors/record_llamacpp.py WORK_FOLDER

Writes tests/data/llamacpp_vendor.json, which tests/slow/test_llamacpp_vendor.py compares phibuild's
files with. It takes about ten minutes of CPU time, most of it compiling llama-quantize, and needs
cmake, a C++ compiler, and an interpreter with pip, torch, transformers, sentencepiece and pyyaml.
WORK_FOLDER keeps the sources and the program, so that a second run takes a minute.

llama.cpp comes from the source distribution of llama-cpp-python, which holds the whole tree. Its
converter is run as it is, but for `get_vocab_base_pre`: that recognizes a BPE pre-tokenizer by a
hash over token ids, which no vocabulary but the published ones can have.

The importance matrix is a file of fixed values (`fixed_matrix`), as phibuild writes them.

A bf16 checkpoint goes through a bf16 GGUF, others through an f32 one: both hold the weights
exactly. F16 and F32 files are the converter's own.
"""

from __future__ import annotations

import argparse
import importlib
import json
import logging
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any
from unittest import mock

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from phibuild.backends.llamacpp.matrix import encode_matrix
from support.checkpoints import make_checkpoint
from support.llamacpp_recording import (
    CASES,
    IMATRIX_FILE,
    MODEL_NAME,
    RECORDING,
    Case,
    describe,
    digest,
    fixed_matrix,
    folder_digest,
    text_lines,
)

PACKAGE, VERSION = "llama-cpp-python", "0.3.36"
IMATRIX_KEYS = [
    f"quantize.imatrix.{key}" for key in ("file", "dataset", "entries_count", "chunks_count")
]
PRETOKENIZERS = {"phi4mini": "gpt-4o", "phi4": "dbrx"}


def unpack(work: Path) -> Path:
    """Return llama.cpp's source tree, downloaded and unpacked below `work`."""
    stem = f"llama_cpp_python-{VERSION}"
    if not (work / stem).exists():
        command = [sys.executable, "-m", "pip", "download", "--no-deps", "--no-binary", PACKAGE]
        subprocess.run([*command, f"{PACKAGE}=={VERSION}", "--dest", str(work)], check=True)
        with tarfile.open(work / f"{stem}.tar.gz") as archive:
            archive.extractall(work, filter="data")
    return work / stem / "vendor" / "llama.cpp"


def compile_quantizer(source: Path, work: Path) -> Path:
    """Return llama-quantize, compiled for any CPU of this kind."""
    return compile_programs(source, work, "llama-quantize") / "llama-quantize"


def compile_programs(source: Path, work: Path, *programs: str, native: bool = False) -> Path:
    """Return the folder of llama.cpp's programs, compiled for any CPU of this kind or, `native`,
    for this one."""
    build = work / ("build-native" if native else "build")
    if not all((build / "bin" / program).exists() for program in programs):
        switches = ("LLAMA_CURL", "BUILD_SHARED_LIBS", "LLAMA_BUILD_TESTS", "LLAMA_BUILD_SERVER",
                    "LLAMA_BUILD_EXAMPLES")  # fmt: skip
        options = ["-DCMAKE_BUILD_TYPE=Release", *(f"-D{switch}=OFF" for switch in switches)]
        options.append(f"-DGGML_NATIVE={'ON' if native else 'OFF'}")
        configure = ["cmake", "-S", str(source), "-B", str(build), *options]
        subprocess.run(configure, check=True)
        compile = ["cmake", "--build", str(build), "--parallel", "2", "--target", *programs]
        subprocess.run(compile, check=True)
    return build / "bin"


def convert(source: Path, checkpoint: Path, output: Path, outtype: str, pre: str | None) -> None:
    """Run the converter in this process, with the name of the pre-tokenizer given to it."""
    for path in (source / "gguf-py", source):
        if str(path) not in sys.path:
            sys.path.insert(0, str(path))
    converter: Any = importlib.import_module("convert_hf_to_gguf")
    base: Any = importlib.import_module("conversion.base")
    arguments = ["convert_hf_to_gguf.py", str(checkpoint), "--outfile", str(output)]
    arguments += ["--outtype", outtype, "--model-name", MODEL_NAME]
    with (
        mock.patch.object(sys, "argv", arguments),
        mock.patch.object(base.TextModel, "get_vocab_base_pre", return_value=pre),
    ):
        converter.main()
    logging.getLogger().setLevel(logging.WARNING)


def record(case: Case, source: Path, quantizer: Path, work: Path) -> dict[str, Any]:
    """Return the description of every file type of one checkpoint."""
    checkpoint = work / "checkpoints" / case.name
    if not checkpoint.exists():
        make_checkpoint(checkpoint, case.shape, dtype=case.dtype, layers=case.layers)  # type: ignore[arg-type]
    pre = PRETOKENIZERS.get(case.shape)
    exact = work / f"{case.name}-exact.gguf"
    convert(source, checkpoint, exact, "bf16" if case.dtype == "bf16" else "f32", pre)
    files = {}
    for type in case.types:
        made = work / f"{case.name}-{type}.gguf"
        if type in ("F16", "F32"):
            convert(source, checkpoint, made, type.lower(), pre)
        else:
            subprocess.run([quantizer, exact, made, type, "2"], check=True, capture_output=True)
        files[type] = describe(made)
        made.unlink()
    for type in case.imatrix_types:
        made = work / f"{case.name}-{type}-imatrix.gguf"
        (work / IMATRIX_FILE).write_bytes(encode_matrix(fixed_matrix(checkpoint)))
        command = [str(quantizer), "--imatrix", IMATRIX_FILE, str(exact), str(made), type, "2"]
        subprocess.run(command, check=True, capture_output=True, cwd=work)
        files[f"{type}-imatrix"] = describe(made)
        made.unlink()
    exact.unlink()
    return {
        "checkpoint": folder_digest(checkpoint),
        "metadata": _common([file["metadata"] for file in files.values()]),
        "file_type": {type: file["metadata"]["general.file_type"] for type, file in files.items()},
        "imatrix": {
            type: {key: file["metadata"][key] for key in IMATRIX_KEYS}
            for type, file in files.items()
            if type.endswith("-imatrix")
        },
        "tensors": {type: file["tensors"] for type, file in files.items()},
        "token_ids": _token_ids(checkpoint),
    }


def _common(metadata: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the metadata without the file type and what an importance matrix adds, after seeing
    that it is the same in all files."""
    stripped = [
        {
            key: value
            for key, value in one.items()
            if key != "general.file_type" and not key.startswith("quantize.imatrix.")
        }
        for one in metadata
    ]
    if any(one != stripped[0] for one in stripped):
        raise SystemExit("llama.cpp's metadata depends on the file type; record it per file")
    return stripped[0]


def _token_ids(checkpoint: Path) -> str:
    """Return the digest of the ids that the checkpoint's own tokenizer gives the test's lines."""
    tokenizers: Any = importlib.import_module("tokenizers")
    tokenizer = tokenizers.Tokenizer.from_file(str(checkpoint / "tokenizer.json"))
    return digest([tokenizer.encode(line).ids for line in text_lines()])


def main() -> None:
    """Record all cases."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("work", type=Path)
    work: Path = parser.parse_args().work.resolve()
    work.mkdir(parents=True, exist_ok=True)
    source = unpack(work)
    quantizer = compile_quantizer(source, work)
    recording = {
        "vendor": f"llama.cpp in {PACKAGE} {VERSION}",
        "cases": {case.name: record(case, source, quantizer, work) for case in CASES},
    }
    text = json.dumps(recording, separators=(",", ":"), sort_keys=True)
    # a line per tensor: a change shows as what it is
    RECORDING.write_text(text.replace('],"', '],\n"') + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
