"""GPTQ's codes against the paper's Algorithm 1 written out in float64, one row and one column at a
time; rows, threads and interruptions do not change them."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.slow
ROOT = Path(__file__).resolve().parents[2]

PAPER = """
import json, sys
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

def fit(w, h, grid):
    top, half = 2 ** grid.bits - 1, 2 ** (grid.bits - 1)
    tried = []
    def attempt(scale, zero):
        if grid.zero == "bias":
            zero = stored(zero, grid)
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
    zeros = scales.copy()
    for number, row in enumerate(weights.copy()):
        for i in range(len(row)):
            group = i // grid.group_size
            if i % grid.group_size == 0:
                end = i + grid.group_size
                scales[number, group], zeros[number, group] = fit(row[i:end], h[i:end], grid)
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
    "three bits": {"bits": 3, "group_size": 32, "zero": "code", "scale": "F16"},
}  # fmt: skip


def run(python: Path, script: str, data: object) -> Any:
    done = subprocess.run(
        [python, "-c", script], input=json.dumps(data), text=True, capture_output=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)}, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_codes_are_those_of_the_paper(toolchain_python: Callable[[str], Path]) -> None:
    found = run(toolchain_python("pytorch"), PAPER, GRIDS)
    for name, grid in GRIDS.items():
        assert found[name]["levels"] == 2 ** grid["bits"] or grid["bits"] == 8, name
        # The reference must not agree by doing nothing: errors that were fed forward change scales.
        assert found[name]["plain_scales"] < 24 * 256 // grid["group_size"] / 2, name
        wrong = {what: found[name][what] for what in ("codes", "scales", "zeros")}
        if grid["scale"] == "F32":
            # Scales differ in the last bits of fp32, which codes do not.
            assert wrong["codes"] == 0, (name, wrong)
        else:
            assert wrong == {"codes": 0, "scales": 0, "zeros": 0}, name
