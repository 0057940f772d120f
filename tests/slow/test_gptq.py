"""GPTQ: its codes against the paper's Algorithm 1 written out in float64, one row and one column at
a time; what every backend's artifact loses with them; kills and threads, which do not change
them."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from conftest import CommandLine
from phibuild.backends.registry import SHIPPED
from support import warm
from support.kinds import some
from support.lent import Pool

pytestmark = pytest.mark.slow
ROOT = Path(__file__).resolve().parents[2]

PAPER = """
import json, sys
from dataclasses import replace
import numpy as np
import torch
from phibuild.backends.pytorch.gptq.columns import quantize
from phibuild.backends.pytorch.gptq.factor import Hessian
from phibuild.worker.grids import Grid

STORED = {"F16": torch.float16, "BF16": torch.bfloat16, "F32": torch.float32}

def stored(value, grid):
    return float(torch.tensor(float(value), dtype=torch.float32).to(STORED[grid.scale]))

def code_of(w, scale, zero, grid):
    if scale == 0:
        step = 0.0 if grid.zero == "bias" else zero
    else:
        step = (w - zero) / scale if grid.zero == "bias" else w / scale + zero
    return np.clip(np.rint(step), 0, 2 ** grid.bits - 1)

def value_of(code, scale, zero, grid):
    return code * scale + zero if grid.zero == "bias" else (code - zero) * scale

def whole(value, step):
    return float(np.clip(np.rint(value / step), 0, 63)) if step else 0.0

def share(w, h, grid):
    size = grid.group_size
    found = [fit(w[i:i + size], h[i:i + size], grid) for i in range(0, len(w), size)]
    return (stored(max(scale for scale, _ in found) / 63, grid),
            stored(max(-zero for _, zero in found) / 63, grid))

def fit(w, h, grid, steps=None):
    top, half = 2 ** grid.bits - 1, 2 ** (grid.bits - 1)
    tried = []
    def attempt(scale, zero):
        if steps:
            scale, zero = whole(scale, steps[0]) * steps[0], -whole(-zero, steps[1]) * steps[1]
        elif grid.shared:
            zero = min(zero, 0.0)
        else:
            zero = stored(zero, grid) if grid.zero == "bias" else zero
            scale = stored(scale, grid)
        codes = code_of(w, scale, zero, grid)
        error = (h * (value_of(codes, scale, zero, grid) - w) ** 2).sum()
        tried.append((float(error), scale, zero))
    def best():
        found = tried[0]
        for one in tried[1:]:
            if one[0] < found[0]:
                found = one
        return found[1:]
    for factor in (1.0, 0.95, 0.9, 0.85, 0.8, 0.75):
        low, high = w.min(), w.max()
        if grid.zero == "middle" and grid.negative:
            attempt((low if -low >= high else high) * -factor / half, half)
        elif grid.zero == "middle":
            attempt(max(-low, high) * factor * 2 / top, half)
        elif grid.zero == "code":
            low, high = min(low, 0), max(high, 0)
            scale = (high - low) * factor / top
            attempt(scale, np.clip(np.rint(-low * factor / scale), 0, top))
        else:
            low = min(low, 0) if grid.shared else low
            scale = (high - low) * factor / top
            attempt(scale, (low + high) / 2 - scale * top / 2)
    for _ in range(2):
        scale, zero = best()
        codes = code_of(w, scale, zero, grid)
        if grid.zero == "bias":
            mean_code, mean = (codes * h).sum() / h.sum(), (w * h).sum() / h.sum()
            away = codes - mean_code
            scale = (away * h * (w - mean)).sum() / (h * away ** 2).sum()
            attempt(scale, mean - scale * mean_code)
        else:
            attempt((h * (codes - zero) * w).sum() / (h * (codes - zero) ** 2).sum(), zero)
    return best()

def paper(weights, inputs, grid):
    H = inputs.T @ inputs
    H += 0.01 * np.diag(H).mean() * np.eye(len(H))
    U = np.linalg.cholesky(np.linalg.inv(H)).T
    h = (inputs ** 2).mean(0)
    codes = np.zeros(weights.shape, int)
    scales = np.zeros((len(weights), weights.shape[1] // grid.group_size))
    zeros, steps, span = scales.copy(), None, grid.group_size * grid.shared
    for number, row in enumerate(weights.copy()):
        for i in range(len(row)):
            group = i // grid.group_size
            if span and i % span == 0:
                steps = share(row[i:i + span], h[i:i + span], grid)
            if i % grid.group_size == 0:
                end = i + grid.group_size
                levels = fit(row[i:end], h[i:end], grid, steps)
                scales[number, group], zeros[number, group] = levels
            scale, zero = scales[number, group], zeros[number, group]
            codes[number, i] = code_of(row[i], scale, zero, grid)
            error = (row[i] - value_of(codes[number, i], scale, zero, grid)) / U[i, i]
            row[i + 1:] -= error * U[i, i + 1:]
    return codes, scales, zeros

answers = {}
for name, given in json.load(sys.stdin).items():
    grid = Grid.from_json(given)
    random = np.random.default_rng(7)
    mix = random.standard_normal((192, 256)) / 8
    def normal(*shape):
        return random.standard_normal(shape)
    inputs = np.float32(normal(1500, 192) @ mix + 0.2 * normal(1500, 256))
    weights = np.float32(normal(24, 256) * np.exp(normal(24, 1)))
    hessian = Hessian(256)
    for part in np.split(inputs, 5):
        hessian.add(torch.from_numpy(part)[None])
    importance = hessian.diagonal()
    made = quantize(torch.from_numpy(weights), hessian.factor(), importance, grid)
    codes, scales, zeros = paper(weights.astype(np.float64), inputs.astype(np.float64), grid)
    size = grid.group_size
    if grid.shared:  # what so many steps are
        parts = [part[:, :, None].repeat(1, 1, grid.shared).reshape(24, -1)
                 for part in made.steps.permute(2, 0, 1)]
        made = replace(made, scales=made.scales * parts[0], zeros=-made.zeros * parts[1])
    nearest = sum(
        fit(row[i:i + size], np.ones(size), grid)[0] == scales[n, i // size]
        for n, row in enumerate(weights.astype(np.float64)) for i in range(0, 256, size)
    )
    answers[name] = {
        "codes": int((made.codes.numpy() != codes).sum()),
        "scales": int((made.scales.numpy() != scales).sum()),
        "zeros": int((made.zeros.numpy() != zeros).sum()),
        "levels": int(np.unique(codes).size),
        "plain_scales": int(nearest),
    }
print(json.dumps(answers))
"""
GRIDS: dict[str, dict[str, Any]] = {
    "middle, scales of both signs": {"bits": 4, "group_size": 32, "zero": "middle", "scale": "F32"},
    "middle, positive scales": {"bits": 4, "group_size": 128, "zero": "middle", "scale": "F32",
                                "negative": False},
    "a code of zero": {"bits": 4, "group_size": 64, "zero": "code", "scale": "F32"},
    "bias": {"bits": 4, "group_size": 64, "zero": "bias", "scale": "F32"},
    "half precision": {"bits": 4, "group_size": 32, "zero": "middle", "scale": "F16"},
    "bfloat16, eight bits": {"bits": 8, "group_size": 64, "zero": "bias", "scale": "BF16"},
    "shared steps": {"bits": 4, "group_size": 32, "zero": "bias", "scale": "F32", "shared": 8},
    "shared steps in half precision": {"bits": 5, "group_size": 32, "zero": "bias", "scale": "F16",
                                       "shared": 4},
    "three bits": {"bits": 3, "group_size": 32, "zero": "code", "scale": "F16"},
}  # fmt: skip


def run(python: Path, script: str, data: object) -> Any:
    done = warm.run(
        [python, "-c", script], input=json.dumps(data),
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_codes_are_those_of_the_paper(toolchain_python: Callable[[str], Path]) -> None:
    found = run(toolchain_python("pytorch"), PAPER, GRIDS)
    for name, grid in GRIDS.items():
        assert found[name]["levels"] == 2 ** grid["bits"] or grid["bits"] == 8, name
        # The reference must not agree by doing nothing: errors that were fed forward change scales,
        # where their type is fine enough to show it.
        groups = 24 * 256 // grid["group_size"]
        assert found[name]["plain_scales"] < groups / 2 or grid["scale"] == "BF16", name
        wrong = {what: found[name][what] for what in ("codes", "scales", "zeros")}
        assert wrong["codes"] == 0, (name, wrong)
        if grid["scale"] != "F32":
            # Scales differ in the last bits of fp32, by the processor: codes do not, and of those
            # that are rounded to a narrower type one in a hundred may.
            assert wrong["scales"] <= groups // 50, (name, wrong)
            assert wrong["zeros"] == 0 or grid["zero"] == "bias", (name, wrong)


BLOCKS = """
import ctypes, json
import numpy as np
from phibuild.backends.llamacpp import ggml
from phibuild.backends.llamacpp.coded import coded_blocks
from phibuild.backends.llamacpp.layout import GRIDS
from phibuild.worker.codes import CodedRows

answers = {}
for kind, grid in GRIDS.items():
    random = np.random.default_rng(3)
    rows, width, size = 5, 768, grid.group_size
    codes = random.integers(0, 2 ** grid.bits, (rows, width)).astype(np.uint8)
    each = (rows, width // size)
    if grid.shared:
        scales, zeros = (random.integers(0, 64, each).astype(np.uint8) for _ in range(2))
        steps = random.random((rows, width // grid.span, 2)).astype(np.float16)
        scale, bias = (
            number * np.repeat(steps[..., i].astype(np.float64), grid.shared, axis=1)
            for i, number in enumerate((scales, zeros))
        )
        values = codes * np.repeat(scale, size, axis=1) - np.repeat(bias, size, axis=1)
        coded = CodedRows(codes, scales, zeros, steps)
    else:
        scales = random.standard_normal(each).astype(np.float16)
        values = (codes - 8.0) * np.repeat(scales.astype(np.float64), size, axis=1)
        coded = CodedRows(codes, scales, None)
    blocks = coded_blocks(kind, coded)
    found = np.empty((rows, width), np.float32)
    read = getattr(ggml.library(), f"dequantize_row_{kind.lower().replace('k', 'K')}")
    read.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64]
    read(blocks.ctypes.data, found.ctypes.data, found.size)
    answers[kind] = float(np.abs(found - values).max() / np.abs(values).max())
print(json.dumps(answers))
"""


def test_blocks_hold_what_llama_cpp_reads(toolchain_python: Callable[[str], Path]) -> None:
    """Codes, scales and steps of each type, as llama.cpp itself reads the blocks."""
    found = run(toolchain_python("llamacpp"), BLOCKS, None)
    assert set(found) == {"Q4_0", "Q4_K", "Q5_K"}
    assert max(found.values()) < 1e-6, found


RECIPE = """\
devices:
  intel_n100: {llamacpp: {int4: {type: Q4_0}}, openvino: [int4]}
  raspberry_pi_5:
    {llamacpp: {int4: {method: gptq, tokens: 4096}}, litert: [int4], executorch: [int4]}
  pixel_8:
    litert: {int4: {method: gptq, tokens: 4096}}
    executorch: {int4: {method: gptq, tokens: 4096}}
  mac: {mlx: [int4], coreai: [int4]}
  iphone: {mlx: {int4: {method: gptq, tokens: 4096}}, coreai: {int4: {method: gptq, tokens: 4096}}}
  ai_pc_rtx: {pytorch: [int4]}
  jetson_orin_nano: {pytorch: {int4: {method: gptq, tokens: 4096}}}
  ai_pc_intel: {ort_genai: {int4: {provider: cpu}}, openvino: {int4: {method: gptq, tokens: 4096}}}
  copilot_pc_amd: {ort_genai: {int4: {provider: cpu, method: gptq, tokens: 4096}}}
  copilot_pc_snapdragon: {qnn: {int4: {form: onnx}}}
  snapdragon_8_elite: {qnn: {int4: {form: onnx, method: gptq, tokens: 4096}}}
"""
# On other devices: both recipes are one matrix.
OTHER_GRIDS = """\
devices:
  intel_n100_8gb:
    llamacpp:
      int4:
        - {type: Q4_K_M}
        - {type: Q4_K_M, method: gptq, tokens: 4096}
        - {type: Q5_K_M}
        - {type: Q5_K_M, method: gptq, tokens: 4096}
  core_ultra_1: {openvino: {int4: {mode: int4_sym, method: gptq, tokens: 4096}}}
  copilot_pc_amd_32gb:
    ort_genai: {int4: {provider: cpu, symmetric: false, block_size: 64, method: gptq, tokens: 4096}}
  copilot_pc_intel:
    ort_genai: {int4: {provider: cpu, int8_matmuls: [last_matmul, mixed_layers], method: gptq,
                       tokens: 4096}}
  rtx_12gb: {pytorch: {int4: {symmetric: false, group_size: 32, method: gptq, tokens: 4096}}}
  mac_8gb: {mlx: {int4: {bits: 3, group_size: 32, method: gptq, tokens: 4096}}}
  mac_24gb: {mlx: {int4: {bits: 5, dtype: float16, method: gptq, tokens: 4096}}}
"""
QUICK = ("evaluation.windows=4", "evaluation.window_tokens=128", "evaluation.decode_tokens=4")
SMALL = "devices: {raspberry_pi_5: {llamacpp: {int4: {method: gptq, tokens: 2048}}}}\n"


@pytest.fixture
def work(phibuild: CommandLine, toolchain_python: Callable[[str], Path]) -> CommandLine:
    for name in SHIPPED:
        toolchain_python(name)
    (phibuild.folder / "recipes").mkdir()
    return phibuild


def write(work: CommandLine, recipe: str, name: str = "mine") -> None:
    (work.folder / "recipes" / f"{name}.yaml").write_text(recipe, encoding="utf-8")


@pytest.fixture(scope="module")
def all_grids(
    tmp_path_factory: pytest.TempPathFactory,
    toolchain_python: Callable[[str], Path],
    pool: Path,
    every: bool,
) -> CommandLine:
    """Return where every backend was built with and without GPTQ, and other grids with it."""
    work = CommandLine(tmp_path_factory.mktemp("grids") / "work", pool=Pool(pool))
    (work.folder / "recipes").mkdir(parents=True)
    for name in SHIPPED:
        toolchain_python(name)
    grids = yaml.safe_load(OTHER_GRIDS)["devices"]
    if not every:  # of each kind one: steps that are shared, zero points that are codes, biases
        grids = {device: grids[device] for device in ("intel_n100_8gb", "rtx_12gb", "mac_8gb")}
    write(work, RECIPE)
    write(work, yaml.safe_dump({"devices": grids}), "grids")
    done = work("build", "-m", "recipe=mine,grids", *QUICK, "evaluation.windows=8")
    assert done.returncode == 0, done.stdout + done.stderr
    return work


def cells_of(work: CommandLine, recipe: str) -> list[dict[str, Any]]:
    """Return the cells of a recipe of the matrix."""
    devices = yaml.safe_load(recipe)["devices"]
    return [cell for cell in work.report("mine+grids")["cells"] if cell["device"] in devices]


def test_every_backend_loses_less_at_the_same_size(all_grids: CommandLine) -> None:
    found: dict[str, dict[str, dict[str, Any]]] = {}
    for cell in cells_of(all_grids, RECIPE):
        how = "gptq" if cell["variant"].endswith("-gptq") else "plain"
        found.setdefault(cell["backend"], {})[how] = cell
    assert set(found) == set(SHIPPED)
    for name, cells in found.items():
        loss = {how: cell["quality"]["kl_mean"] for how, cell in cells.items()}
        assert loss["gptq"] < 0.65 * loss["plain"], (name, loss)
        plain = cells["plain"]["size_bytes"]
        assert cells["gptq"]["size_bytes"] == pytest.approx(plain, rel=0.002), name
    steps = [step["id"] for step in all_grids.report("mine+grids")["steps"]]
    assert sum(step.startswith("quantize.") for step in steps) == 1  # a calibration for all grids
    assert list((all_grids.folder / "store" / "partial").iterdir()) == []


def test_every_grid_that_can_be_asked_for(all_grids: CommandLine) -> None:
    plain = {"w4a16-asym-g32-gptq": 0.05, "q3-g32-gptq": 0.35, "q5-g64-float16-gptq": 0.06}
    cells = {cell["variant"]: cell for cell in cells_of(all_grids, OTHER_GRIDS)}
    for name in ("Q4_K_M", "Q5_K_M"):  # a quarter of their weights is Q6_K with and without it
        before, after = cells.pop(name), cells.pop(f"{name}-gptq")
        assert after["quality"]["kl_mean"] < 0.8 * before["quality"]["kl_mean"], name
        assert after["size_bytes"] == pytest.approx(before["size_bytes"], rel=1e-4)
    for cell in cells.values():
        assert cell["quality"]["kl_mean"] < plain.get(cell["variant"], 0.06), cell["variant"]


def digests(work: CommandLine) -> dict[str, str]:
    """Return the sha256 of each file of codes, and of each artifact's."""
    store = work.folder / "store"
    paths = [*store.glob("references/*/layer-*"), *store.glob("references/*/head*"),
             *store.glob("artifacts/*/*.gguf")]  # fmt: skip
    return {
        str(path.relative_to(store)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in paths
    }


@pytest.fixture(scope="module")
def whole(
    tmp_path_factory: pytest.TempPathFactory, toolchain_python: Callable[[str], Path]
) -> dict[str, str]:
    """Return the digests of what a build makes that nothing disturbed, with one thread."""
    work = CommandLine(tmp_path_factory.mktemp("whole") / "work")
    (work.folder / "recipes").mkdir(parents=True)
    for name in ("llamacpp", "pytorch"):
        toolchain_python(name)
    write(work, SMALL)
    done = work("build", "recipe=mine", "evaluation=none", "executor.cores=1")
    assert done.returncode == 0, done.stdout + done.stderr
    found = digests(work)
    assert len(found) > 4
    return found


@pytest.mark.parametrize("changed", some([False, True], [False]))
def test_a_killed_calibration_goes_on_and_threads_change_nothing(
    changed: bool, work: CommandLine, whole: dict[str, str]
) -> None:
    """But where the checkpoint's files are not those that it was begun of."""
    write(work, SMALL)
    command = [sys.executable, "-m", "phibuild", "build", "recipe=mine", "evaluation=none"]
    store = work.folder / "store"
    environ = {**os.environ, "PHIBUILD_STORE": str(store)}
    process = subprocess.Popen(command, cwd=work.folder, env=environ, start_new_session=True,
                               stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)  # fmt: skip
    while not (first := list(store.glob("partial/*/*/layer-00001.safetensors"))):
        assert process.poll() is None
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    before = first[0].stat()
    assert list(store.glob("partial/*/*/states-*.npy"))  # two, if it was between them
    if changed:
        for folder in store.glob("partial/*/*"):
            folder.rename(folder.with_name("0123456789abcdef"))
    done = work("build", "recipe=mine", "evaluation=none")
    assert done.returncode == 0, done.stdout + done.stderr
    assert list((store / "partial").iterdir()) == []
    kept = store / "references" / first[0].parents[1].name / first[0].name
    assert (kept.stat().st_mtime_ns == before.st_mtime_ns) is not changed
    assert digests(work) == whole


def test_a_text_that_is_too_short_fails_what_is_made_of_it_alone(work: CommandLine) -> None:
    (work.folder / "short.txt").write_text("too short", encoding="utf-8")
    recipe = "devices: {mac: {mlx: {int4: {method: gptq, text: short.txt}, int8: }}}\n"
    write(work, recipe)
    done = work("build", "recipe=mine", "evaluation=none")
    assert done.returncode == 1, done.stdout + done.stderr
    reasons = {cell["precision"]: cell["reason"] for cell in work.report("mine")["cells"]}
    assert reasons["int4"].startswith("the original could not be run: the calibration text short")
    assert reasons["int8"] is None


BOTH = """\
devices:
  raspberry_pi_5: {llamacpp: {int4: {type: Q4_0}}, litert: [int4], executorch: [int4]}
  pixel_8:
    litert: {int4: {method: gptq, tokens: 4096}}
    executorch: {int4: {method: gptq, tokens: 4096}}
  jetson_orin_nano: {llamacpp: {int4: {type: Q4_0, method: gptq, tokens: 4096}}}
  intel_n100: {openvino: {int4: {group_size: 32}}}
  ai_pc_intel: {openvino: {int4: {group_size: 32, method: gptq, tokens: 4096}}}
  mac: {mlx: {int4: {group_size: 32}}, coreai: [int4]}
  iphone:
    mlx: {int4: {group_size: 32, method: gptq, tokens: 4096}}
    coreai: {int4: {method: gptq, tokens: 4096}}
  ai_pc_rtx: {pytorch: {int4: {group_size: 32}}, ort_genai: {int4: {provider: cpu}}}
  copilot_pc_amd: {ort_genai: {int4: {provider: cpu, method: gptq, tokens: 4096}}}
  copilot_pc_intel: {pytorch: {int4: {group_size: 32, method: gptq, tokens: 4096}}}
  copilot_pc_snapdragon: {qnn: {int4: {form: onnx}}}
  snapdragon_8_elite: {qnn: {int4: {form: onnx, method: gptq, tokens: 4096}}}
"""


# A tied embedding; none, and no longrope.
@pytest.mark.parametrize("shape", some(["phi4mini", "phi4"], ["phi4mini"]))
def test_other_shapes(
    shape: str, work: CommandLine, checkpoint: Callable[..., Path], every: bool
) -> None:
    write(work, BOTH)
    source = checkpoint(shape)
    # The embedded model has all; of others one that needs its own blocks and one that does not.
    kept = set(SHIPPED) if every else {"llamacpp", "mlx"}
    only = [word for name in sorted(kept) for word in ("--only", f"*.{name}.*")]
    done = work("build", "recipe=mine", f"model={source}", *QUICK, *only)
    assert done.returncode == 0, done.stdout + done.stderr
    loss: dict[str, list[float]] = {}
    for cell in sorted(work.report("mine")["cells"], key=lambda cell: len(cell["variant"])):
        loss.setdefault(cell["backend"], []).append(cell["quality"]["kl_mean"])
    assert set(loss) == kept
    for name, (plain, gptq) in loss.items():
        assert gptq < 0.9 * plain, (name, plain, gptq)
