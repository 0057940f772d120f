"""int4 formats that phibuild and vendors calibrate: phibuild's options, the vendors' commands.

Each vendor has a locked environment: nncf that of optimum-intel (tests/vendors/openvino.txt),
llm-compressor its own (tests/vendors/llmcompressor.txt). llama-imatrix and llama-quantize are
compiled, for this machine's CPU, from the source distribution that tests/vendors/record_llamacpp.py
unpacks. All have their own defaults but for the grid and the tokens.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from phibuild.backends.calibration import CHUNK_TOKENS, TOKENS
from phibuild.config.catalogue import DATA
from phibuild.toolchains.environment import Toolchain, toolchain
from vendors import ROOT, Command, Words

sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "tests" / "vendors")]

from record_llamacpp import PACKAGE, VERSION, compile_programs, unpack  # noqa: E402

TEXT = DATA / "phi3-tiny-trained" / "calibration.txt"
_HERE = Path(__file__).resolve().parent
_PROGRAMS = ("llama-imatrix", "llama-quantize")
_CHUNKS = """
import sys
from pathlib import Path
import numpy as np
from phibuild.backends.pytorch.windows import read_text
source, text, output, count, length = sys.argv[1:]
tokens = read_text(Path(source), Path(text), 1 << 31, "calibration")
np.save(output, tokens.windows(int(count), int(length)))
"""

Commands = Callable[[Path, Path, Path], list[Command]]
"""(source, empty output folder, work folder) -> what is run, one after the other."""


@dataclass(frozen=True)
class Format:
    """A variant of a backend, as phibuild makes it with `options`, plain and with each of its own
    `methods`, and as vendors make it; `more` of theirs for what they lose alone. `weights` matches
    the file that holds them."""

    backend: str
    weights: str
    vendors: Mapping[str, Commands]
    more: Mapping[str, Commands] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)
    methods: Mapping[str, Mapping[str, Any]] = field(
        default_factory=lambda: {"gptq": {"method": "gptq"}}
    )


def save_chunks(source: Path, work: Path, length: int) -> Path:
    """Return the file of the ids that phibuild's calibrations of this checkpoint see, or of as many
    in chunks of another length."""
    tools, output = toolchain("pytorch"), work / "tokens.npy"
    tools.install()
    words: Words = [tools.python, "-c", _CHUNKS, source, TEXT, output]
    words += [str(TOKENS // length), str(length)]
    subprocess.run(words, env={**os.environ, "PYTHONPATH": str(ROOT)}, check=True)
    return output


def _vendor(name: str) -> Toolchain:
    return Toolchain(f"vendor-{name}", ROOT / "tests" / "vendors" / f"{name}.txt")


def _script(environment: str, program: str, *methods: str, length: int = CHUNK_TOKENS) -> Commands:
    def commands(source: Path, output: Path, work: Path) -> list[Command]:
        tools = _vendor(environment)
        tools.install()
        words: Words = [tools.python, "-P", _HERE / program, source]
        return [Command([*words, save_chunks(source, work, length), output, *methods])]

    return commands


def _llamacpp(type: str) -> Commands:
    def commands(source: Path, output: Path, work: Path) -> list[Command]:
        tree, python = unpack(work), toolchain("pytorch").python
        programs = compile_programs(tree, work, *_PROGRAMS, native=True)
        exact, matrix = work / "exact.gguf", work / "imatrix.gguf"
        convert: Words = [python, tree / "convert_hf_to_gguf.py", source, "--outfile", exact]
        count = str(TOKENS // CHUNK_TOKENS)
        calibrate: Words = [programs / "llama-imatrix", "-m", exact, "-f", TEXT, "-o", matrix]
        calibrate += ["-c", str(CHUNK_TOKENS), "--chunks", count, "-t", "2"]
        quantize: Words = [programs / "llama-quantize", "--imatrix", matrix, exact]
        return [
            Command([*convert, "--outtype", "bf16"]),
            Command(calibrate),
            Command([*quantize, output / "model.gguf", type, "2"]),
        ]

    return commands


_NNCF, _LLM = "calibrated_nncf.py", "calibrated_llmcompressor.py"
_NNCF_METHODS = {
    "scale estimation": ("scale_estimation",),
    "GPTQ": ("gptq",),
    "both": ("scale_estimation", "gptq"),
}
FORMATS = {
    "int4-asym-g64": Format(
        "openvino",
        "openvino_model.bin",
        {
            f"nncf, {name}": _script("openvino", _NNCF, *methods)
            for name, methods in _NNCF_METHODS.items()
        },
        {
            f"nncf, {name}, chunks of 128": _script("openvino", _NNCF, *methods, length=128)
            for name, methods in _NNCF_METHODS.items()
        },
    ),
    "w4a16-g128": Format(
        "pytorch", "*.safetensors", {"llm-compressor, GPTQ": _script("llmcompressor", _LLM)}
    ),
    "Q4_0": Format(
        "llamacpp",
        "*.gguf",
        {"llama.cpp, imatrix": _llamacpp("Q4_0")},
        options={"type": "Q4_0"},
        methods={"gptq": {"method": "gptq"}, "imatrix": {"imatrix": "embedded"}},
    ),
    "Q4_K_M": Format(
        "llamacpp",
        "*.gguf",
        {"llama.cpp, imatrix": _llamacpp("Q4_K_M")},
        options={"type": "Q4_K_M"},
        methods={"imatrix": {"imatrix": "embedded"}},
    ),
}


def versions() -> str:
    """Return the vendors' versions, for people."""
    openvino, pytorch = _vendor("openvino").versions(), _vendor("llmcompressor").versions()
    return (
        f"nncf {openvino['nncf']} with optimum-intel {openvino['optimum-intel']}, "
        f"llm-compressor {pytorch['llmcompressor']}, "
        f"llama.cpp as in {PACKAGE} {VERSION}"
    )
