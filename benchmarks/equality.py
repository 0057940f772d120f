"""Whether two artifacts of one format hold the same weights, compared byte for byte from disk.

Safetensors and GGUF: tensor by tensor, by name, type and shape. ONNX: the graph's file and the
data file. OpenVINO, LiteRT, ExecuTorch, Core AI: graph or constants, by the tests' own comparison,
in the toolchain.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "tests")]

from phibuild.toolchains.environment import toolchain  # noqa: E402
from phibuild.worker.safetensors import TensorInfo, read_checkpoint  # noqa: E402
from support.llamacpp_recording import describe  # noqa: E402

_BLOCK = 64 << 20


def same_bytes(ours: Path, theirs: Path, first: int = 0, other: int = 0, count: int = -1) -> bool:
    """Return whether `count` bytes of two files agree, from `first` and `other` on (-1: all)."""
    if count < 0:
        count = ours.stat().st_size
        if count != theirs.stat().st_size:
            return False
    with ours.open("rb") as a, theirs.open("rb") as b:
        a.seek(first)
        b.seek(other)
        while count:
            size = min(count, _BLOCK)
            if a.read(size) != b.read(size):
                return False
            count -= size
    return True


def _safetensors(ours: Path, theirs: Path) -> list[str]:
    mine, vendors = read_checkpoint(ours), read_checkpoint(theirs)

    def same(a: TensorInfo, b: TensorInfo) -> bool:
        return (a.dtype, a.shape) == (b.dtype, b.shape) and same_bytes(
            a.path, b.path, a.offset, b.offset, a.nbytes
        )

    return _differing(mine, vendors, lambda name: same(mine[name], vendors[name]))


def _gguf(ours: Path, theirs: Path) -> list[str]:
    mine, vendors = (
        describe(next(folder.glob("model*.gguf")))["tensors"] for folder in (ours, theirs)
    )
    return _differing(mine, vendors, lambda name: bool(mine[name] == vendors[name]))


def _onnx(ours: Path, theirs: Path) -> list[str]:
    names = ("model.onnx", "model.onnx.data", "genai_config.json")
    return [name for name in names if not same_bytes(ours / name, theirs / name)]


def _openvino(ours: Path, theirs: Path) -> list[str]:
    models = [str(folder / "openvino_model.xml") for folder in (ours, theirs)]
    done = subprocess.run(
        [toolchain("openvino").python, ROOT / "tests" / "support" / "openvino_compare.py"],
        input=json.dumps([["graph", *models]]),
        capture_output=True,
        text=True,
        check=True,
    )
    (answer,) = json.loads(done.stdout)
    return [answer["error"]] if "error" in answer else list(map(str, answer["answer"]))


def _differing(
    ours: Iterable[str], theirs: Iterable[str], same: Callable[[str], bool]
) -> list[str]:
    mine, vendors = set(ours), set(theirs)
    return sorted(mine ^ vendors) + sorted(name for name in mine & vendors if not same(name))


def _by_program(backend: str, ours: Path, theirs: Path) -> list[str]:
    program = ROOT / "tests" / "support" / f"{backend}_compare.py"
    words = [str(toolchain(backend).python), str(program), str(ours), str(theirs)]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    differing: list[str] = json.loads(done.stdout.splitlines()[-1])
    return differing


COMPARE: dict[str, Callable[[Path, Path], list[str]]] = {
    "llamacpp": _gguf,
    "ort_genai": _onnx,
    "openvino": _openvino,
    "litert": partial(_by_program, "litert"),
    "executorch": partial(_by_program, "executorch"),
    "coreai": partial(_by_program, "coreai"),
    "mlx": _safetensors,
    "pytorch": _safetensors,
}
"""Backend -> (our folder, the vendor's) -> what differs; empty if nothing does."""
