"""Write canonical weights and take logits; runs in the pytorch toolchain.

`python canonical.py` reads {"write": [what is written, from where, ...], "logits": [[folder,
ids, output], ...]} from standard input and prints the largest anonymous memory while it wrote, in
bytes; logits are those of Transformers' own class in fp32, an .npy [tokens, vocabulary].
"""

from __future__ import annotations

import json
import os
import re
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np

from phibuild.worker.lean import import_lean

import_lean()


def write(order: dict[str, Any]) -> None:
    from phibuild.backends.pytorch.merge import Origin, write_canonical
    from phibuild.worker.architecture import Architecture

    weights, arch = Path(order["weights"]), Architecture.from_json(order["arch"])
    origin = Origin(weights, arch, order["fusing"], order["adapter"])
    write_canonical(origin, Path(order["output"]))


def logits(folder: str, ids: list[int], output: str) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    with torch.no_grad():
        model(
            torch.tensor([ids])
        )  # MKL's first calls by several threads may be inexact: pytorch/pytorch#188792
        np.save(output, model(torch.tensor([ids]), use_cache=False).logits[0].numpy())


class Watch(threading.Thread):
    """Looks at this process's anonymous memory every few milliseconds while the block runs."""

    def __init__(self) -> None:
        super().__init__()
        self.peak = 0
        self._over = threading.Event()

    def run(self) -> None:
        while not self._over.wait(0.004):
            status = Path("/proc/self/status").read_text(encoding="ascii")
            found = re.search(r"RssAnon:\s+(\d+) kB", status)
            self.peak = max(self.peak, int(found[1]) * 1024 if found else 0)

    def __enter__(self) -> Watch:
        self.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._over.set()
        self.join()


def main() -> None:
    request = json.load(sys.stdin)
    with Watch() as watch:
        for order in request["write"]:
            write(order)
    print(watch.peak)
    for folder, ids, output in request["logits"]:
        logits(folder, ids, output)


if __name__ == "__main__":
    os.environ["HF_HUB_OFFLINE"] = "1"
    main()
