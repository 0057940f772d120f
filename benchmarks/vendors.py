"""The vendors' own commands for the artifacts that phibuild makes, as a user would type them.

Those of ort_genai, mlx and pytorch run in phibuild's locked toolchains, so that versions are the
same; optimum-intel, litert-torch, ExecuTorch's exporter and Apple's have environments of their own
(tests/vendors). llama.cpp's converter and llama-quantize come from the source distribution that
tests/vendors/record_llamacpp.py unpacks and compiles.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "tests" / "vendors")]

from phibuild.toolchains.environment import Toolchain, toolchain  # noqa: E402
from record_llamacpp import compile_quantizer, unpack  # noqa: E402

OFFLINE = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "TQDM_DISABLE": "1"}
GGUF_TYPES = {"int4": "Q4_K_M", "int8": "Q8_0", "fp16": "F16", "fp32": "F32"}

Words = list[str | Path]


@dataclass(frozen=True)
class Command:
    """Words of a command, and what it reads from standard input."""

    words: Words
    stdin: str = ""


@dataclass(frozen=True)
class Vendor:
    """`commands`(source, precision, output folder, work folder) are run one after the other;
    `label` is what they are called."""

    label: str
    commands: Callable[[Path, str, Path, Path], list[Command]]


def _llamacpp(source: Path, precision: str, output: Path, work: Path) -> list[Command]:
    tree = unpack(work)
    python = _python("pytorch")
    output.mkdir(parents=True)
    convert: Words = [python, tree / "convert_hf_to_gguf.py", source, "--outfile"]
    type = GGUF_TYPES[precision]
    if precision in ("fp16", "fp32"):
        return [Command([*convert, output / "model.gguf", "--outtype", type.lower()])]
    exact = output / "exact.gguf"
    return [
        Command([*convert, exact, "--outtype", "bf16"]),
        Command([compile_quantizer(tree, work), exact, output / "model.gguf", type, "2"]),
    ]


def _ort_genai(source: Path, precision: str, output: Path, work: Path) -> list[Command]:
    provider = "webgpu" if precision == "fp16" else "cpu"
    words: Words = [_python("ort_genai"), "-m", "onnxruntime_genai.models.builder", "-m", ""]
    words += ["-i", source, "-o", output, "-p", precision, "-e", provider, "-c", work / "cache"]
    return [Command([*words, "--extra_options", "hf_token=false"])]


def _openvino(source: Path, precision: str, output: Path, work: Path) -> list[Command]:
    environment = Toolchain("vendor-openvino", ROOT / "tests" / "vendors" / "openvino.txt")
    environment.install()
    program = environment.python.with_name("optimum-cli")
    words: Words = [program, "export", "openvino", "--model", source]
    words += ["--task", "text-generation-with-past", "--weight-format", precision]
    if precision == "int4":
        words += ["--group-size", "64", "--ratio", "1.0"]
    return [Command([*words, output])]


def _mlx(source: Path, precision: str, output: Path, work: Path) -> list[Command]:
    words: Words = [
        _python("mlx"),
        "-m",
        "mlx_lm",
        "convert",
        "--hf-path",
        source,
        "--mlx-path",
        output,
    ]
    more = {
        "int4": ["-q", "--q-bits", "4", "--q-group-size", "64"],
        "int8": ["-q", "--q-bits", "8", "--q-group-size", "64"],
        "fp16": ["--dtype", "float16"],
        "fp32": ["--dtype", "float32"],
    }
    return [Command([*words, *more[precision]])]


def _litert(source: Path, precision: str, output: Path, work: Path) -> list[Command]:
    environment = Toolchain("vendor-litert_torch", ROOT / "tests" / "vendors" / "litert_torch.txt")
    environment.install()
    program = ROOT / "tests" / "vendors" / "litert_export.py"
    return [Command([environment.python, program, source, precision, output, "2048"])]


def _executorch(source: Path, precision: str, output: Path, work: Path) -> list[Command]:
    environment = Toolchain("vendor-executorch", ROOT / "tests" / "vendors" / "executorch.txt")
    environment.install()
    program = ROOT / "tests" / "vendors" / "executorch_export.py"
    return [Command([environment.python, program, source, precision, output, "2048"])]


def _coreai(source: Path, precision: str, output: Path, work: Path) -> list[Command]:
    environment = Toolchain("vendor-coreai", ROOT / "tests" / "vendors" / "coreai.txt")
    environment.install()
    program = ROOT / "tests" / "vendors" / "coreai_export.py"
    return [Command([environment.python, program, source, precision, output, "128"])]


def _pytorch(source: Path, precision: str, output: Path, work: Path) -> list[Command]:
    choice = {
        "int4": {"dtype": "auto", "preset": "W4A16"},
        "int8": {"dtype": "auto", "preset": "W8A16"},
        "fp16": {"dtype": "float16"},
        "fp32": {"dtype": "float32"},
    }[precision]
    program = ROOT / "tests" / "vendors" / "compressed_tensors_export.py"
    stdin = json.dumps([[str(source), str(output), choice]])
    return [Command([_python("pytorch"), program], stdin)]


def _python(name: str) -> Path:
    tools = toolchain(name)
    tools.install()
    return tools.python


VENDORS: dict[str, Vendor] = {
    "llamacpp": Vendor("convert_hf_to_gguf.py, llama-quantize", _llamacpp),
    "ort_genai": Vendor("onnxruntime_genai.models.builder", _ort_genai),
    "openvino": Vendor("optimum-cli export openvino", _openvino),
    "mlx": Vendor("mlx_lm.convert", _mlx),
    "litert": Vendor("litert-torch, ai-edge-quantizer", _litert),
    "executorch": Vendor("executorch.extension.llm.export", _executorch),
    "coreai": Vendor("coreai-torch, coreai-opt", _coreai),
    "pytorch": Vendor("Transformers, compressed-tensors", _pytorch),
}
