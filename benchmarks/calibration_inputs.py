"""What the inputs of a calibration decide: those of layers that are quantized already, or the
original's, which serve all grids at once.

    python benchmarks/calibration_inputs.py

The embedded model; weights of its decoder layers on a grid, as fp32, by Transformers' own model; KL
from the original over held-out windows, with its standard error over them. Runs itself again in
the pytorch toolchain.
"""

from __future__ import annotations

import copy
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
SOURCE = ROOT / "phibuild" / "data" / "phi3-tiny-trained"
WINDOWS, TOKENS, JUDGED, JUDGED_TOKENS = 32, 512, 20, 256


def main() -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from phibuild.backends.pytorch.gptq.columns import quantize
    from phibuild.backends.pytorch.gptq.factor import Hessian
    from phibuild.backends.pytorch.gptq.scales import STARTS, Levels
    from phibuild.worker.grids import Grid

    grids = {
        "symmetric g32": Grid(4, 32, "middle", "F16"),
        "asymmetric g32": Grid(4, 32, "code", "F32"),
        "asymmetric g64": Grid(4, 64, "code", "F16"),
        "affine g64": Grid(4, 64, "bias", "BF16"),
        "symmetric g128": Grid(4, 128, "middle", "BF16", negative=False),
    }
    torch.set_num_threads(2)
    torch.set_grad_enabled(False)
    tokenizer = AutoTokenizer.from_pretrained(SOURCE)
    original = AutoModelForCausalLM.from_pretrained(SOURCE, dtype=torch.float32).eval()

    def windows(name: str, count: int, length: int) -> Any:
        ids = tokenizer((SOURCE / name).read_text(encoding="utf-8"))["input_ids"]
        step = (len(ids) - length) // (count - 1)
        return torch.tensor([ids[i * step : i * step + length] for i in range(count)])

    texts = windows("calibration.txt", WINDOWS, TOKENS)
    held_out = windows("heldout.txt", JUDGED, JUDGED_TOKENS)

    def predictions(model: Any) -> Any:
        return torch.stack([model(w[None]).logits[0].double().log_softmax(-1) for w in held_out])

    expected = predictions(original)

    def loss(model: Any) -> str:
        per_window = (expected.exp() * (expected - predictions(model))).sum(-1).mean(-1)
        error = float(per_window.std()) / JUDGED**0.5
        return f"{float(per_window.mean()):.4f} ± {error:.4f}"

    def linear(model: Any) -> Iterator[tuple[str, Any]]:
        for name, module in model.model.layers.named_modules():
            if isinstance(module, torch.nn.Linear):
                yield name, module

    def hessians(model: Any, some: Mapping[str, Any]) -> dict[str, Hessian]:
        found = {name: Hessian(module.in_features) for name, module in some.items()}
        hooks = [
            module.register_forward_pre_hook(lambda _, x, h=found[name]: h.add(x[0]))
            for name, module in some.items()
        ]
        for batch in texts.split(8):
            model(batch)
        for hook in hooks:
            hook.remove()
        return found

    def on_grid(weight: Any, hessian: Hessian | None, grid: Grid) -> Any:
        groups = weight.T.contiguous().unflatten(0, (-1, grid.group_size))
        if hessian is None:
            made = []
            for group in groups:
                scale, zero = STARTS[grid.zero](group.amin(0), group.amax(0), 1.0, grid)
                levels = Levels.stored(grid, scale, zero)
                made.append(levels.values(levels.codes(group)))
            return torch.cat(made).T
        importance = hessian.diagonal()
        found = quantize(weight, hessian.factor(), importance, grid)
        scales, zeros = (
            part.repeat_interleave(grid.group_size, 1) for part in (found.scales, found.zeros)
        )
        return Levels(grid, scales, zeros).values(found.codes.float())

    print("| grid | nearest | gptq, inputs of quantized layers | gptq, the original's inputs |")
    print("|---|---|---|---|", flush=True)
    for title, grid in grids.items():
        row = [title]
        for inputs in ("none", "quantized", "original"):
            started = time.process_time()
            model = copy.deepcopy(original)
            shared = hessians(original, dict(linear(original))) if inputs == "original" else {}
            for name, module in linear(model):
                own = hessians(model, {name: module}) if inputs == "quantized" else shared
                module.weight.copy_(on_grid(module.weight, own.get(name), grid))
            row.append(f"{loss(model)} ({time.process_time() - started:.0f} CPU s)")
        print("| " + " | ".join(row) + " |", flush=True)


if __name__ == "__main__":
    if sys.argv[1:] == ["--inside"]:
        sys.path.insert(0, str(ROOT))
        main()
    else:
        from phibuild.toolchains.environment import toolchain

        python = toolchain("pytorch").python
        raise SystemExit(subprocess.call([python, "-P", __file__, "--inside"]))
